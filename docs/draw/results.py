"""Figures of docs/benchmarks/results-amx.md, a run of `make bench`."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "benchmarks" / "results-amx.md"


def section(title: str) -> str:
    """Return the section of the page whose heading begins with `title`."""
    found = PAGE.read_text(encoding="utf-8").partition(f"\n### {title}")[2]
    if not found:
        raise ValueError(f"docs/benchmarks/results-amx.md has no section {title!r}")
    return found.partition("\n### ")[0]


def date() -> str:
    """Return the date of the run."""
    found: list[str] = re.findall(
        r"; (\d{4}-\d\d-\d\d)\. Load generator", PAGE.read_text(encoding="utf-8")
    )
    return found[0]


def stages(title: str, load: str) -> dict[str, float]:
    """Return medians in ms of a request's stages: decode, queue, compute, server, outside.

    Args:
        title: Beginning of a section's heading.
        load: The row's name.
    """
    row = re.search(
        rf"^\| {load} \| [\d.]+ ((?:\| [\d.]+ / (?:[\d.]+|-) ){{5}})\|$", section(title), re.M
    )
    if row is None:
        raise ValueError(f"docs/benchmarks/results-amx.md has no stages of {load!r}")
    medians = [float(median) for median in re.findall(r"([\d.]+) /", row[1])]
    return dict(zip(("decode", "queue", "compute", "server", "outside"), medians, strict=True))


def engines() -> list[tuple[str, str, float, float]]:
    """Return precision, engine, and images/s at batch 1 and at batch 8, of each engine."""
    row = r"engines  (\S+) (.+?) +([\d.]+) and +([\d.]+) images/s at batch 1 and 8"
    return [
        (precision, engine, float(single), float(eight))
        for precision, engine, single, eight in re.findall(row, section("python -m benchmarks.cpu"))
    ]
