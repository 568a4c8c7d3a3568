"""The lock files of the image fit pyproject.toml, and are of no machine in particular."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Iterator

import pytest
from packaging.requirements import Requirement

from tests.support.deployments import DEPLOY, ROOT, locked, normalized

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SCRIPT = runpy.run_path(str(DEPLOY / "lock.py"))
SERVER, CUDA, CPU = (
    DEPLOY / "lock" / f"{name}.txt" for name in ("server", "torch-cuda", "torch-cpu")
)


def requirements() -> Iterator[Requirement]:
    """Yield the requirements of the image's extras, those of its system and Python."""
    image = {"python_version": SCRIPT["image_python"](), "sys_platform": "linux"}
    lines = list(PROJECT["dependencies"])
    for extra in SCRIPT["EXTRAS"]:
        lines += PROJECT["optional-dependencies"][extra]
    for one in map(Requirement, lines):
        if one.name != PROJECT["name"] and (one.marker is None or one.marker.evaluate(image)):
            yield one


@pytest.mark.parametrize("torch", [CUDA, CPU], ids=lambda path: path.stem)
def test_locked_versions_are_in_the_ranges_of_pyproject(torch):
    versions = locked(SERVER) | locked(torch)
    for one in requirements():
        assert one.specifier.contains(versions[normalized(one.name)]), f"{one}: run `make lock`"


@pytest.mark.parametrize("path", [SERVER, CUDA], ids=lambda path: path.stem)
def test_each_package_of_pypi_is_locked_with_its_hashes(path):
    entries = re.split(r"\n(?=[^\s#])", path.read_text())[1:]
    assert len(entries) == len(locked(path)) > 0
    for entry in entries:
        assert re.fullmatch(r"\S+==\S+( ; [^\\]*)?( \\\n    --hash=sha256:[0-9a-f]{64})+\n?", entry)


def test_both_targets_have_the_same_torch():
    torch = locked(CPU)
    assert torch.keys() == {"torch", "torchvision"}
    assert torch.items() <= locked(CUDA).items()
    assert not locked(SERVER).keys() & locked(CUDA).keys()


def test_lock_files_name_no_index_or_path_of_a_machine():
    for path in (SERVER, CUDA):
        assert not re.search(r"https?:|file:|--index|--find-links|@ ", path.read_text())
    options = re.findall(r"^--.*", CPU.read_text(), re.MULTILINE)
    assert options == [f"--index-url {SCRIPT['CPU_INDEX']}"]


def test_versions_of_an_environment_become_constraints():
    constraints = [Requirement(line) for line in SCRIPT["installed"]().splitlines()]
    assert "torch" in {one.name for one in constraints}
    assert not [one for one in constraints if "+" in str(one) or one.name == PROJECT["name"]]
