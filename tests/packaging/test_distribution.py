"""Wheel and sdist as users get them: their files, their bytes, and the SDK alone on old and new
dependencies."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

from resnet50_client import __version__
from tests.support.interpreters import first_interpreter
from tests.support.pictures import encode, photo_like
from tests.support.sdk_environment import (
    PACKAGE_SETS,
    ROOT,
    PackageSet,
    build_wheel,
    floors,
    make_environment,
    run_session,
)
from tests.support.serving import server_processes

PACKAGES = {
    *("resnet50", "resnet50_bench", "resnet50_bulk", "resnet50_cli", "resnet50_client"),
    *("resnet50_gateway", "resnet50_metrics", "resnet50_server", "resnet50_settings"),
}
METADATA = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", ".gitignore"}
# Dependencies of the extras, none of which the SDK needs.
HEAVY = {"torch", "torchvision", "pillow", "av", "typer", "rich", "grpcio-health-checking"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(tmp_path_factory.mktemp("dist"))


def sources() -> set[str]:
    """Return the files of the packages in the checkout."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    command += [f"{top}/resnet50*" for top in ("protos", "server", "client")]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return {path for path in done.stdout.splitlines() if (ROOT / path).exists()}


def test_wheel_has_the_files_of_its_packages_and_no_others(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    files = {name for name in names if ".dist-info/" not in name}
    assert files == {path.partition("/")[2] for path in sources()}
    assert {name.split("/")[0] for name in files} == PACKAGES
    typed = {package for package in PACKAGES if f"{package}/py.typed" in files}
    assert typed == PACKAGES
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_sdist_has_the_sources_of_the_wheel(wheel):
    (sdist,) = wheel.parent.glob("*.tar.gz")
    with tarfile.open(sdist) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    assert names == sources() | METADATA | {"PKG-INFO"}


def test_same_sources_give_the_same_bytes(wheel, tmp_path):
    copy = tmp_path / "copy"
    for path in sources() | METADATA:
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, copy / path)
        # Another time and other permissions than in the checkout.
        os.utime(copy / path, (0, 1_700_000_000))
        (copy / path).chmod(0o600)
    again = build_wheel(tmp_path / "dist", copy)
    for built in wheel.parent.iterdir():
        assert (again.parent / built.name).read_bytes() == built.read_bytes(), built.name


def test_installed_commands_print_their_version_and_help(wheel, tmp_path):
    home = tmp_path / "environment"
    made = make_environment(home, sys.executable, wheel, (), dependencies=False)
    # Dependencies of the tests' environment; an editable install is not found by this path.
    dependencies = os.pathsep.join(path for path in sys.path if path.endswith("site-packages"))
    for command, shown in (
        ("resnet50 --version", __version__),
        ("resnet50 --help", "classify"),
        ("resnet50-server --version", __version__),
        ("resnet50-server --help", "serve"),
    ):
        name, option = command.split()
        done = subprocess.run(
            [made.with_name(name), option],
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | {"PYTHONPATH": dependencies},
        )
        assert done.returncode == 0, done.stderr
        assert shown in done.stdout


@pytest.fixture(scope="module")
def server():
    with server_processes() as start:
        yield start("--variants", "IMAGENET1K_V2", "--engine", "null").wait_until_listening()


@pytest.mark.parametrize("packages", PACKAGE_SETS, ids=lambda packages: packages.name)
def test_sdk_alone_makes_calls_of_every_shape(packages: PackageSet, wheel, server, tmp_path):
    python, version = first_interpreter(packages.pythons)
    pins = packages.pins_of(version)
    made = make_environment(tmp_path / "environment", python, wheel, pins)
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(encode(photo_like(64, 48), "JPEG"))
    found = run_session(made, server, photo)
    assert {"single_calls", "uploads", "many", "streams", "async_streams"} < set(found["checks"])
    assert HEAVY.isdisjoint(found["installed"])
    for pin in pins:
        name, _, version = pin.partition("==")
        assert found["installed"][name] == version
    command_line = subprocess.run(
        [made.with_name("resnet50")], capture_output=True, text=True, timeout=60
    )
    assert command_line.returncode == 2
    assert "install resnet50-serving with the extra [cli]" in command_line.stderr


def test_the_oldest_set_is_at_the_floors_of_pyproject():
    assert floors().keys() == {"grpcio", "protobuf", "googleapis-common-protos", "numpy"}
    assert set(PACKAGE_SETS[0].pins) == {f"{name}=={version}" for name, version in floors().items()}
