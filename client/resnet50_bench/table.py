"""Results of a benchmark as tables, for a terminal and for the report."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from resnet50_cli.formatting import NOTHING, Grid, count, number, percent, terminal_table

from .figures import FIGURES, LoadRuns, Spread
from .result import Bench
from .run import STAGES


def tables(bench: Bench) -> RenderableType:
    """Return heading, latencies, stages, resource usage and errors."""
    parts: list[RenderableType] = [Text(line) for line in heading(bench)]
    shown = grids(bench)
    if len(bench.loads()) == 1:
        parts += [_upright(shown), *(Text(grid.note, "dim") for grid in shown if grid.note)]
    elif bench.runs:
        parts += map(terminal_table, shown)
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
        capacity = bench.capacity_per_s
        measured = min(bench.probes, key=lambda one: abs(one.throughput_per_s - capacity))
        lines.append(
            f"capacity {number(capacity)} answers/s, measured with"
            f" {measured.load.concurrency} calls in flight"
        )
    return lines


def latencies(bench: Bench) -> Grid:
    """Return rates, latencies and the fraction of failed calls, by load."""
    drops = bench.plan.delivery == "latest"
    names = (
        "calls/s",
        "answers/s",
        "in time/s",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "p99.9 ms",
        "max ms",
    )
    rows = []
    for one in bench.loads():
        figures = (number(one.median(FIGURES[name])) for name in names)
        shares = (_share(one.errors.total(), one.calls), _share(one.dropped, one.calls))
        rows.append((_load(bench, one), *figures, *shares[: 1 + drops]))
    headings = ("load", *names, "failed")
    return Grid((*headings, "dropped") if drops else headings, rows)


def stages(bench: Bench) -> Grid:
    """Return batch size and times by stage, as reported by the server, by load."""
    rows = [
        (
            _load(bench, one),
            number(one.median(FIGURES["batch"])),
            *(_stage(one, name) for name in STAGES),
        )
        for one in bench.loads()
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
    measured = any(run.server for run in bench.runs)
    if measured:
        headings += ("server CPU", "ms per answer", "peak MiB")
        note += "; server: CPU in percent of a core, CPU time per answer, resident memory"
    rows = []
    for one in bench.loads():
        row = [
            _load(bench, one),
            percent(one.median(FIGURES["generator CPU, cores"])),
            number(one.median(lambda run: run.generator.lag_p99_ms)),
        ]
        if measured:
            row += [
                percent(one.median(FIGURES["server cores"])),
                number(one.median(FIGURES["server CPU ms"])),
                count(one.median(FIGURES["peak RSS MiB"])),
            ]
        rows.append(tuple(row))
    return Grid(headings, rows, note)


def spreads(bench: Bench) -> Grid | None:
    """Return median, lowest and highest of the repeated runs, by load; None without repetition."""
    figures = {name: FIGURES[name] for name in ("answers/s", "in time/s", "p50 ms", "p99 ms")}
    if any(run.server for run in bench.runs):
        figures["ms per answer"] = FIGURES["server CPU ms"]
    rows = [
        (
            _load(bench, one),
            *(spread_text(one.spread(figure)) for figure in figures.values()),
            str(len(one.runs)),
        )
        for one in bench.loads()
        if len(one.runs) > 1
    ]
    note = "runs: median (lowest to highest); the figures without a range are medians"
    return Grid(("load", *figures, "runs"), rows, note) if rows else None


def grids(bench: Bench) -> list[Grid]:
    """Return all tables."""
    repeated = spreads(bench)
    found = [latencies(bench), stages(bench), costs(bench)]
    return found if repeated is None else [*found, repeated]


def spread_text(spread: Spread | None) -> str:
    """Format median and range of a figure; a single value has no range."""
    if spread is None:
        return NOTHING
    if spread.lowest == spread.highest:
        return number(spread.median)
    return f"{number(spread.median)} ({number(spread.lowest)} to {number(spread.highest)})"


def error_lines(bench: Bench) -> list[str]:
    """Return a line for each run's errors by code, and for each interruption."""
    lines = []
    for label, run in bench.labelled_runs():
        if run.errors:
            counts = ", ".join(f"{count} {code}" for code, count in run.errors.items())
            lines.append(f"{label}: errors: {counts}")
        if run.interrupted:
            lines.append(f"{label}: interrupted after {run.duration_s:.1f} s")
    return lines


def _load(bench: Bench, one: LoadRuns) -> str:
    return one.load.describe(bench.plan.streams)


def _stage(one: LoadRuns, name: str) -> str:
    p50 = one.median(lambda run: run.stages_ms[name].p50)
    p99 = one.median(lambda run: run.stages_ms[name].p99)
    return f"{number(p50)} / {number(p99)}"


def _share(part: int, of: int) -> str:
    return f"{part / of:.1%}" if part else "0"


def _upright(grids: Sequence[Grid]) -> Table:
    """Return the only row of each grid as lines, to fit narrow terminals.

    A figure that several grids have is shown once, where it is first, as the last grid has it.
    """
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    cells: dict[str, str] = {}
    for grid in grids:
        cells |= zip(grid.headings, grid.rows[0], strict=True)
    for name, cell in cells.items():
        table.add_row(name, cell)
    return table
