"""Report of a benchmark as one self-contained HTML file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from . import plots
from .result import Bench
from .table import Grid, costs, error_lines, heading, latencies, number, stages


def write_html(bench: Bench, path: Path) -> None:
    """Write the report.

    Raises:
        OSError: The file cannot be written.
    """
    path.write_text(page(bench), encoding="utf-8")


def page(bench: Bench) -> str:
    """Return the report; all external text is escaped."""
    template = Template(resources.files(__package__).joinpath("report.html").read_text("utf-8"))
    about = "".join(f'<p class="about">{escape(line)}</p>\n' for line in heading(bench))
    warnings = "".join(f'<p class="warning">{escape(line)}</p>\n' for line in _warnings(bench))
    tables = ""
    if bench.runs:
        tables = _section("By load", _table(latencies(bench)))
        tables += _section("Time by stage", _table(stages(bench)))
        tables += _section("Resource usage", _table(costs(bench)))
        tables += "".join(f'<p class="note">{escape(line)}</p>\n' for line in error_lines(bench))
    drawn = "".join(
        f"<figure><h2>{escape(title)}</h2>\n{draw(bench)}</figure>\n"
        for title, draw in _plots(bench)
    )
    known = {"plan": dataclasses.asdict(bench.plan)}
    known |= {name: getattr(bench, name) for name in ("machine", "versions", "variant")}
    return template.substitute(
        title=escape(f"resnet50 bench: {bench.variant['name']}"),
        about=about,
        warnings=warnings,
        tiles="".join(
            f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
            for name, value in _tiles(bench)
        ),
        tables=tables,
        plots=drawn,
        facts=escape(json.dumps(known, indent=2)),
    )


def _plots(bench: Bench) -> Iterator[tuple[str, Callable[[Bench], str]]]:
    answered = any(run.answered for run in bench.runs)
    if len(bench.runs) > 1:
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
    """Yield the key figures: of a single load, or of the whole sweep."""
    if len(bench.runs) == 1:
        (run,) = bench.runs
        yield "answers/s", number(run.throughput_per_s)
        yield "answers in time/s", number(run.goodput_per_s)
        yield "p50 ms", number(run.latency_ms.p50)
        yield "p99 ms", number(run.latency_ms.p99)
        yield "failed calls", str(sum(run.errors.values()))
        yield "mean batch", number(run.mean_batch_size)
    elif bench.runs:
        yield "capacity, answers/s", number(bench.capacity_per_s)
        yield "most in time/s", number(max(run.goodput_per_s for run in bench.runs))
        for share in (0.5, 0.9):
            run = min(bench.runs, key=lambda one: abs((one.load.share or 0.0) - share))
            yield f"p99 ms at {run.load.share:.0%}", number(run.latency_ms.p99)


def _warnings(bench: Bench) -> Iterator[str]:
    for run in bench.runs:
        for warning in run.warnings:
            yield f"{run.load.describe(bench.plan.streams)}: {warning}"


def _section(title: str, content: str) -> str:
    return f"<h2>{escape(title)}</h2>\n{content}"


def _table(grid: Grid) -> str:
    head = "".join(f"<th>{escape(one)}</th>" for one in grid.headings)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n"
        for row in grid.rows
    )
    note = f'<p class="note">{escape(grid.note)}</p>\n' if grid.note else ""
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>\n{note}"
    )
