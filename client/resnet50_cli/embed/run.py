"""One run of `resnet50 embed`: the missing embeddings, then the output."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import closing

from rich.progress import Progress

from resnet50_client.types import Embedding

from ..image_files import STDIN
from ..images import BulkCall, answers, warn_of_image
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
        skipped: Number of images that are in the output already.
        written: Number of embeddings written to the output.
        complete: Whether all images have a result.
    """

    def __init__(
        self, images: list[str], checkpoint: Checkpoint, existing: Existing | None = None
    ) -> None:
        self.checkpoint = checkpoint
        self.failed = self.skipped = self.written = 0
        self.complete = False
        self._existing = existing
        self._images = images
        if existing is not None:
            # "-" is another image each time.
            embedded = existing.embedded - {STDIN}
            self._images = [path for path in images if path not in embedded]
            self.skipped = len(images) - len(self._images)
        # Of each file, when the sending thread passed it on.
        self._fingerprints: dict[str, FileFingerprint] = {}

    def fill(
        self, call: BulkCall[Embedding], background: str, stop: threading.Event, bar: Progress
    ) -> None:
        """Compute the missing embeddings, until all are done or `stop` is set."""
        missing = self._missing()
        done = len(self._images) - len(missing)
        task = bar.add_task("embedding", total=len(self._images), completed=done)

        def sent() -> Iterator[str]:
            for path in missing:
                if stop.is_set():
                    return
                self._fingerprints[path] = fingerprint_of(path)
                yield path

        results = 0
        try:
            with closing(answers(call, sent())) as found:
                for answer in found:
                    fingerprint = self._fingerprints.pop(answer.path)
                    if isinstance(answer.outcome, Exception):
                        self.failed += 1
                        text = error_text(answer.outcome)
                        warn(f"{answer.path}: {text}")
                        self.checkpoint.add_error(answer.path, fingerprint, text)
                    else:
                        warn_of_image(answer)
                        self.checkpoint.add(answer.path, fingerprint, answer.outcome, background)
                    results += 1
                    bar.advance(task)
        finally:
            self.checkpoint.flush()
        self.complete = results == len(missing)

    def write(self, output: Output) -> None:
        """Write the output from the checkpoint, then delete the checkpoint.

        Raises:
            ValueError: The output's vectors are of another provenance.
            OSError: The output cannot be written.
        """
        contains = self.checkpoint.contains
        embedded = [path for path in self._images if contains(path)]
        others = len(self.checkpoint) - len(embedded)
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


def fingerprint_of(path: str) -> FileFingerprint:
    """Return a file's fingerprint; one that no file has for images on stdin."""
    if path == STDIN:
        return FileFingerprint(-1, os.getpid())  # never the same again
    try:
        status = os.stat(path)
    except OSError:
        return FileFingerprint(-1, -1)  # reading it will fail with the reason
    return FileFingerprint(status.st_size, status.st_mtime_ns)
