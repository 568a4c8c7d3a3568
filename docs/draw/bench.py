"""The tables of `resnet50 bench --sweep`, rendered by its own code from a run's file."""

from __future__ import annotations

from pathlib import Path

from resnet50_bench.result import Bench
from resnet50_bench.table import tables

from . import terminal

DATA = Path(__file__).resolve().parents[1] / "benchmarks" / "data" / "bench.json"


def draw() -> str:
    """Return the picture."""
    return terminal.draw(
        tables(Bench.load(DATA)), "The tables that resnet50 bench --sweep prints", columns=98
    )
