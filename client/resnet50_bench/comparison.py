"""Comparison of two benchmarks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich import box
from rich.table import Table

from .result import STAGES, Bench, Run
from .table import number

# Fields of a plan that may differ; the loads of a sweep depend on the server's capacity.
_NOT_COMPARED = ("servers", "server_pid", "load")


@dataclass(frozen=True)
class Row:
    """One metric of both benchmarks.

    Attributes:
        load: Description of the load, from the first benchmark.
        name: Name of the metric, with its unit.
        one: Value in the first benchmark; None if unknown.
        other: Value in the second benchmark; None if unknown.
        ratio: `other` ÷ `one`; None if undefined.
    """

    load: str
    name: str
    one: float | None
    other: float | None
    ratio: float | None


def rows(one: Bench, other: Bench) -> list[Row]:
    """Return the metrics of runs with the same load; single runs are compared at any load."""
    found = []
    if one.capacity_per_s and other.capacity_per_s:
        found.append(_row("capacity", "answers/s", one.capacity_per_s, other.capacity_per_s))
    for run, counterpart in _pairs(one, other):
        load = run.load.describe(one.plan.streams)
        for name, figure in _FIGURES.items():
            left, right = figure(run), figure(counterpart)
            if left is not None or right is not None:
                found.append(_row(load, name, left, right))
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
    loads, counterparts = ([_identity(run) for run in bench.runs] for bench in (one, other))
    if loads != counterparts:
        shown = (
            ", ".join(run.load.describe(bench.plan.streams) for run in bench.runs)
            for bench in (one, other)
        )
        found.append("loads: " + " against ".join(shown))
    for label, bench in (("A", one), ("B", other)):
        for run in bench.runs:
            load = run.load.describe(bench.plan.streams)
            found += [f"{label}, {load}: {warning}" for warning in run.warnings]
            if run.interrupted:
                found.append(f"{label}, {load}: was interrupted after {run.duration_s:.1f} s")
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
        ratio = f"{row.ratio:.2f}" if row.ratio is not None else "-"
        load = row.load if row.load != before else ""
        shown.add_row(load, row.name, number(row.one), number(row.other), ratio)
        before = row.load
    shown.caption = "single measurements: repeat them before trusting differences of a few percent"
    shown.caption_justify = "left"
    return shown


def _pairs(one: Bench, other: Bench) -> Iterator[tuple[Run, Run]]:
    if len(one.runs) == len(other.runs) == 1:
        yield one.runs[0], other.runs[0]
        return
    counterparts = {_identity(run): run for run in other.runs}
    for run in one.runs:
        if _identity(run) in counterparts:
            yield run, counterparts[_identity(run)]


def _identity(run: Run) -> tuple[Any, ...]:
    """Return a key that equal loads share: the fraction of the capacity, or the load itself."""
    load = run.load
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


def _row(load: str, name: str, one: float | None, other: float | None) -> Row:
    ratio = other / one if one and other is not None else None
    return Row(load, name, one, other, ratio)


def _stage_p50(stage: str, run: Run) -> float | None:
    return run.stages_ms[stage].p50


_FIGURES: dict[str, Callable[[Run], float | None]] = {
    "calls/s": lambda run: run.offered_per_s,
    "answers/s": lambda run: run.throughput_per_s,
    "in time/s": lambda run: run.goodput_per_s,
    "p50 ms": lambda run: run.latency_ms.p50,
    "p90 ms": lambda run: run.latency_ms.p90,
    "p99 ms": lambda run: run.latency_ms.p99,
    "p99.9 ms": lambda run: run.latency_ms.p99_9,
    "max ms": lambda run: run.latency_ms.max,
    "failed": lambda run: float(sum(run.errors.values())),
    "dropped": lambda run: float(run.dropped),
    "batch": lambda run: run.mean_batch_size,
    **{f"{one} p50 ms": partial(_stage_p50, one) for one in STAGES},
    "generator CPU, cores": lambda run: run.generator.cpu_share,
    "server CPU ms": lambda run: run.server.cpu_ms_per_answer if run.server else None,
    "server cores": lambda run: run.server.cores if run.server else None,
    "peak RSS MiB": lambda run: run.server.peak_rss_mib if run.server else None,
}
