"""The packages that the distribution and its extras need."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from .markdown import codes, table

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
# For work on this project.
_OF_DEVELOPERS = {"demo", "dev", "docs", "fuzz", "lock"}


def section() -> str:
    """Return a table of the extras and their packages."""
    project: dict[str, Any] = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    rows = [("none: the SDK", codes(project["dependencies"]))]
    for name, packages in extras.items():
        if name not in _OF_DEVELOPERS:
            rows.append((f"`[{name}]`", codes(packages)))
    return table(("extra", "packages"), rows)
