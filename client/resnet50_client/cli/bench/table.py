"""A benchmark as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from .plan import Plan
from .result import STAGES, Bench, Run
from .statistics import Summary

NOTHING = "-"


def tables(bench: Bench) -> RenderableType:
    """Return what was done, latencies by load, the server's own account, and what went wrong."""
    parts: list[RenderableType] = [Text(line) for line in heading(bench)]
    if bench.runs:
        parts += [_calls(bench.plan, bench.runs), _server(bench.plan, bench.runs)]
    parts += [Text(line) for line in remarks(bench)]
    return Group(*parts)


def show(console: Console, bench: Bench) -> None:
    """Print it."""
    console.print(tables(bench))


def heading(bench: Bench) -> list[str]:
    """Return in some lines what was measured, with what and where."""
    variant, machine = bench.variant, bench.machine
    untrained = "" if variant["trained"] else ", untrained"
    lines = [
        bench.plan.describe(),
        f"{variant['name']}@{variant['digest'][:12]} on {variant['engine']}, {variant['device']},"
        f" {variant['precision']}{untrained}",
        f"load made on {machine['cpu']}, {machine['cores']} cores; {bench.date}",
    ]
    if bench.capacity_per_s is not None:
        most = max(bench.probes, key=lambda one: one.throughput_per_s)
        lines.append(
            f"capacity {number(bench.capacity_per_s)}/s, found with"
            f" {most.load.concurrency} under way"
        )
    return lines


def remarks(bench: Bench) -> list[str]:
    """Return errors by code, dropped frames, costs and interruptions, a line each."""
    lines = []
    for run in bench.runs:
        name = run.load.describe(bench.plan.streams) if len(bench.runs) > 1 else ""
        prefix = f"{name}: " if name else ""
        if run.errors:
            lines.append(f"{prefix}errors: " + ", ".join(f"{n} {c}" for c, n in run.errors.items()))
        if run.interrupted:
            lines.append(f"{prefix}interrupted after {run.duration_s:.1f} s")
    return lines


def _calls(plan: Plan, runs: Iterable[Run]) -> Table:
    table = _table(
        "load",
        "calls/s",
        "answers/s",
        "in time/s",
        "p50 ms",
        "p90",
        "p99",
        "p99.9",
        "max",
        "failed",
    )
    frames = plan.delivery == "latest"
    if frames:
        table.add_column("dropped", justify="right")
    for run in runs:
        latency = run.latency_ms
        row = [
            run.load.describe(plan.streams),
            *map(number, (run.offered_per_s, run.throughput_per_s, run.goodput_per_s)),
            *map(number, (latency.p50, latency.p90, latency.p99, latency.p99_9, latency.max)),
            _share(sum(run.errors.values()), run.calls),
        ]
        table.add_row(*row, *([_share(run.dropped, run.calls)] if frames else []))
    return table


def _server(plan: Plan, runs: Iterable[Run]) -> Table:
    runs = list(runs)
    table = _table("load", "batch", *(f"{one} ms" for one in STAGES), "own CPU", "own lag")
    named = any(run.server for run in runs)
    if named:
        for heading_ in ("server CPU", "peak RSS"):
            table.add_column(heading_, justify="right", no_wrap=True)
    for run in runs:
        row = [
            run.load.describe(plan.streams),
            number(run.mean_batch_size),
            *(_pair(run.stages_ms[one]) for one in STAGES),
            f"{run.generator.cpu_share:.0%}",
            number(run.generator.lag_p99_ms),
        ]
        if named and run.server is not None:
            each = number(run.server.cpu_ms_per_answer)
            row += [f"{each} ms, {run.server.cores:.0%}", f"{run.server.peak_rss_mib:.0f} MiB"]
        table.add_row(*row)
    table.caption = (
        "decode to outside: p50 / p99 of the answers; own: CPU of the load generator, of one core, and"
        " how late it was, p99 ms"
    )
    table.caption_justify = "left"
    return table


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for position, one in enumerate(headings):
        table.add_column(one, justify="right" if position else "left", no_wrap=True)
    return table


def _pair(one: Summary) -> str:
    return f"{number(one.p50)} / {number(one.p99)}"


def _share(count: int, of: int) -> str:
    return f"{count / of:.1%}" if count else "0"


def number(value: float | None) -> str:
    """Return three significant digits, or a dash."""
    if value is None:
        return NOTHING
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
