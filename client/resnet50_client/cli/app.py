"""The commands of `resnet50`. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from functools import partial
from importlib.metadata import version
from typing import Annotated

import typer

from ..connection import DISTRIBUTION
from ..results import Classification
from .bench.command import EXIT_STATUSES as BENCH_EXIT_STATUSES
from .bench.command import bench
from .embed import embed
from .images import Answer, answers, find_images
from .options import (
    DEFAULT_CONCURRENCY,
    AsJson,
    Concurrency,
    Files,
    Patience,
    VariantName,
)
from .output import (
    EXIT_STATUSES,
    NO_SERVER,
    SOME_FAILED,
    code,
    complain,
    errors_shown,
    reason,
    say,
    say_json,
)
from .servers import Servers, with_servers
from .stream import stream
from .top.command import EXIT_STATUSES as TOP_EXIT_STATUSES
from .top.command import top
from .variants.command import variants

HEALTH_TIMEOUT_S = 5.0

app = typer.Typer(
    name="resnet50",
    help="Classify and embed images with a ResNet50 server.",
    epilog=EXIT_STATUSES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _say_version(wanted: bool) -> None:
    if wanted:
        say(version(DISTRIBUTION))
        raise typer.Exit


@app.callback()
def _options(
    wanted: Annotated[
        bool,
        typer.Option(
            "--version", callback=_say_version, is_eager=True, help="Say the version, and end."
        ),
    ] = False,
) -> None:
    pass


@app.command(epilog=EXIT_STATUSES)
@with_servers
def classify(
    servers: Servers,
    files: Files,
    variant: VariantName = "",
    top_k: Annotated[
        int,
        typer.Option(
            "--top-k",
            min=0,
            show_default=False,
            help="How many categories; default (0): 5, or all of a variant that has fewer.",
        ),
    ] = 0,
    min_probability: Annotated[
        float | None,
        typer.Option("--min-probability", min=0, max=1, help="Leave out categories below it."),
    ] = None,
    timeout_s: Patience = None,
    concurrency: Concurrency = DEFAULT_CONCURRENCY,
    as_json: AsJson = False,
) -> None:
    """Say what images show."""
    failed = 0
    with errors_shown(), servers.client(timeout_s) as client:
        # A server that never was there is told from one that went away, at once.
        client.variant(variant)
        call = partial(
            client.classify_many,
            variant=variant,
            top_k=top_k,
            min_probability=min_probability,
            window=concurrency,
        )
        with closing(answers(call, find_images(files))) as found:
            for answer in found:
                failed += isinstance(answer.outcome, Exception)
                _show(answer, as_json)
    if failed:
        raise typer.Exit(SOME_FAILED)


app.command(epilog=EXIT_STATUSES)(embed)
app.command(epilog=EXIT_STATUSES)(stream)
app.command(epilog=BENCH_EXIT_STATUSES)(bench)
app.command(epilog=TOP_EXIT_STATUSES)(top)
app.add_typer(variants, name="variants")


@app.command(epilog=EXIT_STATUSES)
@with_servers
def health(
    servers: Servers,
    service: Annotated[
        str, typer.Option(help="A service's full name; default: the whole server.")
    ] = "",
    wait_s: Annotated[
        float, typer.Option("--wait-s", min=0, help="Wait so long for the server to be ready.")
    ] = 0.0,
    timeout_s: Annotated[
        float | None,
        typer.Option(
            "--timeout-s",
            min=0.001,
            help=f"How long one call may take, in seconds; default: {HEALTH_TIMEOUT_S:g}.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say whether the server takes requests; exit status 0 if it does."""
    with errors_shown(), servers.client(timeout_s, HEALTH_TIMEOUT_S) as client:
        if wait_s:
            client.wait_until_ready(wait_s)
        status = client.health(service)
        if as_json:
            say_json({"status": status})
        else:
            say(status)
    if status != "SERVING":
        raise typer.Exit(NO_SERVER)


def _show(answer: Answer[Classification], as_json: bool) -> None:
    """Print an image's categories; what became of one that failed goes to stderr."""
    path, outcome = answer.path, answer.outcome
    if isinstance(outcome, Exception):
        if as_json:
            say_json({"path": path, "error": {"code": code(outcome), "message": str(outcome)}})
        complain(f"{path}: {reason(outcome)}")
    elif as_json:
        # Nobody asked for the embedding; JSON has no word for one.
        answer_alone = dataclasses.replace(outcome, embedding=None)
        say_json({"path": path, **dataclasses.asdict(answer_alone)})
    else:
        say(f"{path}: {', '.join(map(repr, outcome)) or 'nothing above --min-probability'}")
