"""Commands in an environment whose torch and torchvision are of different releases."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support import weights
from tests.support.checkpoints import COUNT, save

ROOT = Path(__file__).resolve().parents[3]
SERVER = (sys.executable, "-m", "resnet50_server")
# Raised by torchvision without its compiled operators.
FAULTS = {
    "RuntimeError": "operator torchvision::nms does not exist",
    "AttributeError": "partially initialized module 'torchvision' has no attribute 'extension'",
    "OSError": "libcudart.so.12: cannot open shared object file",
}
CHOICE = "from choice import _check_torchvision as check; check()"
TIMEOUT_S = 120.0


@pytest.fixture
def run(tmp_path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs a command beside a torchvision whose import fails."""
    packages = tmp_path / "packages"

    def run(
        command: tuple[object, ...], fault: str = "RuntimeError", version: str = "0.19.0"
    ) -> subprocess.CompletedProcess[str]:
        (packages / "torchvision").mkdir(parents=True)
        (packages / "torchvision" / "__init__.py").write_text(f"raise {fault}({FAULTS[fault]!r})\n")
        facts = packages / f"torchvision-{version}.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: torchvision\nVersion: {version}\n"
        )
        path = os.pathsep.join(map(str, (packages, ROOT / "examples")))
        return subprocess.run(
            [str(part) for part in command],
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )

    return run


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    assert "Traceback" not in done.stderr + done.stdout
    return (done.stderr + done.stdout).splitlines()[-1]


def test_serve_names_both_versions_and_the_repair(run):
    options = ("--variants", "untrained=random:0", "--engine", "torch", "--listen", "127.0.0.1:0")
    done = run((*SERVER, "serve", *options))
    line = last_line(done)
    assert done.returncode == 1
    pair = f"torch {torch.__version__} and torchvision 0.19.0"
    assert line.startswith(f"resnet50-server: {pair} do not match")
    assert line.endswith(f"{sys.executable} -m pip install --force-reinstall torch torchvision")


def test_import_names_both_versions(run, tmp_path):
    source = save({"state_dict": weights.hollow(COUNT)}, tmp_path / "best.pth")
    done = run((*SERVER, "variants", "import", source, tmp_path / "pets"))
    assert done.returncode == 1
    assert "torchvision 0.19.0 do not match" in last_line(done)
    assert not (tmp_path / "pets").exists()


def test_check_names_both_versions(run):
    done = run((*SERVER, "variants", "check", "untrained=random:0", "--engine", "torch"))
    assert done.returncode == 1
    assert "torchvision 0.19.0 do not match" in last_line(done)


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_demo_names_both_versions_and_the_fault(run, fault):
    done = run((sys.executable, "-c", CHOICE), fault)
    assert done.returncode == 1
    assert f"torchvision 0.19.0 do not match ({fault}: {FAULTS[fault]})" in last_line(done)


def test_pair_without_cuda_is_repaired_from_its_index(run):
    done = run((sys.executable, "-c", CHOICE), version="0.19.0+cpu")
    index = "--index-url https://download.pytorch.org/whl/cpu"
    assert last_line(done).endswith(f"--force-reinstall {index} torch torchvision")
