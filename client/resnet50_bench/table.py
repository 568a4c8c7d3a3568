"""Results of a benchmark as tables, for a terminal and for the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .result import STAGES, Bench, Run
from .statistics import Summary

NOTHING = "-"


@dataclass(frozen=True)
class Grid:
    """A table for any output; the first column is text, the others are numbers.

    Attributes:
        headings: Column headings.
        rows: One row per run.
        note: Explanation of the headings; "" for none.
    """

    headings: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""


def tables(bench: Bench) -> RenderableType:
    """Return heading, latencies, stages, resource usage and errors."""
    parts: list[RenderableType] = [Text(line) for line in heading(bench)]
    grids = [latencies(bench), stages(bench), costs(bench)]
    if len(bench.runs) == 1:
        parts += [_upright(grids), *(Text(grid.note, "dim") for grid in grids if grid.note)]
    elif bench.runs:
        parts += map(_wide, grids)
    parts += [Text(line) for line in error_lines(bench)]
    return Group(*parts)


def heading(bench: Bench) -> list[str]:
    """Return lines about the calls, the variant and the load generator's machine."""
    variant, machine = bench.variant, bench.machine
    untrained = "" if variant["trained"] else ", untrained"
    lines = [
        bench.plan.describe(),
        f"{variant['name']}@{variant['digest'][:12]} on {variant['engine']}, {variant['device']},"
        f" {variant['precision']}{untrained}",
        f"load generated on {machine['cpu']}, {machine['cores']} cores; {bench.date}",
    ]
    if bench.capacity_per_s:
        most = max(bench.probes, key=lambda one: one.throughput_per_s)
        lines.append(
            f"capacity {number(bench.capacity_per_s)} answers/s, measured with"
            f" {most.load.concurrency} calls in flight"
        )
    return lines


def latencies(bench: Bench) -> Grid:
    """Return rates, latencies and the fraction of failed calls, by load."""
    drops = bench.plan.delivery == "latest"
    headings: tuple[str, ...] = ("load", "calls/s", "answers/s", "in time/s")
    headings += ("p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "max ms", "failed")
    rows = []
    for run in bench.runs:
        latency = run.latency_ms
        figures = (
            *(run.offered_per_s, run.throughput_per_s, run.goodput_per_s),
            *(latency.p50, latency.p90, latency.p99, latency.p99_9, latency.max),
        )
        shares = (_share(sum(run.errors.values()), run.calls), _share(run.dropped, run.calls))
        rows.append((_load(bench, run), *map(number, figures), *shares[: 1 + drops]))
    return Grid((*headings, "dropped") if drops else headings, rows)


def stages(bench: Bench) -> Grid:
    """Return batch size and times by stage, as reported by the server, by load."""
    rows = [
        (
            _load(bench, run),
            number(run.mean_batch_size),
            *(_pair(run.stages_ms[one]) for one in STAGES),
        )
        for run in bench.runs
    ]
    return Grid(
        ("load", "batch", *(f"{one} ms" for one in STAGES)),
        rows,
        "batch: mean size; decode to server: times reported by the server, outside: the rest of the"
        " latency; p50 / p99",
    )


def costs(bench: Bench) -> Grid:
    """Return the resource usage of load generator and server, by load."""
    headings: tuple[str, ...] = ("load", "own CPU", "own lag ms")
    note = "own: the load generator's CPU in percent of a core, and its lag at p99"
    named = any(run.server for run in bench.runs)
    if named:
        headings += ("server CPU", "ms per answer", "peak MiB")
        note += "; server: CPU in percent of a core, CPU time per answer, resident memory"
    rows = []
    for run in bench.runs:
        row = [_load(bench, run), f"{run.generator.cpu_share:.0%}"]
        row.append(number(run.generator.lag_p99_ms))
        if run.server is not None:
            row += [f"{run.server.cores:.0%}", number(run.server.cpu_ms_per_answer)]
            row.append(f"{run.server.peak_rss_mib:.0f}")
        elif named:
            row += [NOTHING] * 3
        rows.append(tuple(row))
    return Grid(headings, rows, note)


def error_lines(bench: Bench) -> list[str]:
    """Return a line for each run's errors by code, and for each interruption."""
    lines = []
    for run in bench.runs or bench.probes:
        prefix = f"{_load(bench, run)}: "
        if run.errors:
            counts = ", ".join(f"{count} {code}" for code, count in run.errors.items())
            lines.append(f"{prefix}errors: {counts}")
        if run.interrupted:
            lines.append(f"{prefix}interrupted after {run.duration_s:.1f} s")
    return lines


def number(value: float | None) -> str:
    """Format three significant digits, or a dash."""
    if value is None:
        return NOTHING
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _load(bench: Bench, run: Run) -> str:
    return run.load.describe(bench.plan.streams)


def _pair(one: Summary) -> str:
    return f"{number(one.p50)} / {number(one.p99)}"


def _share(count: int, of: int) -> str:
    return f"{count / of:.1%}" if count else "0"


def _wide(grid: Grid) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for position, one in enumerate(grid.headings):
        table.add_column(one, justify="right" if position else "left", no_wrap=True)
    for row in grid.rows:
        table.add_row(*row)
    table.caption, table.caption_justify = grid.note or None, "left"
    return table


def _upright(grids: Sequence[Grid]) -> Table:
    """Return the only row of each grid as lines, to fit narrow terminals."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    load = grids[0].rows[0][0]
    table.add_row("load", load)
    for grid in grids:
        table.add_section()
        for name, value in zip(grid.headings[1:], grid.rows[0][1:], strict=True):
            table.add_row(name, value)
    return table
