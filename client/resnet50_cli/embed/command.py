"""The command `embed`: any number of images to one file or dataset of vectors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress

from resnet50_bulk.checkpoint import EmbeddingSpaceChanged
from resnet50_bulk.file_names import name_to_text
from resnet50_bulk.image_files import LeftOut, find_images
from resnet50_bulk.outputs import Output, output_at
from resnet50_bulk.progress import Progress as BulkProgress
from resnet50_bulk.progress import ProgressObserver
from resnet50_bulk.run import Run, RunObserver, Unanswered, opened_run
from resnet50_bulk.source import FileSource, Source
from resnet50_bulk.sources import source_of
from resnet50_client._redaction import redact
from resnet50_client.images import is_url

from ..connection_options import Servers, with_servers
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
    error_text,
    exit_with,
    print_json,
    print_note,
    progress_bar,
    report_left_out,
    reporting_errors,
    stop_signals,
    warn,
)
from .embedder import Embedder, ServerEmbedder, local_embedder

# Between lines of progress where there is no terminal.
LINE_INTERVAL_S = 60.0


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
    local: Annotated[
        bool,
        typer.Option(
            "--local",
            help="Compute on this machine, without a server. FILES may also be glob patterns, .tar"
            " archives, .parquet and .lance tables and addresses such as s3://BUCKET/FOLDER."
            " --variant is a name from torchvision, NAME=DIRECTORY or NAME=random:SEED; settings"
            " come from the server's environment variables.",
        ),
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="ADDRESS",
            help="As --local, by workers on the Ray cluster at this address: HOST:PORT, auto for"
            " the one of this machine, or local to start one for this run.",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Number of workers of --ray. Default: 1.")
    ] = None,
    worker_cpus: Annotated[
        int | None, typer.Option(min=1, help="CPUs of each worker of --ray. Default: 1.")
    ] = None,
    worker_gpus: Annotated[
        float | None, typer.Option(min=0, help="GPUs of each worker of --ray. Default: 0.")
    ] = None,
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
    offline = local or ray is not None
    if offline and (timeout_s is not None or concurrency is not None or servers.chosen):
        raise typer.BadParameter(
            "--timeout-s, --concurrency and connection options are for servers; leave them out",
            param_hint="--local" if local else "--ray",
        )
    on_ray: dict[str, Any] | None = None
    if ray is not None:
        on_ray = {"address": ray, "count": workers or 1}
        on_ray |= {"num_cpus": worker_cpus or 1, "num_gpus": worker_gpus or 0.0}
    else:
        resources = {
            "--workers": workers,
            "--worker-cpus": worker_cpus,
            "--worker-gpus": worker_gpus,
        }
        for name, given in resources.items():
            if given is not None:
                raise typer.BadParameter("needs --ray, the cluster's address", param_hint=name)
    left_out = LeftOut()
    with reporting_errors(), progress_bar() as bar:
        names = chosen_names(files or [], files_from, null)
        source: Source
        source = (
            source_of(list(names), left_out) if offline else FileSource(_images(names, left_out))
        )
        observer = _Progress(bar)
        with opened_run(source, output, append=append, restart=restart, observer=observer) as run:
            try:
                with reporting_errors(), stop_signals() as stop, ExitStack() as stack:
                    embedder: Embedder
                    if offline:
                        opened = local_embedder(variant, l2_normalize, background, on_ray)
                        embedder = stack.enter_context(opened)
                    else:
                        client = stack.enter_context(servers.client(timeout_s))
                        embedder = ServerEmbedder(
                            client, variant, l2_normalize, background, concurrency
                        )
                    run.check(embedder.provenance)
                    run.fill(embedder, stop)
                    if run.complete:
                        run.write()
            except EmbeddingSpaceChanged as error:
                exit_with(error, SOME_FAILED)
            finally:
                bar.stop()
                _report(run, out, as_json)
                report_left_out(left_out)
        if run.unanswered:
            raise typer.Exit(NO_SERVER)
        if not run.complete:
            raise typer.Exit(INTERRUPTED)
        if run.failed or not (run.written or run.skipped):
            raise typer.Exit(SOME_FAILED)


class _Progress(RunObserver):
    """Shows a run's progress: a bar on a terminal, else a line each minute.

    Args:
        bar: The progress bar, which is disabled where there is no terminal.
    """

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._lines = ProgressObserver(self._print, LINE_INTERVAL_S)

    def _print(self, progress: BulkProgress) -> None:
        if self._bar.disable and progress.done < progress.total:
            print_note(str(progress))

    def on_start(self, total: int, done: int) -> None:
        """See `RunObserver`."""
        self._task = self._bar.add_task("embedding", total=total, completed=done)
        self._lines.on_start(total, done)

    def on_result(self, name: str) -> None:
        """See `RunObserver`."""
        self._bar.advance(self._task)
        self._lines.count()

    def on_failed(self, name: str, error: Exception) -> None:
        """See `RunObserver`."""
        warn(f"{name}: {error_text(error)}")
        if not isinstance(error, Unanswered):
            self._bar.advance(self._task)
            self._lines.count(failed=True)

    def on_omitted(self, count: int) -> None:
        """See `RunObserver`."""
        warn(f"{count} images of an earlier run are not among these and are omitted")


def _images(names: Iterator[str], left_out: LeftOut) -> Iterator[str]:
    """Yield the paths of the images; addresses, which the SDK refuses, without their secrets."""
    for path in find_images(names, left_out):
        yield redact(path, path) if is_url(path) else path


def _output(out: Path) -> Output:
    if not out.parent.is_dir():
        raise typer.BadParameter(f"folder {out.parent} does not exist", param_hint="--out")
    try:
        return output_at(out)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--out") from error


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
