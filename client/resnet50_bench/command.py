"""The command `bench`: generate load on a server and report its performance."""

from __future__ import annotations

import dataclasses
import json
from contextlib import ExitStack
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live as Screen

from resnet50_cli.connection_options import Servers, with_servers
from resnet50_cli.extras import require
from resnet50_cli.options import DEFAULT_CONCURRENCY, AsJson, Delivery, VariantName, check_output
from resnet50_cli.output import (
    INTERRUPTED,
    SOME_FAILED,
    print_json,
    printable,
    reporting_errors,
    show,
    stderr,
    stop_signals,
    warn,
)
from resnet50_client._config import DEFAULT_TIMEOUT_S

from . import comparison
from .benchmark import bench as run_bench
from .plan import Load, Plan
from .progress import ProgressView
from .report import write_html
from .result import Bench
from .sweep import shares
from .table import tables

EPILOG = (
    "Exit codes: 0 success, even if some calls failed; 1 no call succeeded, or the server rejected"
    " the variant; 2 wrong usage; 3 no server reachable; 130 interrupted (results so far are in the"
    " output)."
)
LOAD, CALLS, TIME, OUTPUT = "Load (one of these)", "Calls", "Duration", "Output"
# Widths of a sweep's tables, with single runs and with the ranges of repeated ones.
TABLE_COLUMNS, SPREAD_COLUMNS = 100, 130


class Shape(str, Enum):
    """Values of `Plan.shape`."""

    unary = "unary"
    upload = "upload"
    stream = "stream"


class Operation(str, Enum):
    """Values of `Plan.operation`."""

    classify = "classify"
    embed = "embed"


@with_servers
def bench(
    servers: Servers,
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILES...",
            help="Image files or folders, sent round-robin. Default: generated JPEG images of"
            " 500 x 375 pixels and about 110 KB.",
        ),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            "--concurrency",
            min=1,
            rich_help_panel=LOAD,
            help="Closed loop: a constant number of calls in flight. Measures the server's"
            f" throughput, not users' latency. Default: {DEFAULT_CONCURRENCY}.",
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            "--rate",
            min=0.001,
            rich_help_panel=LOAD,
            help="Open loop: calls per second at random times (Poisson), independent of the"
            " server. Latency counts from a call's intended time.",
        ),
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(
            "--fps",
            min=0.001,
            rich_help_panel=LOAD,
            help="Cameras: each of --streams sends this many frames per second, independent of the"
            " server.",
        ),
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(
            "--sweep",
            metavar="10%..130%[xN]",
            rich_help_panel=LOAD,
            help="Measure the capacity with closed loops, then run N (default: 7) open loops at"
            " fractions of it.",
        ),
    ] = None,
    shape: Annotated[
        Shape | None,
        typer.Option(
            "--shape",
            rich_help_panel=CALLS,
            help="One call per image, an upload in chunks, or frames on streams. Default: unary, or"
            " stream with --fps, --streams or --delivery.",
        ),
    ] = None,
    operation: Annotated[
        Operation, typer.Option("--call", rich_help_panel=CALLS, help="The RPC to call.")
    ] = Operation.classify,
    streams: Annotated[
        int | None,
        typer.Option(
            "--streams",
            min=1,
            rich_help_panel=CALLS,
            help="Number of streams. Default: one per process.",
        ),
    ] = None,
    delivery: Annotated[
        Delivery | None,
        typer.Option(
            "--delivery",
            rich_help_panel=CALLS,
            help="Delivery of frames. ordered: compute every frame; latest: a newer frame replaces"
            " a pending one, which counts as dropped. Default: ordered.",
        ),
    ] = None,
    variant: VariantName = None,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw",
            rich_help_panel=CALLS,
            help="Send RGB pixels of the model's input size, so that no decoding is needed.",
        ),
    ] = False,
    channels: Annotated[
        int,
        typer.Option(
            "--channels",
            min=1,
            rich_help_panel=CALLS,
            help="Connections to each server, of each process.",
        ),
    ] = 1,
    processes: Annotated[
        int,
        typer.Option(
            "--processes",
            min=1,
            rich_help_panel=CALLS,
            help="Make the calls from this many processes, if one is too slow; each makes a part of"
            " them.",
        ),
    ] = 1,
    timeout_s: Annotated[
        float | None,
        typer.Option(
            "--timeout-s",
            min=0.001,
            rich_help_panel=CALLS,
            help="Timeout of a call in seconds from its intended time; later responses are not in"
            f" time. Default: {DEFAULT_TIMEOUT_S:g}.",
        ),
    ] = None,
    duration_s: Annotated[
        float,
        typer.Option(
            "--duration-s",
            min=0.01,
            rich_help_panel=TIME,
            help="Measured duration of each load in seconds.",
        ),
    ] = 10.0,
    warm_up_s: Annotated[
        float,
        typer.Option(
            "--warm-up-s",
            min=0,
            rich_help_panel=TIME,
            help="Warm-up before that in seconds, not measured.",
        ),
    ] = 2.0,
    requests: Annotated[
        int | None,
        typer.Option(
            "--requests", min=1, rich_help_panel=TIME, help="Stop after this many measured calls."
        ),
    ] = None,
    repeat: Annotated[
        int,
        typer.Option(
            "--repeat",
            min=1,
            rich_help_panel=TIME,
            help="Run each load this many times; shows medians, and the lowest and highest values.",
        ),
    ] = 1,
    seed: Annotated[
        int,
        typer.Option(
            "--seed", min=0, rich_help_panel=TIME, help="Random seed of arrivals and images."
        ),
    ] = 0,
    server_pid: Annotated[
        int | None,
        typer.Option(
            "--server-pid",
            min=1,
            rich_help_panel=OUTPUT,
            help="Also measure CPU and memory of this local process and its descendants.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            rich_help_panel=OUTPUT,
            help="Write all results to a .json file, for --compare.",
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", rich_help_panel=OUTPUT, help="Write a report with plots to an .html file."
        ),
    ] = None,
    compared: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            "--compare",
            metavar="A.json B.json",
            rich_help_panel=OUTPUT,
            help="Compare two files of --out, with ratios B ÷ A, instead of generating load.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Benchmark a server: throughput, latency and time by stage.

    Calls are never retried. Ctrl-C ends the load; the results so far are reported.
    """
    with reporting_errors(), ExitStack() as stack:
        if compared is not None:
            _compare(Bench.load(compared[0]), Bench.load(compared[1]), as_json)
            return
        check_output(out, "--out", ".json")
        check_output(html, "--html", ".html")
        framed = fps is not None or streams is not None or delivery is not None
        shape = shape or (Shape.stream if framed else Shape.unary)
        require("bench", "bench", "psutil", *(() if html is None else ("matplotlib", "jinja2")))
        if raw or not files:
            require("bench", "bench", "PIL")
        profile = servers.profile(timeout_s)
        assert profile.server is not None and profile.timeout_s is not None
        plan = Plan(
            load=_load(concurrency, rate, fps, sweep, processes),
            servers=profile.server,
            shape=shape.value,
            operation=operation.value,
            variant=profile.variant if variant is None else variant,
            duration_s=duration_s,
            warm_up_s=warm_up_s,
            requests=requests,
            timeout_s=profile.timeout_s,
            channels=channels,
            streams=streams or (processes if shape is Shape.stream else 1),
            delivery=(delivery or Delivery.ordered).value,
            files=tuple(files or ()),
            raw=raw,
            seed=seed,
            server_pid=server_pid,
            processes=processes,
            repeat=repeat,
        )
        steps = shares(sweep) if sweep is not None else ()
        stop = stack.enter_context(stop_signals())
        live = ProgressView()
        with ExitStack() as shown:
            if stderr.is_terminal:
                screen = Screen(live, console=stderr, transient=True, redirect_stdout=False)
                shown.enter_context(screen)
            found = run_bench(plan, steps, stop, live.watch, profile)
        _report(found, out, html, as_json)
    if stop.is_set():
        raise typer.Exit(INTERRUPTED)
    if not any(run.answered for run in found.runs):
        if any(run.calls for run in found.runs):
            warn("no call succeeded")
        else:
            warn(f"no call was made in the measured {duration_s:g} s: pass a longer --duration-s")
        raise typer.Exit(SOME_FAILED)


def _load(
    concurrency: int | None,
    rate: float | None,
    fps: float | None,
    sweep: str | None,
    processes: int,
) -> Load:
    """Return the load of the options; it is ignored with a sweep."""
    given = {"--concurrency": concurrency, "--rate": rate, "--fps": fps, "--sweep": sweep}
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise ValueError(f"{' and '.join(named)} are different loads; pass one of them")
    if rate is None and fps is None:
        concurrency = concurrency or max(DEFAULT_CONCURRENCY, processes)
    return Load(concurrency=concurrency, rate_per_s=rate, fps=fps)


def _report(found: Bench, out: Path | None, html: Path | None, as_json: bool) -> None:
    for label, run in found.labelled_runs():
        for warning in run.warnings:
            warn(f"{label}: {warning}")
    if as_json:
        print_json(json.loads(found.to_json()))
    else:
        columns = TABLE_COLUMNS if found.plan.repeat == 1 else SPREAD_COLUMNS
        show(tables(printable(found)), columns)
    if out is not None:
        out.write_text(found.to_json() + "\n", encoding="utf-8")
    if html is not None:
        write_html(found, html)


def _compare(one: Bench, other: Bench, as_json: bool) -> None:
    rows = comparison.rows(one, other)
    differences = comparison.differences(one, other)
    if as_json:
        print_json({"differences": differences, "rows": [dataclasses.asdict(row) for row in rows]})
        return
    for difference in differences:
        warn(f"differs: {difference}")
    show(comparison.table(printable(rows)), TABLE_COLUMNS)
