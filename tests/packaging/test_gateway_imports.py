"""The gateway imports stubs, metrics and a workaround of the SDK; neither the server nor torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.imports import modules

GATEWAY = Path(__file__).resolve().parents[2] / "server" / "resnet50_gateway"
REFUSED = ("resnet50_server", "resnet50_cli", "resnet50_bench", "torch", "PIL")
SHARED = "resnet50_client._aio_status"


def test_the_gateway_imports_stubs_and_the_workaround_only():
    wrong = [
        f"{module} imports {name}"
        for module, found in modules(GATEWAY)
        for name in found
        if name.partition(".")[0] in REFUSED
        or (name.startswith("resnet50_client") and not f"{name}.".startswith(f"{SHARED}."))
    ]
    assert wrong == []


def test_a_running_gateway_has_neither_torch_nor_the_server():
    program = (
        "import sys, resnet50_gateway.process, resnet50_gateway.command;"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert set(loaded).isdisjoint(REFUSED)
