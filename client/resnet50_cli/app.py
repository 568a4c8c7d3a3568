"""The commands of `resnet50`. Results go to stdout, everything else to stderr."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from typing import Annotated

import typer

from resnet50_bench.command import EXIT_STATUSES as BENCH_EXIT_STATUSES
from resnet50_bench.command import bench
from resnet50_client import __version__
from resnet50_client.types import Classification

from .connection_options import Servers, with_servers
from .embed.command import embed
from .evaluate.command import evaluate
from .file_names import name_to_text
from .image_files import LeftOut, find_images
from .images import Answer, answers, warn_of_image
from .name_lists import chosen_names
from .options import (
    DEFAULT_CONCURRENCY,
    AsJson,
    Background,
    Concurrency,
    Files,
    FilesFrom,
    Null,
    StreamTimeout,
    VariantName,
)
from .output import (
    EXIT_STATUSES,
    NO_SERVER,
    SOME_FAILED,
    error_code,
    error_text,
    print_json,
    print_line,
    reporting_errors,
    warn,
)
from .stream.command import stream
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


def _print_version(wanted: bool) -> None:
    if wanted:
        print_line(__version__)
        raise typer.Exit


@app.callback()
def _options(
    wanted: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


@app.command(epilog=EXIT_STATUSES)
@with_servers
def classify(
    servers: Servers,
    files: Files = None,
    files_from: FilesFrom = None,
    null: Null = False,
    variant: VariantName = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            "--top-k",
            min=1,
            help="Number of categories per image. Default: 5, or all if the variant has fewer.",
        ),
    ] = None,
    min_probability: Annotated[
        float | None,
        typer.Option(
            "--min-probability",
            min=0,
            max=1,
            help="Omit categories below this. Default: below their threshold, if the variant has"
            " thresholds.",
        ),
    ] = None,
    background: Background = None,
    timeout_s: StreamTimeout = None,
    concurrency: Concurrency = DEFAULT_CONCURRENCY,
    as_json: AsJson = False,
) -> None:
    """Classify images."""
    failed, left_out = 0, LeftOut()
    with reporting_errors(), servers.client(timeout_s) as client:
        names = chosen_names(files or [], files_from, null)
        # Fails at once if no server is reachable; later failures are retried.
        client.get_variant(variant)
        call = partial(
            client.classify_many,
            variant=variant,
            top_k=top_k,
            min_probability=min_probability,
            background=background,
            window=concurrency,
        )
        with closing(answers(call, find_images(names, left_out))) as results:
            for answer in results:
                failed += isinstance(answer.outcome, Exception)
                _show(answer, as_json)
        left_out.report()
    if failed:
        raise typer.Exit(SOME_FAILED)


app.command(epilog=EXIT_STATUSES)(embed)
app.command(epilog=EXIT_STATUSES)(evaluate)
app.command(epilog=EXIT_STATUSES)(stream)
app.command(epilog=BENCH_EXIT_STATUSES)(bench)
app.command(epilog=TOP_EXIT_STATUSES)(top)
app.add_typer(variants, name="variants")


@app.command(epilog=EXIT_STATUSES)
@with_servers
def health(
    servers: Servers,
    service: Annotated[
        str, typer.Option(help="Full name of a gRPC service. Default: the whole server.")
    ] = "",
    wait_s: Annotated[
        float, typer.Option("--wait-s", min=0, help="Seconds to wait for the server to be ready.")
    ] = 0.0,
    timeout_s: Annotated[
        float | None,
        typer.Option(
            "--timeout-s",
            min=0.001,
            help=f"Timeout of one call in seconds. Default: {HEALTH_TIMEOUT_S:g}.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show whether the server is ready for requests; exit status 0 if it is."""
    with reporting_errors(), servers.client(timeout_s, HEALTH_TIMEOUT_S) as client:
        if wait_s:
            client.wait_until_ready(timeout_s=wait_s)
        status = client.health(service)
        if as_json:
            print_json({"status": status})
        else:
            print_line(status)
    if status != "SERVING":
        raise typer.Exit(NO_SERVER)


def _show(answer: Answer[Classification], as_json: bool) -> None:
    """Print an image's categories; errors go to stderr."""
    path, outcome = answer.path, answer.outcome
    warn_of_image(answer)
    name = name_to_text(path)
    if isinstance(outcome, Exception):
        if as_json:
            print_json(
                {"path": name, "error": {"code": error_code(outcome), "message": str(outcome)}}
            )
        warn(f"{path}: {error_text(outcome)}")
    elif as_json:
        fields = outcome.to_dict()
        del fields["source"]  # the path, which may not be UTF-8
        print_json({"path": name, **fields})
    else:
        print_line(f"{path}: {', '.join(map(repr, outcome)) or 'no category is probable enough'}")
