"""The commands: classify, embed, variants, health. Results go to stdout, all else to stderr."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import numpy as np
import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..aio import AsyncClient
from ..client import Client
from ..connection import DEFAULT_SERVER, DEFAULT_TIMEOUT_S, RetryPolicy
from ..errors import DeadlineExceededError, Resnet50Error, UnavailableError
from ..results import Classification, Embedding, Variant
from .images import Answer, answers, find_images

# Exit statuses; 2 is typer's own for wrong usage.
SOME_FAILED = 1
NO_SERVER = 3

EXIT_STATUSES = (
    "Exit status: 0 all is well; 1 the server refused something, or some images failed (the others"
    " are in the output); 2 wrong usage; 3 no server answers, or it is not ready."
)

app = typer.Typer(
    name="resnet50",
    help="Classify and embed images with a ResNet50 server.",
    epilog=EXIT_STATUSES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)

Server = Annotated[
    list[str],
    typer.Option(
        "--server",
        envvar="RESNET50_SERVER",
        help="host:port or unix:PATH; repeat to balance over several.",
    ),
]
Timeout = Annotated[
    float, typer.Option("--timeout-s", min=0.001, help="How long one call may take, in seconds.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line, for machines.")]
VariantName = Annotated[
    str, typer.Option("--variant", help="Which weights answer; default: the server's choice.")
]
Files = Annotated[
    list[str],
    typer.Argument(
        metavar="FILES...", help="Image files, folders of them, or - for one image on stdin."
    ),
]
Concurrency = Annotated[int, typer.Option("--concurrency", min=1, help="Images under way at once.")]


@app.command(epilog=EXIT_STATUSES)
def classify(
    files: Files,
    server: Server = [DEFAULT_SERVER],  # noqa: B006  typer reads it, nothing changes it
    variant: VariantName = "",
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="How many categories.")] = 5,
    min_probability: Annotated[
        float | None,
        typer.Option("--min-probability", min=0, max=1, help="Leave out categories below it."),
    ] = None,
    timeout_s: Timeout = DEFAULT_TIMEOUT_S,
    concurrency: Concurrency = 16,
    as_json: AsJson = False,
) -> None:
    """Say what images show."""

    async def call(client: AsyncClient, image: Any) -> Classification:
        return await client.classify(
            image, variant=variant, top_k=top_k, min_probability=min_probability
        )

    def show(answer: Answer[Classification]) -> None:
        if as_json:
            _print_json(answer.path, answer.outcome)
        elif isinstance(answer.outcome, Classification):
            console.print(
                answer.path + ":",
                ", ".join(map(repr, answer.outcome)) or "nothing above --min-probability",
            )

    console = Console(soft_wrap=True, highlight=False, markup=False)

    async def run() -> int:
        failed = 0
        async with AsyncClient(server, timeout_s=timeout_s, retry=PATIENT) as client:
            async for answer in answers(client, call, find_images(files), concurrency):
                show(answer)
                failed += _report(answer)
        return failed

    with _errors_shown():
        if asyncio.run(run()):
            raise typer.Exit(SOME_FAILED)


@app.command(epilog=EXIT_STATUSES)
def embed(
    files: Files,
    out: Annotated[
        Path,
        typer.Option(
            help="Where to write: a NumPy .npz file with `paths`, `vectors` (float32 [N, 2048]),"
            " `variant`, `digest` and `space`. Images that failed are left out."
        ),
    ],
    server: Server = [DEFAULT_SERVER],  # noqa: B006  typer reads it, nothing changes it
    variant: VariantName = "",
    l2_normalize: Annotated[
        bool, typer.Option("--l2-normalize", help="Scale vectors to length 1.")
    ] = False,
    timeout_s: Timeout = DEFAULT_TIMEOUT_S,
    concurrency: Concurrency = 16,
    as_json: AsJson = False,
) -> None:
    """Turn images into vectors, written to a file."""
    if out.suffix != ".npz":
        raise typer.BadParameter(f"{out} does not end in .npz", param_hint="--out")
    if not out.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {out.parent}", param_hint="--out")

    async def call(client: AsyncClient, image: Any) -> Embedding:
        return await client.embed(image, variant=variant, l2_normalize=l2_normalize)

    done: list[tuple[str, Embedding]] = []

    async def run(images: list[str], progress: Progress) -> int:
        failed = 0
        bar = progress.add_task("embedding", total=len(images))
        async with AsyncClient(server, timeout_s=timeout_s, retry=PATIENT) as client:
            async for answer in answers(client, call, iter(images), concurrency):
                failed += _report(answer)
                if isinstance(answer.outcome, Embedding):
                    done.append((answer.path, answer.outcome))
                progress.advance(bar)
        return failed

    try:
        with _errors_shown(), _progress() as progress:
            failed = asyncio.run(run(list(find_images(files)), progress))
    finally:
        # Also what was done before something stopped it.
        written = _write_vectors(out, done)
        if as_json:
            print(json.dumps({"embedded": len(done), "out": str(out) if written else None}))
        else:
            where = f"written to {out}" if written else "nothing was written"
            errors.print(f"{len(done)} images embedded, {where}")
    if failed or not written:
        raise typer.Exit(SOME_FAILED)


@app.command(epilog=EXIT_STATUSES)
def variants(
    name: Annotated[
        str | None, typer.Argument(help="Show one variant in full, with its categories.")
    ] = None,
    server: Server = [DEFAULT_SERVER],  # noqa: B006  typer reads it, nothing changes it
    timeout_s: Timeout = DEFAULT_TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """List the weights that the server serves."""
    with _errors_shown(), Client(server, timeout_s=timeout_s) as client:
        found = client.variants() if name is None else [client.variant(name)]
    if as_json:
        for one in found:
            print(json.dumps(dataclasses.asdict(one)))
    elif name is None:
        # A pipe has no width of its own; a table cut at 80 columns would help nobody.
        Console(width=None if sys.stdout.isatty() else 120).print(_variant_table(found))
    else:
        console = Console(soft_wrap=True, highlight=False, markup=False)
        for key, value in dataclasses.asdict(found[0]).items():
            console.print(f"{key:20} {', '.join(value) if key == 'categories' else value}")


@app.command(epilog=EXIT_STATUSES)
def health(
    server: Server = [DEFAULT_SERVER],  # noqa: B006  typer reads it, nothing changes it
    service: Annotated[
        str, typer.Option(help="A service's full name; default: the whole server.")
    ] = "",
    wait_s: Annotated[
        float, typer.Option("--wait-s", min=0, help="Wait so long for the server to be ready.")
    ] = 0.0,
    timeout_s: Timeout = 5.0,
    as_json: AsJson = False,
) -> None:
    """Say whether the server takes requests; exit status 0 if it does."""
    with _errors_shown(), Client(server, timeout_s=timeout_s) as client:
        if wait_s:
            client.wait_until_ready(wait_s)
        status = client.health(service)
    print(json.dumps({"status": status}) if as_json else status)
    if status != "SERVING":
        raise typer.Exit(NO_SERVER)


# The command line stays within its own --concurrency, so it may wait for a full server.
PATIENT = RetryPolicy(overload_attempts=100)


def _print_json(path: str, outcome: Classification | Resnet50Error | OSError) -> None:
    if isinstance(outcome, Classification):
        print(json.dumps({"path": path, **dataclasses.asdict(outcome)}))
    else:
        code = outcome.code if isinstance(outcome, Resnet50Error) else "UNREADABLE"
        print(json.dumps({"path": path, "error": {"code": code, "message": str(outcome)}}))


def _write_vectors(out: Path, done: list[tuple[str, Embedding]]) -> bool:
    """Write the vectors with what they are; return False if there is nothing fit to write."""
    if not done:
        return False
    paths, vectors = zip(*done, strict=True)
    if len({vector.space for vector in vectors}) > 1:
        errors.print(
            "resnet50: the servers answered with different weights, so the vectors cannot be"
            " compared; name one --variant that all of them serve"
        )
        return False
    np.savez(
        out,
        paths=np.array(paths),
        vectors=np.stack([vector.vector for vector in vectors]),
        variant=vectors[0].variant.name,
        digest=vectors[0].variant.digest,
        space=vectors[0].space,
    )
    return True


def _report(answer: Answer[Any]) -> bool:
    """Say on stderr what became of an image that failed; return whether it did."""
    if not isinstance(answer.outcome, Exception):
        return False
    errors.print(f"resnet50: {answer.path}: {_text(answer.outcome)}")
    return True


def _text(error: Exception) -> str:
    return f"{error.strerror}" if isinstance(error, OSError) and error.strerror else str(error)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def _variant_table(found: list[Variant]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for heading in ("name", "state", "transform", "acc@1", "runs on", "weights"):
        table.add_column(heading, no_wrap=heading != "state")
    for one in found:
        accuracy = one.published_accuracy
        table.add_row(
            one.name + (" *" if one.server_default else ""),
            one.state if one.trained or one.state != "ready" else "ready, UNTRAINED",
            f"{one.transform.resize} → {one.transform.crop}",
            f"{accuracy.acc_at_1:.2f}" if accuracy else "-",
            " ".join(filter(None, (one.engine, one.device, one.precision))) or "-",
            one.digest[:12] or "-",
        )
    table.caption, table.caption_justify = "* answers requests that name no variant", "left"
    return table


@contextmanager
def _errors_shown() -> Iterator[None]:
    """Turn what stops a whole command into a line on stderr and an exit status."""
    try:
        yield
    except (UnavailableError, DeadlineExceededError) as error:
        _fail(error, NO_SERVER)
    except (Resnet50Error, OSError) as error:
        _fail(error, SOME_FAILED)
    except ValueError as error:
        _fail(error, 2)


def _fail(error: Exception, status: int) -> NoReturn:
    errors.print(f"resnet50: {error}")
    raise typer.Exit(status) from error
