"""Virtual environments of the peers: one each under .cache/compare, none of it in ours.

PyTorch is too large to install once per peer (5 GB with CUDA). Each environment sees the files of
ours, read-only and by links, so that all peers compute with the same build. Packages that a peer
installs are found first.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "compare"
# Distributions that every peer needs, and their own requirements.
SHARED = ("torch", "torchvision", "numpy", "pillow")


class InstallError(Exception):
    """A peer cannot be installed here; the message is pip's."""


def closure(names: tuple[str, ...]) -> set[str]:
    """Return the installed distributions that `names` need, themselves included."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            requires = distribution(name).requires or []
        except PackageNotFoundError:  # of another platform
            continue
        found.add(name)
        for text in requires:
            one = Requirement(text)
            if one.marker is None or one.marker.evaluate({"extra": ""}):
                waiting.append(re.sub(r"[-_.]+", "-", one.name).lower())
            for extra in one.extras:
                waiting += _of_extra(one.name, extra)
    return found


def _of_extra(name: str, extra: str) -> list[str]:
    try:
        requires = distribution(name).requires or []
    except PackageNotFoundError:
        return []
    each = [Requirement(text) for text in requires]
    return [one.name for one in each if one.marker and one.marker.evaluate({"extra": extra})]


def link_shared(folder: Path = CACHE / "torch") -> Path:
    """Return a folder of links to the files of `SHARED` in this environment."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in closure(SHARED):
        files = distribution(name).files or []
        for top in {file.parts[0] for file in files if file.parts[0] not in ("..", "__pycache__")}:
            link = folder / top
            if not link.is_symlink():
                link.symlink_to(Path(str(distribution(name).locate_file(top))))
    return folder


def install(packages: tuple[str, ...]) -> Path:
    """Install packages into their environment, unless they are there; return its Python.

    Raises:
        InstallError: pip failed.
    """
    folder = CACHE / _names(packages)[0]
    python, done = folder / "bin" / "python", folder / "installed"
    if done.exists() and done.read_text() == "\n".join(packages):
        return python
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "shared.pth").write_text(f"{link_shared()}\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    ran = subprocess.run([*pip, *packages], stderr=subprocess.PIPE, text=True)
    if ran.returncode:
        errors = [line for line in ran.stderr.splitlines() if line.startswith("ERROR")]
        raise InstallError((errors or [f"pip exited with {ran.returncode}"])[-1])
    done.write_text("\n".join(packages))
    return python


def versions(python: Path, packages: tuple[str, ...]) -> str:
    """Return the installed versions of packages, without extras, as "name 1.2, name 3.4"."""
    names = _names(packages)
    code = "import sys; from importlib.metadata import version\nprint(*map(version, sys.argv[1:]))"
    ran = subprocess.run(
        [str(python), "-c", code, *names], stdout=subprocess.PIPE, text=True, check=True
    )
    return ", ".join(
        f"{name} {number}" for name, number in zip(names, ran.stdout.split(), strict=True)
    )


def _names(packages: tuple[str, ...]) -> list[str]:
    return [Requirement(package).name for package in packages]
