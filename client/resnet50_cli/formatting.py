"""Figures and tables as text; a dash is an unknown value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

NOTHING = "-"


def number(value: float | None) -> str:
    """Format three significant digits."""
    if value is None:
        return NOTHING
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def rate(per_s: float | None) -> str:
    """Format a rate; a small one is distinct from 0."""
    if per_s is None:
        return NOTHING
    if per_s == 0:
        return "0"
    return "<0.01" if per_s < 0.005 else number(per_s)


def count(value: float | None) -> str:
    """Format a count."""
    return NOTHING if value is None else f"{value:.0f}"


def percent(ratio: float | None) -> str:
    """Format a ratio in whole percent."""
    return NOTHING if ratio is None else f"{ratio:.0%}"


def size(value: float | None) -> str:
    """Format a number of bytes."""
    if value is None:
        return NOTHING
    if value < 2**20:
        return f"{value / 2**10:.0f} KiB"
    return f"{value / 2**20:.0f} MiB" if value < 10 * 2**30 else f"{value / 2**30:.0f} GiB"


def duration(seconds: float | None) -> str:
    """Format a duration in its two largest units: "45s", "3h12m"."""
    if seconds is None:
        return NOTHING
    whole = int(seconds)
    for long, short, unit_s, part_s in (("d", "h", 86400, 3600), ("h", "m", 3600, 60)):
        if whole >= unit_s:
            return f"{whole // unit_s}{long}{whole % unit_s // part_s:02}{short}"
    return f"{whole // 60}m{whole % 60:02}s" if whole >= 60 else f"{whole}s"


@dataclass(frozen=True)
class Grid:
    """A table for any output: terminal or report.

    Attributes:
        headings: Column headings.
        rows: Rows of cells.
        note: Explanation of the headings; "" for none.
        texts: Number of columns with text, from the left; the others are numbers.
    """

    headings: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""
    texts: int = 1


def terminal_table(grid: Grid) -> Table:
    """Return a grid for a terminal; only columns with text wrap, the first one never."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for position, name in enumerate(grid.headings):
        is_number = position >= grid.texts
        table.add_column(
            name,
            justify="right" if is_number else "left",
            no_wrap=is_number or grid.texts == 1,
        )
    for row in grid.rows:
        table.add_row(*row)
    table.caption, table.caption_justify = grid.note or None, "left"
    return table
