"""The Makefile installs as much as a target needs, once."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def make(venv: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Return the commands that `make` would run with an environment at a path."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    return subprocess.run(
        ["make", "--dry-run", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment | {"VENV": str(venv)},
    )


def extras(*arguments: object) -> list[str]:
    """Return the extras that `make` would install, in their order."""
    lines = make(*arguments).stdout.splitlines()
    return [line.split()[-1] for line in lines if "--editable" in line]


@pytest.fixture
def venv(tmp_path) -> Path:
    return tmp_path


@pytest.mark.parametrize("target", ["demo", "serve"])
def test_demo_installs_neither_linters_nor_test_tools(target, venv):
    assert extras(venv, target) == ["'.[demo]'"]


def test_demo_says_its_size_before_it_installs(venv):
    size, *_ = make(venv, "demo").stdout.splitlines()
    assert size.startswith("echo ") and " GB" in size and "TORCH=cpu" in size


@pytest.mark.parametrize("target", ["demo", "test"])
def test_cpu_build_of_pytorch_is_installed_on_request(target, venv):
    index = "--index-url https://download.pytorch.org/whl/cpu torch torchvision"
    assert index in make(venv, target, "TORCH=cpu").stdout
    assert index not in make(venv, target).stdout
    refused = make(venv, target, "TORCH=gpu")
    assert refused.returncode != 0
    assert "TORCH=gpu: the only value is cpu" in refused.stderr


def test_tests_install_their_tools_after_the_demo(venv):
    (venv / "demo").touch()
    assert extras(venv, "demo") == []
    assert extras(venv, "test") == ["'.[dev]'"]


def test_demo_installs_nothing_after_the_tests(venv):
    assert f"touch {venv}/demo {venv}/installed" in make(venv, "test").stdout
    for marker in ("demo", "installed"):
        (venv / marker).touch()
    assert extras(venv, "demo") == extras(venv, "test") == []
