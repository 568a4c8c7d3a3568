"""The CPythons of a machine: on the path, of pyenv, and of uv."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

# From the oldest that pyproject allows.
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")


def interpreter(version: str) -> str | None:
    """Return the path of a CPython, e.g. "3.10"; None if the machine has none."""
    return next((found for found in _candidates(version) if _version(found) == version), None)


def first_interpreter(versions: Sequence[str]) -> tuple[str, str]:
    """Return path and version of the first of several CPythons that the machine has.

    Raises:
        LookupError: It has none of them.
    """
    for version in versions:
        if found := interpreter(version):
            return found, version
    raise LookupError(
        f"none of CPython {', '.join(versions)} is on the path, in pyenv or in uv; install one"
    )


def _candidates(version: str) -> Iterator[str]:
    yield sys.executable
    if found := shutil.which(f"python{version}"):
        yield found
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    yield from map(str, sorted(pyenv.glob(f"{version}.*/bin/python")))
    uv = Path.home() / ".local" / "share" / "uv" / "python"
    yield from map(str, sorted(uv.glob(f"cpython-{version}.*/bin/python3")))


def _version(python: str) -> str:
    """Return the version of an interpreter; "" if it does not run, as a shim without a version."""
    program = "import sys; print(sys.implementation.name, '%d.%d' % sys.version_info[:2])"
    done = subprocess.run([python, "-I", "-c", program], capture_output=True, text=True)
    name, _, version = done.stdout.strip().partition(" ")
    return version if name == "cpython" else ""
