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

from ..images import ImageInput
from ..results import Embedding
from .images import STDIN, answers, find_images
from .journal import Journal, SpaceChanged, Stamp
from .options import (
    DEFAULT_CONCURRENCY,
    AsJson,
    Concurrency,
    Files,
    Patience,
    VariantName,
)
from .output import (
    INTERRUPTED,
    SOME_FAILED,
    complain,
    errors_shown,
    fail,
    note,
    progress_bar,
    reason,
    say_json,
    stopping,
)
from .run_lock import alone
from .servers import Servers, with_servers
from .vectors import Writer, writer_for

Call: TypeAlias = Callable[[Iterable[ImageInput]], Generator[Embedding | Exception, None, None]]


@with_servers
def embed(
    servers: Servers,
    files: Files,
    out: Annotated[
        Path,
        typer.Option(
            help="Where to write: a NumPy .npz file with `paths`, `vectors` (float32 [N, 2048]),"
            " `variant`, `digest` and `space`, or a .parquet file with `path`, `vector`, `variant`"
            " and `digest`. Images that failed are left out."
        ),
    ],
    variant: VariantName = "",
    l2_normalize: Annotated[
        bool, typer.Option("--l2-normalize", help="Scale vectors to length 1.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Forget what an interrupted run has left.")
    ] = False,
    timeout_s: Patience = None,
    concurrency: Concurrency = DEFAULT_CONCURRENCY,
    as_json: AsJson = False,
) -> None:
    """Turn images into vectors, written to a file.

    What is done is kept beside the file, in OUT.partial, until all is done: after an interruption
    the same command goes on where it was. Images that were changed since are computed again. One
    run at a time writes an OUT.
    """
    write = _writer(out)
    with errors_shown(), alone(out):
        images = list(find_images(files))
        journal = _journal(out, l2_normalize, restart)
        run = _Run(images, journal)
        try:
            with errors_shown(), stopping() as stop, servers.client(timeout_s) as client:
                journal.check(client.variant(variant))
                call = partial(
                    client.embed_many,
                    variant=variant,
                    l2_normalize=l2_normalize,
                    window=concurrency,
                )
                with progress_bar() as progress:
                    run.fill(call, stop, progress)
                if run.complete:
                    run.write(write, out)
        except SpaceChanged as error:
            fail(error, SOME_FAILED)
        finally:
            _report(run, out, as_json)
        if not run.complete:
            raise typer.Exit(INTERRUPTED)
        if run.failed or not run.written:
            raise typer.Exit(SOME_FAILED)


class _Run:
    """One run over a journal.

    Args:
        images: Paths of all images that are wanted, in order.
        journal: What earlier runs have left.
    """

    def __init__(self, images: list[str], journal: Journal) -> None:
        self._images = images
        self.journal = journal
        self.failed = 0
        self.complete = False
        self.written = 0
        # Of files, when they were sent; read by the sending thread, before anything is sent.
        self._stamps: dict[str, Stamp] = {}

    def fill(self, call: Call, stop: threading.Event, bar: Progress) -> None:
        """Compute what is missing, until that is done or `stop` is set."""
        task = bar.add_task("embedding", total=len(self._images))

        def missing() -> Iterator[str]:
            seen: set[str] = set()
            for path in self._images:
                if stop.is_set():
                    return
                stamp = _stamp(path)
                if path in seen or self.journal.holds(path, stamp):
                    bar.advance(task)
                    continue
                seen.add(path)
                self._stamps[path] = stamp
                yield path
            self.complete = True

        try:
            with closing(answers(call, missing())) as found:
                for answer in found:
                    stamp = self._stamps.pop(answer.path)
                    if isinstance(answer.outcome, Exception):
                        self.failed += 1
                        self.journal.forget(answer.path)
                        complain(f"{answer.path}: {reason(answer.outcome)}")
                    else:
                        self.journal.add(answer.path, stamp, answer.outcome)
                    bar.advance(task)
        except BaseException:
            self.complete = False
            raise
        finally:
            self.journal.flush()

    def write(self, write: Writer, out: Path) -> None:
        """Make the file of what the journal holds, and remove that."""
        paths = [path for path in self._images if self.journal.holds(path)]
        others = len(self.journal) - len(set(paths))
        if others:
            complain(f"{others} images of an earlier run are not among these, and are left out")
        if paths:
            write(out, paths, self.journal)
        self.written = len(paths)
        self.journal.remove()


def _writer(out: Path) -> Writer:
    if not out.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {out.parent}", param_hint="--out")
    try:
        return writer_for(out)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--out") from error


def _journal(out: Path, l2_normalize: bool, restart: bool) -> Journal:
    folder = out.with_name(out.name + ".partial")
    if restart:
        Journal.remove_from(folder)
    return Journal(folder, l2_normalize)


def _stamp(path: str) -> Stamp:
    """Return what changes when a file does: its length and when it was written."""
    if path == STDIN:
        return (-1, os.getpid())  # never the same again
    try:
        status = os.stat(path)
    except OSError:
        return (-1, -1)  # reading it will say why
    return (status.st_size, status.st_mtime_ns)


def _report(run: _Run, out: Path, as_json: bool) -> None:
    """Say what there is now."""
    kept = 0 if run.written else len(run.journal)
    if as_json:
        said = {"embedded": run.written or kept, "out": str(out) if run.written else None}
        say_json(said | ({"kept_in": str(run.journal.folder)} if kept else {}))
        return
    if run.written:
        text = f"{run.written} images embedded, written to {out}"
    elif kept:
        text = f"{kept} images embedded, kept in {run.journal.folder}; the same command goes on"
    else:
        text = "0 images embedded, nothing was written"
    note(text)
