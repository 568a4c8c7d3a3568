"""The command `embed`: any number of images to one file of vectors, over one stream."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated, TypeAlias

import typer
from rich.progress import Progress

from resnet50_client.images import ImageInput
from resnet50_client.types import Embedding

from ..connection_options import Servers, with_servers
from ..file_names import name_to_text
from ..image_files import STDIN, LeftOut, find_images
from ..images import answers, warn_of_image
from ..name_lists import chosen_names
from ..options import (
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
from ..output import (
    INTERRUPTED,
    SOME_FAILED,
    error_text,
    exit_with,
    print_json,
    print_note,
    progress_bar,
    reporting_errors,
    stop_signals,
    warn,
)
from .checkpoint import Checkpoint, EmbeddingSpaceChanged, FileFingerprint
from .output_lock import exclusive_lock
from .vector_files import Writer, writer_for

Call: TypeAlias = Callable[[Iterable[ImageInput]], Generator[Embedding | Exception, None, None]]


@with_servers
def embed(
    servers: Servers,
    out: Annotated[
        Path,
        typer.Option(
            help="Output file: NumPy .npz with `paths`, `vectors` (float32 [N, 2048]),"
            " `variant`, `digest` and `space`, or .parquet with `path`, `vector`, `variant`"
            " and `digest`. Failed images are omitted."
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
    restart: Annotated[
        bool, typer.Option("--restart", help="Discard the checkpoint of an interrupted run.")
    ] = False,
    timeout_s: StreamTimeout = None,
    concurrency: Concurrency = DEFAULT_CONCURRENCY,
    as_json: AsJson = False,
) -> None:
    """Compute image embeddings and write them to a file.

    Progress is saved in a checkpoint, OUT.partial, until all images are done: after an
    interruption the same command resumes. Images that changed since are computed again. Only one
    run at a time can write to OUT.
    """
    write = _writer(out)
    with reporting_errors(), exclusive_lock(out):
        left_out = LeftOut()
        images = list(find_images(chosen_names(files or [], files_from, null), left_out))
        checkpoint = _open_checkpoint(out, l2_normalize, background or "", restart)
        run = _Run(images, checkpoint)
        try:
            with reporting_errors(), stop_signals() as stop, servers.client(timeout_s) as client:
                checkpoint.check(client.get_variant(variant))
                call = partial(
                    client.embed_many,
                    variant=variant,
                    l2_normalize=l2_normalize,
                    background=background,
                    window=concurrency,
                )
                with progress_bar() as progress:
                    run.fill(call, stop, progress)
                if run.complete:
                    run.write(write, out)
        except EmbeddingSpaceChanged as error:
            exit_with(error, SOME_FAILED)
        finally:
            _report(run, out, as_json)
            left_out.report()
        if not run.complete:
            raise typer.Exit(INTERRUPTED)
        if run.failed or not run.written:
            raise typer.Exit(SOME_FAILED)


class _Run:
    """One run of the command, which resumes from a checkpoint.

    Args:
        images: Paths of all images to embed, in order.
        checkpoint: Results of earlier runs.
    """

    def __init__(self, images: list[str], checkpoint: Checkpoint) -> None:
        self._images = images
        self.checkpoint = checkpoint
        self.failed = 0
        self.complete = False
        self.written = 0
        # Of each file, when the sending thread passed it to the stream.
        self._fingerprints: dict[str, FileFingerprint] = {}

    def fill(self, call: Call, stop: threading.Event, bar: Progress) -> None:
        """Compute the missing embeddings, until all are done or `stop` is set."""
        task = bar.add_task("embedding", total=len(self._images))

        def missing() -> Iterator[str]:
            seen: set[str] = set()
            for path in self._images:
                if stop.is_set():
                    return
                fingerprint = _fingerprint(path)
                if path in seen or self.checkpoint.contains(path, fingerprint):
                    bar.advance(task)
                    continue
                seen.add(path)
                self._fingerprints[path] = fingerprint
                yield path
            self.complete = True

        try:
            with closing(answers(call, missing())) as results:
                for answer in results:
                    fingerprint = self._fingerprints.pop(answer.path)
                    if isinstance(answer.outcome, Exception):
                        self.failed += 1
                        self.checkpoint.discard(answer.path)
                        warn(f"{answer.path}: {error_text(answer.outcome)}")
                    else:
                        warn_of_image(answer)
                        self.checkpoint.add(answer.path, fingerprint, answer.outcome)
                    bar.advance(task)
        except BaseException:
            self.complete = False
            raise
        finally:
            self.checkpoint.flush()

    def write(self, write: Writer, out: Path) -> None:
        """Write the output file from the checkpoint, then delete the checkpoint."""
        paths = [path for path in self._images if self.checkpoint.contains(path)]
        others = len(self.checkpoint) - len(set(paths))
        if others:
            warn(f"{others} images of an earlier run are not among these and are omitted")
        if paths:
            write(out, paths, self.checkpoint)
        self.written = len(paths)
        self.checkpoint.remove()


def _writer(out: Path) -> Writer:
    if not out.parent.is_dir():
        raise typer.BadParameter(f"folder {out.parent} does not exist", param_hint="--out")
    try:
        return writer_for(out)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--out") from error


def _open_checkpoint(out: Path, l2_normalize: bool, background: str, restart: bool) -> Checkpoint:
    folder = out.with_name(out.name + ".partial")
    if restart:
        Checkpoint.remove_from(folder)
    return Checkpoint(folder, l2_normalize, background)


def _fingerprint(path: str) -> FileFingerprint:
    """Return a file's size in bytes and its modification time in ns, to detect changes."""
    if path == STDIN:
        return (-1, os.getpid())  # never the same again
    try:
        status = os.stat(path)
    except OSError:
        return (-1, -1)  # reading it will fail with the reason
    return (status.st_size, status.st_mtime_ns)


def _report(run: _Run, out: Path, as_json: bool) -> None:
    """Print the number of embeddings, and where they are."""
    saved = 0 if run.written else len(run.checkpoint)
    if as_json:
        report = {
            "embedded": run.written or saved,
            "out": name_to_text(str(out)) if run.written else None,
        }
        print_json(
            report | ({"checkpoint": name_to_text(str(run.checkpoint.folder))} if saved else {})
        )
        return
    if run.written:
        text = f"{run.written} images embedded, written to {out}"
    elif saved:
        text = (
            f"{saved} images embedded, saved in {run.checkpoint.folder};"
            " run the same command to resume"
        )
    else:
        text = "0 images embedded, nothing was written"
    print_note(text)
