"""The command `embed`: any number of images to one file or dataset of vectors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from resnet50_client import BulkResults, Embedding
from resnet50_client._redaction import redact
from resnet50_client.images import is_url

from ..connection_options import Servers, with_servers
from ..file_names import name_to_text
from ..image_files import LeftOut, find_images
from ..images import KeyedImages
from ..name_lists import chosen_names
from ..options import (
    AsJson,
    Background,
    BulkConcurrency,
    Files,
    FilesFrom,
    Null,
    StreamTimeout,
    VariantName,
)
from ..output import (
    INTERRUPTED,
    NO_SERVER,
    SOME_FAILED,
    exit_with,
    print_json,
    print_note,
    progress_bar,
    reporting_errors,
    stop_signals,
)
from .checkpoint import Checkpoint, EmbeddingSpaceChanged
from .output_lock import exclusive_lock
from .outputs import Output, output_at
from .provenance import Provenance
from .run import Run


@with_servers
def embed(
    servers: Servers,
    out: Annotated[
        Path,
        typer.Option(
            help="Output: a NumPy .npz with `paths` and `vectors` (float32 [N, 2048]), a .parquet"
            " file or a .lance dataset with `path`, `vector` and `error`. All contain the variant,"
            " its digest and the embedding space.",
        ),
    ],
    files: Files = None,
    files_from: FilesFrom = None,
    null: Null = False,
    variant: VariantName = None,
    l2_normalize: Annotated[
        bool, typer.Option("--l2-normalize", help="Scale vectors to length 1.")
    ] = False,
    background: Background = None,
    append: Annotated[
        bool,
        typer.Option(
            "--append",
            help="Add the images that OUT does not contain to it, if its vectors are of the same"
            " embedding space. Default: OUT is replaced.",
        ),
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Discard the checkpoint of an interrupted run.")
    ] = False,
    timeout_s: StreamTimeout = None,
    concurrency: BulkConcurrency = None,
    as_json: AsJson = False,
) -> None:
    """Compute image embeddings and write them to a file.

    Progress is saved in a checkpoint, OUT.partial, until all images are done: after an
    interruption the same command resumes. Images that changed since are computed again. Only one
    run at a time can write to OUT.
    """
    output = _output(out)
    with reporting_errors(), exclusive_lock(out):
        left_out = LeftOut()
        # A file that is named twice is embedded once.
        images = list(dict.fromkeys(_images(files or [], files_from, null, left_out)))
        existing = output.read() if append and out.exists() else None
        with _checkpoint(out, restart) as checkpoint:
            run = Run(images, checkpoint, existing)
            try:
                with (
                    reporting_errors(),
                    stop_signals() as stop,
                    servers.client(timeout_s) as client,
                ):
                    found = client.get_variant(variant)
                    run.check(output, Provenance.of_variant(found, l2_normalize, background or ""))

                    def call(images: KeyedImages) -> BulkResults[tuple[str, Embedding | Exception]]:
                        return client.embed_many(
                            images,
                            variant=variant,
                            l2_normalize=l2_normalize,
                            background=background,
                            keyed=True,
                            ordered=False,
                            return_exceptions=True,
                            max_in_flight=concurrency,
                        )

                    with progress_bar() as progress:
                        run.fill(call, background or "", stop, progress)
                    if run.complete:
                        run.write(output)
            except EmbeddingSpaceChanged as error:
                exit_with(error, SOME_FAILED)
            finally:
                _report(run, out, as_json)
                left_out.report()
        if run.unanswered:
            raise typer.Exit(NO_SERVER)
        if not run.complete:
            raise typer.Exit(INTERRUPTED)
        if run.failed or not (run.written or run.skipped):
            raise typer.Exit(SOME_FAILED)


def _images(
    files: list[str], files_from: str | None, null: bool, left_out: LeftOut
) -> Iterator[str]:
    """Yield the paths of the images; addresses, which the SDK refuses, without their secrets."""
    for path in find_images(chosen_names(files, files_from, null), left_out):
        yield redact(path, path) if is_url(path) else path


def _output(out: Path) -> Output:
    if not out.parent.is_dir():
        raise typer.BadParameter(f"folder {out.parent} does not exist", param_hint="--out")
    try:
        return output_at(out)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--out") from error


def _checkpoint(out: Path, restart: bool) -> Checkpoint:
    file = out.with_name(out.name + ".partial")
    if restart:
        Checkpoint.remove_from(file)
    return Checkpoint(file)


def _report(run: Run, out: Path, as_json: bool) -> None:
    """Print the number of embeddings and of failed images, and where the results are."""
    saved = 0 if run.written else len(run.checkpoint)
    if as_json:
        report: dict[str, int | str | None] = {
            "embedded": run.written or saved,
            "failed": run.failed,
            "out": name_to_text(str(out)) if run.written or run.skipped else None,
        }
        if run.skipped:
            report["skipped"] = run.skipped
        if saved:
            report["checkpoint"] = name_to_text(str(run.checkpoint.file))
        print_json(report)
        return
    if run.written:
        text = f"{run.written} images embedded, written to {out}"
    elif saved:
        text = (
            f"{saved} images embedded, saved in {run.checkpoint.file};"
            " run the same command to resume"
        )
    else:
        text = "0 images embedded, nothing was written"
    if run.failed:
        text += f"; {run.failed} failed"
    if run.unanswered:
        text += f"; {run.unanswered} were not answered in time (--timeout-s)"
    if run.skipped:
        text += f"; {run.skipped} were in {out} already"
    print_note(text)
