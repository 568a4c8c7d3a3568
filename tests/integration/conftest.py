"""Both clients of the SDK, a server for all tests, and the worked example of a custom variant."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import trustme
from filelock import FileLock

from tests.support.certs import authority
from tests.support.clients import KINDS
from tests.support.serving import ServerProcess, server_processes

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allow the tests for which the digits are built first the minutes that this takes."""
    for item in items:
        if "digits_tutorial" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> type:
    """The class of a client: `Client`, then `AsyncClient`."""
    return request.param


@pytest.fixture(scope="session")
def ca() -> trustme.CA:
    """Return an authority for certificates."""
    return authority()


@pytest.fixture(scope="session")
def other_ca() -> trustme.CA:
    """Return another authority."""
    return authority()


@pytest.fixture(scope="session")
def null_process() -> Iterator[ServerProcess]:
    """A server process with the null engine, which no test changes or stops."""
    with server_processes() as start:
        process = start("--variants", "IMAGENET1K_V2", "--engine", "null")
        process.wait_until_listening()
        yield process


@pytest.fixture(scope="session")
def null_address(null_process: ServerProcess) -> str:
    """Its address."""
    return null_process.address


@pytest.fixture(scope="session")
def digits() -> ModuleType:
    """`examples/digits.py`."""
    spec = importlib.util.spec_from_file_location("digits", EXAMPLES / "digits.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["digits"] = module
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Tutorial:
    """The files that docs/tutorials/first-classification.md begins with.

    Attributes:
        folder: Has the variant `digits` and the images `held_out`.
        command: The block of the page that made them.
        printed: Its output.
    """

    folder: Path
    command: str
    printed: str


@pytest.fixture(scope="session")
def digits_tutorial(tmp_path_factory) -> Tutorial:
    """The digits, built as the tutorial says: by one of the processes that run tests, for all."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder, output = base / "digits", base / "digits.txt"
    command = "python examples/digits.py digits --backbone random --images held_out\n"
    with FileLock(base / "digits.lock"):
        if not output.exists():
            folder.mkdir(exist_ok=True)
            arguments = [sys.executable, str(EXAMPLES / "digits.py"), *command.split()[2:]]
            done = subprocess.run(
                arguments, cwd=folder, stdout=subprocess.PIPE, text=True, check=True
            )
            output.write_text(done.stdout)
    return Tutorial(folder, command, output.read_text())


@pytest.fixture(scope="session")
def built(digits_tutorial) -> tuple[Path, float]:
    """The variant's directory, and its accuracy as measured when it was built."""
    directory = digits_tutorial.folder / "digits"
    facts = json.loads((directory / "variant.json").read_text())
    return directory, facts["published_accuracy"]["acc_at_1"] / 100
