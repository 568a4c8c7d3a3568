from __future__ import annotations

from pathlib import Path

from .result import Bench


def write_html(bench: Bench, path: Path) -> None:
    raise NotImplementedError
