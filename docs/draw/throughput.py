"""Throughput of each engine and precision, without a server."""

from __future__ import annotations

from . import results
from .svg import Picture

TONES = {"fp32": "blue", "bf16": "violet", "int8": "orange"}
NAMES = {"torch as it comes": "PyTorch as it comes"}


def draw() -> str:
    """Return the picture."""
    engines = sorted(results.engines(), key=lambda one: (list(TONES).index(one[0]), one[3]))
    row, top, left, wide = 27, 54, 180, 390
    picture = Picture(
        640, top + row * len(engines) + 34, "Images a second by engine and precision, batches of 8"
    )
    most = max(eight for *_, eight in engines)
    picture.text(12, 24, "Images/s, batches of 8 (bar) and of 1 (mark)", size=15, bold=True)
    picture.text(12, 42, "Engine alone, two cores of a Xeon with AMX", tone="muted")
    for number, (precision, engine, single, eight) in enumerate(engines):
        y = top + row * number
        picture.text(12, y + 16, precision, tone=TONES[precision], bold=True)
        picture.text(56, y + 16, NAMES.get(engine, engine), size=12)
        picture.bar(left, y + 3, eight / most * wide, row - 8, tone=TONES[precision])
        x = left + single / most * wide
        picture.line([(x, y + 1), (x, y + row - 3)], tone="ink", width=2)
        picture.text(left + max(eight, single) / most * wide + 8, y + 17, f"{eight:.0f}")
    y = top + row * len(engines) + 20
    picture.text(
        12, y, f"python -m benchmarks.cpu engines, {results.date()}", size=12, tone="muted"
    )
    return picture.svg()
