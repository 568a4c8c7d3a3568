"""Both clients of the SDK, and the worked example of a custom variant."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
from filelock import FileLock

from tests.support.clients import KINDS

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allow the tests for which the digits are built first the minutes that this takes."""
    for item in items:
        if "built" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> type:
    """The class of a client: `Client`, then `AsyncClient`."""
    return request.param


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
    """The variant's directory, and its accuracy as measured when it was built: by one of the
    processes that run tests, for all."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    directory, accuracy = folder / "digits", folder / "digits.json"
    with FileLock(folder / "digits.lock"):
        if not accuracy.exists():
            accuracy.write_text(json.dumps(digits.build(directory, choice="random")))
    return directory, json.loads(accuracy.read_text())
