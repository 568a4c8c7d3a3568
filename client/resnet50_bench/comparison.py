"""Comparison of two benchmarks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table

from resnet50_cli.formatting import NOTHING

from .figures import FIGURES, LoadRuns, Spread
from .result import Bench
from .table import spread_text

# Fields of a plan that may differ; the loads of a sweep depend on the server's capacity.
_NOT_COMPARED = ("servers", "server_pid", "load", "repeat")


@dataclass(frozen=True)
class Row:
    """One metric of both benchmarks.

    Attributes:
        load: Description of the load, from the first benchmark.
        name: Name of the metric, with its unit.
        one: Spread in the first benchmark; None if unknown.
        other: Spread in the second benchmark; None if unknown.
        ratio: Median of `other` ÷ median of `one`; None if undefined.
        overlap: The ranges of repeated runs have a value in common, so that the difference may be
            chance; None if one benchmark has a single run.
    """

    load: str
    name: str
    one: Spread | None
    other: Spread | None
    ratio: float | None
    overlap: bool | None


def rows(one: Bench, other: Bench) -> list[Row]:
    """Return the metrics of runs with the same load; single runs are compared at any load."""
    found = []
    if one.capacity_per_s and other.capacity_per_s:
        left, right = (
            Spread(value, value, value) for value in (one.capacity_per_s, other.capacity_per_s)
        )
        found.append(_row("capacity", "answers/s", left, right, repeated=False))
    for ours, theirs in _pairs(one, other):
        load = ours.load.describe(one.plan.streams)
        repeated = min(len(ours.runs), len(theirs.runs)) > 1
        for name, figure in FIGURES.items():
            spreads = ours.spread(figure), theirs.spread(figure)
            if spreads != (None, None):
                found.append(_row(load, name, *spreads, repeated))
    return found


def differences(one: Bench, other: Bench) -> list[str]:
    """Return differences in environment, plan and loads, which limit comparability."""
    found = []
    for name in ("machine", "versions", "variant"):
        found += _changes(name, getattr(one, name), getattr(other, name))
    ours, theirs = (dataclasses.asdict(bench.plan) for bench in (one, other))
    for plan in (ours, theirs):
        for name in _NOT_COMPARED:
            del plan[name]
    found += _changes("plan", ours, theirs)
    loads, counterparts = ([_identity(each) for each in bench.loads()] for bench in (one, other))
    if loads != counterparts:
        shown = (
            ", ".join(each.load.describe(bench.plan.streams) for each in bench.loads())
            for bench in (one, other)
        )
        found.append("loads: " + " against ".join(shown))
    for side, bench in (("A", one), ("B", other)):
        for label, run in bench.labelled_runs():
            found += [f"{side}, {label}: {warning}" for warning in run.warnings]
            if run.interrupted:
                found.append(f"{side}, {label}: was interrupted after {run.duration_s:.1f} s")
    return found


def table(found: Sequence[Row]) -> Table:
    """Return the metrics as a table."""
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for heading in ("load", "figure"):
        shown.add_column(heading, no_wrap=True)
    for heading in ("A", "B", "B ÷ A"):
        shown.add_column(heading, justify="right", no_wrap=True)
    before = ""
    for row in found:
        if before and row.load != before:
            shown.add_section()
        ratio = f"{row.ratio:.2f}" if row.ratio is not None else NOTHING
        if row.ratio is not None and row.overlap:
            ratio = f"~{ratio}"
        load = row.load if row.load != before else ""
        shown.add_row(load, row.name, spread_text(row.one), spread_text(row.other), ratio)
        before = row.load
    shown.caption = "medians (lowest to highest); ~: the ranges overlap, it may be chance"
    if not any(row.overlap is not None for row in found):
        shown.caption = (
            "single measurements: --repeat them before trusting differences of a few percent"
        )
    shown.caption_justify = "left"
    return shown


def _pairs(one: Bench, other: Bench) -> Iterator[tuple[LoadRuns, LoadRuns]]:
    ours, theirs = one.loads(), other.loads()
    if len(ours) == len(theirs) == 1:
        yield ours[0], theirs[0]
        return
    counterparts = {_identity(runs): runs for runs in theirs}
    for runs in ours:
        if _identity(runs) in counterparts:
            yield runs, counterparts[_identity(runs)]


def _identity(runs: LoadRuns) -> tuple[Any, ...]:
    """Return a key that equal loads share: the fraction of the capacity, or the load itself."""
    load = runs.load
    if load.share is not None:
        return ("share", load.share)
    return (load.concurrency, load.rate_per_s, load.fps)


def _changes(section: str, one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    names = dict.fromkeys((*one, *other))
    return [
        f"{section}, {name}: {one.get(name)} against {other.get(name)}"
        for name in names
        if one.get(name) != other.get(name)
    ]


def _row(load: str, name: str, one: Spread | None, other: Spread | None, repeated: bool) -> Row:
    if one is None or other is None:
        return Row(load, name, one, other, None, None)
    ratio = other.median / one.median if one.median else None
    return Row(load, name, one, other, ratio, one.overlaps(other) if repeated else None)
