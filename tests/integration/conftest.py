"""The worked example of a custom variant, built once for all tests that serve it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="session")
def digits() -> ModuleType:
    """`examples/digits.py`."""
    spec = importlib.util.spec_from_file_location("digits", EXAMPLES / "digits.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["digits"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def built(digits, tmp_path_factory) -> tuple[Path, float]:
    """The variant's directory, and its accuracy as measured when it was built."""
    directory = tmp_path_factory.mktemp("digits") / "digits"
    return directory, digits.build(directory, choice="random")
