"""Report of a benchmark as one self-contained HTML file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from resnet50_cli.formatting import Grid, number
from resnet50_cli.html_report import render
from resnet50_cli.output import printable

from . import plots
from .figures import FIGURES
from .result import Bench
from .table import costs, error_lines, heading, latencies, spreads, stages


def write_html(bench: Bench, path: Path) -> None:
    """Write the report.

    Raises:
        OSError: The file cannot be written.
    """
    path.write_text(page(bench), encoding="utf-8")


def page(bench: Bench) -> str:
    """Return the report; all external text is escaped."""
    from markupsafe import Markup

    bench = printable(bench)
    parameters = {"plan": dataclasses.asdict(bench.plan)}
    parameters |= {name: getattr(bench, name) for name in ("machine", "versions", "variant")}
    return render(
        "resnet50_bench/report.html",
        title=f"resnet50 bench: {bench.variant['name']}",
        about=heading(bench),
        warnings=[
            f"{label}: {one}" for label, run in bench.labelled_runs() for one in run.warnings
        ],
        tiles=list(_tiles(bench)),
        tables=list(_tables(bench)),
        errors=error_lines(bench),
        plots=[(title, Markup(draw(bench))) for title, draw in _plots(bench)],
        parameters=json.dumps(parameters, indent=2),
    )


def _tables(bench: Bench) -> Iterator[tuple[str, Grid]]:
    if not bench.runs:
        return
    yield "By load", latencies(bench)
    repeated = spreads(bench)
    if repeated is not None:
        yield "Repeated runs", repeated
    yield "Time by stage", stages(bench)
    yield "Resource usage", costs(bench)


def _plots(bench: Bench) -> Iterator[tuple[str, Callable[[Bench], str]]]:
    answered = any(run.answered for run in bench.runs)
    if len(bench.loads()) > 1:
        if answered:
            yield "Latency against offered load", plots.latency_by_load
        yield "Throughput against offered load", plots.rates_by_load
    if answered:
        yield "Latency distribution", plots.latency_curve
        yield "Batch sizes", plots.batch_sizes
        yield "Mean latency by stage", plots.stages
    if any(run.calls for run in bench.runs):
        yield "Outcomes of calls", plots.outcomes


def _tiles(bench: Bench) -> Iterator[tuple[str, str]]:
    """Yield value and name of the key figures: of a single load, or of the whole sweep."""
    loads = bench.loads()
    if len(loads) == 1:
        for name in ("answers/s", "in time/s", "p50 ms", "p99 ms"):
            yield number(loads[0].median(FIGURES[name])), name
        yield str(loads[0].errors.total()), "failed calls"
        yield number(loads[0].median(FIGURES["batch"])), "mean batch"
    elif loads:
        yield number(bench.capacity_per_s), "capacity, answers/s"
        in_time = [one.median(FIGURES["in time/s"]) or 0.0 for one in loads]
        yield number(max(in_time)), "most in time/s"
        nearest = [
            min(loads, key=lambda one: abs((one.load.share or 0.0) - share)) for share in (0.5, 0.9)
        ]
        for one in nearest if nearest[0] is not nearest[1] else nearest[:1]:
            yield number(one.median(FIGURES["p99 ms"])), f"p99 ms at {one.load.share:.0%}"
