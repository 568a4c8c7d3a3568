"""Environments in which the SDK alone is installed, from the wheel."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SESSION = Path(__file__).with_name("sdk_session.py")
SESSION_S = 300.0
IMPLEMENTATION = "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"
# Of the floor's NumPy there is no wheel for newer interpreters than 3.11.
OLDEST_NUMPY_OF_312 = "1.26.0"


@dataclass(frozen=True)
class PackageSet:
    """Releases of the SDK's dependencies.

    Attributes:
        name: Short name.
        pins: Requirements for pip; other packages are the newest.
        pythons: Versions of CPython with wheels of all of them, in order of preference.
    """

    name: str
    pins: tuple[str, ...]
    pythons: tuple[str, ...]

    def pins_of(self, version: str) -> tuple[str, ...]:
        """Return the requirements for an interpreter, such as "3.12"."""
        if version in ("3.10", "3.11"):
            return self.pins
        return tuple(
            f"numpy=={OLDEST_NUMPY_OF_312}" if pin.startswith("numpy==") else pin
            for pin in self.pins
        )


def floors() -> dict[str, str]:
    """Return the oldest releases that pyproject allows the SDK, by name."""
    text = (ROOT / "pyproject.toml").read_text()
    (block,) = re.findall(r"^dependencies = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    found = dict(re.findall(r'"([a-z-]+)>=([0-9.]+)[",;<]', block))
    del found["tomli"]  # not on every Python
    return found


PACKAGE_SETS = (
    PackageSet(
        "oldest",
        tuple(f"{name}=={version}" for name, version in floors().items()),
        ("3.10", "3.11", "3.12"),
    ),
    PackageSet(
        "protobuf-5", ("grpcio==1.68.1", "protobuf==5.29.5"), ("3.11", "3.12", "3.13", "3.10")
    ),
    PackageSet(
        "protobuf-6", ("grpcio==1.72.1", "protobuf==6.30.2"), ("3.12", "3.13", "3.11", "3.10")
    ),
    PackageSet("newest", (), ("3.14", "3.13", "3.12", "3.11", "3.10")),
)


def build_wheel(out: Path, source: Path = ROOT) -> Path:
    """Build the project's sdist and its wheel into a directory; return the wheel's path."""
    command = [sys.executable, "-m", "build", "--outdir", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


def make_environment(
    home: Path, python: str, wheel: Path, pins: tuple[str, ...], *, dependencies: bool = True
) -> Path:
    """Make an environment with the SDK alone; return its interpreter.

    Args:
        home: Directory of the environment, which is made.
        python: Interpreter.
        wheel: The project's wheel.
        pins: Requirements of the dependencies' releases.
        dependencies: Whether to install the SDK's dependencies.

    Raises:
        RuntimeError: pip failed; the message has its output.
    """
    subprocess.run([python, "-m", "venv", "--without-pip", home], check=True, capture_output=True)
    made = home / "bin" / "python"
    # The pip of this environment: to install one into each takes longer than the rest.
    pip = [sys.executable, "-m", "pip", "--python", str(made), "install", "--quiet"]
    # A session imports a fraction of the modules that would be compiled.
    command = [*pip, "--only-binary=:all:", "--no-compile", str(wheel), *pins]
    if not dependencies:
        command.append("--no-deps")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"pip install {' '.join(pins)} failed:\n{done.stderr}")
    return made


def run_session(
    python: Path, address: str, photo: Path, *, implementation: str | None = None
) -> dict[str, Any]:
    """Make calls of every shape from an environment; return what ran on which releases.

    Args:
        python: The environment's interpreter.
        address: Address of a real server.
        photo: A JPEG.
        implementation: protobuf's: "upb", in C, or "python"; None for its default.

    Raises:
        RuntimeError: A check failed; the message has its traceback.
    """
    # -I: nothing of this checkout is on the path. protobuf 4 itself is warned of Python's future.
    options = ["-I", "-W", "error", "-W", "ignore:Type google:DeprecationWarning"]
    command = [str(python), *options, str(SESSION), address, str(photo)]
    environment = dict(os.environ)
    if implementation is not None:
        environment[IMPLEMENTATION] = implementation
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=SESSION_S, env=environment
    )
    if done.returncode:
        raise RuntimeError(f"{python}: {done.stderr or done.stdout}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found
