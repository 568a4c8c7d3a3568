"""A bulk run: the missing results, then the output."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TypeAlias

from .checkpoint import Checkpoint, ImageResult
from .error_text import error_text
from .image_files import STDIN
from .output_lock import exclusive_lock
from .outputs import Existing, Output, Results
from .provenance import Provenance
from .source import FileFingerprint, ImageContent, Source

Outcome: TypeAlias = ImageResult | Exception
"""An image's result, the error of an image that fails each time, or `Unanswered`."""

RunCall: TypeAlias = "Callable[[Images], Generator[tuple[str, Outcome], None, None]]"
"""Computes named images, lazily and in any order."""


class Unanswered(Exception):
    """An image had no answer in time; a later run sends it again."""


class RunObserver:
    """Is told of a run's progress, in the thread of `Run.fill`."""

    def on_start(self, total: int, done: int) -> None:
        """Some of the images have a result of an earlier run."""

    def on_result(self, name: str) -> None:
        """An image has a result."""

    def on_failed(self, name: str, error: Exception) -> None:
        """An image failed, or was not answered."""

    def on_omitted(self, count: int) -> None:
        """Some images of an earlier run are not among those of this run."""


class Run:
    """One run over a source, which resumes from a checkpoint.

    Args:
        source: The images.
        names: Names of all images, each once, in the source's order.
        output: Where the results are written.
        checkpoint: Results of earlier runs.
        existing: Content of the output, if the run appends to it.
        observer: Is told of the progress.

    Attributes:
        output: Where the results are written.
        checkpoint: Results so far.
        failed: Number of images that failed.
        unanswered: Number of images that were not answered in time.
        written: Number of results written to the output.
        complete: Whether all images have a result.
    """

    def __init__(
        self,
        source: Source,
        names: list[str],
        output: Output,
        checkpoint: Checkpoint,
        existing: Existing | None = None,
        observer: RunObserver | None = None,
    ) -> None:
        self.output = output
        self.checkpoint = checkpoint
        self.failed = self.unanswered = self.written = 0
        self.complete = False
        self._source = source
        self._existing = existing
        self._observer = observer or RunObserver()
        # "-" is another image each time.
        present = existing.embedded - {STDIN} if existing is not None else set()
        self._names = [name for name in names if name not in present]
        self._present = [name for name in names if name in present]

    @property
    def skipped(self) -> int:
        """Number of images that are in the output already."""
        return len(self._present)

    def fill(self, call: RunCall, stop: threading.Event) -> None:
        """Compute the missing results, until all are done or `stop` is set.

        Images that are not answered in time are no failed images: a later run sends them again.

        Args:
            call: Computes them.
            stop: No image follows after this is set.

        Raises:
            EmbeddingSpaceChanged: The weights changed during the run.
            OSError: The checkpoint cannot be written.
        """
        missing = Images(self._source, self._missing(), stop)
        self._observer.on_start(len(self._names), len(self._names) - len(missing))
        results = 0
        try:
            with closing(call(missing)) as outcomes:
                for name, outcome in outcomes:
                    fingerprint = missing.fingerprints.pop(name)
                    if isinstance(outcome, Unanswered):
                        self.unanswered += 1
                        self._observer.on_failed(name, outcome)
                        continue
                    self._add(name, fingerprint, outcome)
                    results += 1
        finally:
            self.checkpoint.flush()
        self.complete = results == len(missing)

    def _add(self, name: str, fingerprint: FileFingerprint, outcome: Outcome) -> None:
        if isinstance(outcome, Exception):
            self.failed += 1
            self._observer.on_failed(name, outcome)
            self.checkpoint.add_error(name, fingerprint, error_text(outcome))
        else:
            self.checkpoint.add(name, fingerprint, outcome)
            self._observer.on_result(name)

    def write(self) -> None:
        """Write the output from the checkpoint, then delete the checkpoint.

        Raises:
            ValueError: The output's vectors are of another provenance.
            OSError: The output cannot be written.
        """
        contains = self.checkpoint.contains
        embedded = [name for name in self._names if contains(name)]
        others = len(self.checkpoint) - len(embedded) - sum(map(contains, self._present))
        if others:
            self._observer.on_omitted(others)
        if embedded:
            errors = dict(self.checkpoint.errors())
            failed = {name: errors[name] for name in self._names if name in errors}
            results = Results(self.checkpoint, embedded, failed)
            if self._existing is None:
                self.output.write(results)
            else:
                self.check(results.provenance)
                self.output.append(results, self._existing)
        self.written = len(embedded)
        self.checkpoint.remove()

    def check(self, provenance: Provenance) -> None:
        """Check that vectors can be added to the output, if the run appends, and the checkpoint.

        Raises:
            ValueError: They are of another provenance.
        """
        self.checkpoint.check(provenance)
        if self._existing is not None:
            remedy = "pass the --variant and the options of its vectors, or another --out"
            self._existing.provenance.check(provenance, self.output.path, remedy)

    def _missing(self) -> list[str]:
        """Return the images that have no vector, or have changed since it was computed."""
        if not len(self.checkpoint):
            return self._names
        saved = ((name, self.checkpoint.fingerprint(name)) for name in self._names)
        changed = self._source.fingerprint
        return [name for name, known in saved if known is None or known != changed(name)]


@contextmanager
def opened_run(
    source: Source,
    output: Output,
    *,
    append: bool = False,
    restart: bool = False,
    observer: RunObserver | None = None,
) -> Iterator[Run]:
    """Lock an output and open its checkpoint, `OUT.partial`, for a run.

    Args:
        source: The images; one that is named twice is computed once.
        output: Where the results are written.
        append: Add the images that the output does not contain to it.
        restart: Discard the checkpoint of an interrupted run.
        observer: Is told of the progress.

    Raises:
        ValueError: The source, the output or the checkpoint is not of its format.
        OSError: One of them cannot be read, or another run writes the output.
    """
    path = output.path
    with exclusive_lock(path):
        names = list(dict.fromkeys(source.names()))
        existing = output.read() if append and path.exists() else None
        file = path.with_name(f"{path.name}.partial")
        if restart:
            Checkpoint.remove_from(file)
        with Checkpoint(file) as checkpoint:
            yield Run(source, names, output, checkpoint, existing, observer)


class Images(Collection[tuple[str, ImageContent]]):
    """Pairs (name, image), with the fingerprints of their files.

    A collection, because the SDK reads the files of a collection in parallel.

    Args:
        source: The images.
        names: Those to compute.
        stop: No image follows after this is set.

    Attributes:
        source: The images.
        names: Those to compute.
        stop: Set when no image shall follow.
        fingerprints: Of each file since before it was read; a call that reads images in another
            way than by iteration adds them.
    """

    def __init__(self, source: Source, names: Sequence[str], stop: threading.Event) -> None:
        self.fingerprints: dict[str, FileFingerprint] = {}
        self.source = source
        self.names = names
        self.stop = stop

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, pair: object) -> bool:
        return isinstance(pair, tuple) and pair[0] in self.names

    def __iter__(self) -> Iterator[tuple[str, ImageContent]]:
        for name, image in self.source.images(self.names):
            if self.stop.is_set():
                return
            self.fingerprints[name] = self.source.fingerprint(name)
            yield name, image
