"""One run of `resnet50 embed`: the missing embeddings, then the output."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing

from rich.progress import Progress

from resnet50_client.images import ImageInput
from resnet50_client.types import Embedding

from ..image_files import STDIN
from ..images import MAX_UNANSWERED, BulkCall, is_unanswered, warn_of_result
from ..output import error_text, warn
from .checkpoint import Checkpoint, FileFingerprint
from .outputs import Existing, Output, Results
from .provenance import Provenance


class Run:
    """One run of the command, which resumes from a checkpoint.

    Args:
        images: Paths of all images, each once, in order.
        checkpoint: Results of earlier runs.
        existing: Content of the output, if the run appends to it.

    Attributes:
        failed: Number of images that failed.
        unanswered: Number of images that the servers did not answer in time.
        written: Number of embeddings written to the output.
        complete: Whether all images have a result.
    """

    def __init__(
        self, images: list[str], checkpoint: Checkpoint, existing: Existing | None = None
    ) -> None:
        self.checkpoint = checkpoint
        self.failed = self.unanswered = self.written = 0
        self.complete = False
        self._existing = existing
        # "-" is another image each time.
        present = existing.embedded - {STDIN} if existing is not None else set()
        self._images = [path for path in images if path not in present]
        self._present = [path for path in images if path in present]

    @property
    def skipped(self) -> int:
        """Number of images that are in the output already."""
        return len(self._present)

    def fill(
        self, call: BulkCall[Embedding], background: str, stop: threading.Event, bar: Progress
    ) -> None:
        """Compute the missing embeddings, until all are done or `stop` is set.

        Images that are not answered in time are no failed images: a later run sends them again.
        """
        missing = _Images(self._missing(), stop)
        done = len(self._images) - len(missing)
        task = bar.add_task("embedding", total=len(self._images), completed=done)
        results = in_a_row = 0
        try:
            with closing(call(missing)) as outcomes:
                for path, outcome in outcomes:
                    fingerprint = missing.fingerprints.pop(path)
                    if isinstance(outcome, Exception) and is_unanswered(outcome):
                        self.unanswered += 1
                        in_a_row += 1
                        warn(f"{path}: {error_text(outcome)}")
                        if in_a_row == MAX_UNANSWERED:
                            break
                        continue
                    self._add(path, fingerprint, outcome, background)
                    in_a_row = 0
                    results += 1
                    bar.advance(task)
        finally:
            self.checkpoint.flush()
        self.complete = results == len(missing)

    def _add(
        self,
        path: str,
        fingerprint: FileFingerprint,
        outcome: Embedding | Exception,
        background: str,
    ) -> None:
        if isinstance(outcome, Exception):
            self.failed += 1
            text = error_text(outcome)
            warn(f"{path}: {text}")
            self.checkpoint.add_error(path, fingerprint, text)
        else:
            warn_of_result(path, outcome)
            self.checkpoint.add(path, fingerprint, outcome, background)

    def write(self, output: Output) -> None:
        """Write the output from the checkpoint, then delete the checkpoint.

        Raises:
            ValueError: The output's vectors are of another provenance.
            OSError: The output cannot be written.
        """
        contains = self.checkpoint.contains
        embedded = [path for path in self._images if contains(path)]
        others = len(self.checkpoint) - len(embedded) - sum(map(contains, self._present))
        if others:
            warn(f"{others} images of an earlier run are not among these and are omitted")
        if embedded:
            errors = dict(self.checkpoint.errors())
            failed = {path: errors[path] for path in self._images if path in errors}
            results = Results(self.checkpoint, embedded, failed)
            if self._existing is None:
                output.write(results)
            else:
                self.check(output, results.provenance)
                output.append(results, self._existing)
        self.written = len(embedded)
        self.checkpoint.remove()

    def check(self, output: Output, provenance: Provenance) -> None:
        """Check that vectors can be added to the output, if the run appends, and the checkpoint.

        Raises:
            ValueError: They are of another provenance.
        """
        self.checkpoint.check(provenance)
        if self._existing is not None:
            remedy = "pass the --variant and the options of its vectors, or another --out"
            self._existing.provenance.check(provenance, output.path, remedy)

    def _missing(self) -> list[str]:
        """Return the images that have no vector, or have changed since it was computed."""
        if not len(self.checkpoint):
            return self._images
        saved = ((path, self.checkpoint.fingerprint(path)) for path in self._images)
        return [path for path, known in saved if known is None or known != fingerprint_of(path)]


class _Images(Collection[tuple[str, ImageInput]]):
    """Pairs (path, image), as `keyed` calls take them, with the files' fingerprints.

    A collection, because the SDK reads the files of a collection in parallel.

    Args:
        paths: The images' paths.
        stop: No image follows after this is set.

    Attributes:
        fingerprints: Of each file since before it was read.
    """

    def __init__(self, paths: Sequence[str], stop: threading.Event) -> None:
        self.fingerprints: dict[str, FileFingerprint] = {}
        self._paths = paths
        self._stop = stop

    def __len__(self) -> int:
        return len(self._paths)

    def __contains__(self, pair: object) -> bool:
        return isinstance(pair, tuple) and pair[0] in self._paths

    def __iter__(self) -> Iterator[tuple[str, ImageInput]]:
        for path in self._paths:
            if self._stop.is_set():
                return
            self.fingerprints[path] = fingerprint_of(path)
            yield path, sys.stdin.buffer if path == STDIN else path


def fingerprint_of(path: str) -> FileFingerprint:
    """Return a file's fingerprint; one that no file has for images on stdin."""
    if path == STDIN:
        return FileFingerprint(-1, os.getpid())  # never the same again
    try:
        status = os.stat(path)
    except OSError:
        return FileFingerprint(-1, -1)  # reading it will fail with the reason
    return FileFingerprint(status.st_size, status.st_mtime_ns)
