"""The wheel as users get it: what is in it, and the SDK alone on old and new dependencies."""

from __future__ import annotations

import subprocess
import zipfile

import pytest

from tests.support.interpreters import first_interpreter
from tests.support.pictures import encode, photo_like
from tests.support.sdk_environment import (
    PACKAGE_SETS,
    PackageSet,
    build_wheel,
    floors,
    make_environment,
    run_session,
)
from tests.support.serving import server_processes

# Dependencies of the extras, none of which the SDK needs.
HEAVY = {"torch", "torchvision", "pillow", "av", "typer", "rich", "grpcio-health-checking"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(tmp_path_factory.mktemp("dist"))


def test_wheel_holds_the_five_packages_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "resnet50",
        "resnet50_bench",
        "resnet50_cli",
        "resnet50_client",
        "resnet50_server",
    }
    for wanted in (
        "resnet50/v1/inference_pb2.py",
        "resnet50/v1/inference_pb2.pyi",
        "resnet50/v1/inference.proto",
        "resnet50/py.typed",
        "resnet50_client/py.typed",
        "resnet50_server/py.typed",
        "resnet50_cli/app.py",
        "resnet50_bench/report.html",
        "resnet50_cli/report.html",
        "resnet50_cli/report_macros.html",
        "resnet50_cli/evaluate/report.html",
        "resnet50_server/api/inference_service.py",
        "resnet50_server/variants/official.json",
    ):
        assert wanted in names


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
