"""torchvision is imported without the compiler, and works with it all the same."""

from __future__ import annotations

import os
import subprocess
import sys

BUILD = """
import sys
from resnet50_server.variants.network import build_model, random_weights
from resnet50_server.variants.spec import parse_variant
spec = parse_variant("untrained=random:0")
build_model(spec, random_weights(spec))
print("torch._dynamo" in sys.modules)
"""
# A detection operator asks the compiler whether it is supported; `torch.compile` is the compiler.
COMPILE = """
import torch
from torchvision.ops import roi_align
boxes = [torch.tensor([[0.0, 0.0, 8.0, 8.0]])]
print(*roi_align(torch.ones(1, 3, 16, 16), boxes, 4).shape)
print(torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item())
"""
# Another release, which needs more than the stand-in has.
NEEDS_MORE = "from torch._dynamo.utils import counters\n"
MODELS = "ResNet = resnet50 = object\nimport torchvision.models.quantization as quantization\n"


def run(program: str, **environment: str) -> list[str]:
    """Return the lines that a program prints in a process of its own."""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_network_is_built_without_the_compiler_which_works_afterwards():
    assert run(BUILD + COMPILE) == ["False", "1 3 4 4", "2.0"]


def test_compiler_that_is_imported_already_stays():
    before = "import torch._dynamo as before\n"
    after = 'import torch._dynamo as after\nprint(after is before, hasattr(after, "optimize"))'
    assert run(before + BUILD + after) == ["True", "True True"]


def test_release_that_needs_more_of_the_compiler_gets_it(tmp_path):
    models = tmp_path / "torchvision" / "models"
    models.mkdir(parents=True)
    (tmp_path / "torchvision" / "__init__.py").write_text(NEEDS_MORE)
    (models / "__init__.py").write_text(MODELS)
    (models / "quantization.py").touch()
    program = "import resnet50_server.variants.torchvision_models, sys, torchvision\n"
    program += 'print(torchvision.__file__, hasattr(sys.modules["torch._dynamo"], "optimize"))'
    found = run(program, PYTHONPATH=str(tmp_path))
    assert found == [f"{tmp_path}/torchvision/__init__.py True"]
