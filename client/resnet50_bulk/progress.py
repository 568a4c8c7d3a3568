"""Progress of a run: images done, rate and remaining time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from .run import RunObserver

log = logging.getLogger(__name__)

INTERVAL_S = 10.0


@dataclass(frozen=True)
class Progress:
    """Progress of a run.

    Attributes:
        done: Images with a result or an error, those of earlier runs included.
        failed: Images with an error in this run.
        total: All images.
        images_per_s: Rate of this run.
    """

    done: int
    failed: int
    total: int
    images_per_s: float

    @property
    def remaining_s(self) -> float | None:
        """Expected time until all images are done, in seconds; None while the rate is unknown."""
        return (self.total - self.done) / self.images_per_s if self.images_per_s else None

    def __str__(self) -> str:
        left = "" if self.remaining_s is None else f", {self.remaining_s:.0f} s left"
        return (
            f"{self.done} of {self.total} images, {self.failed} failed,"
            f" {self.images_per_s:.1f} images/s{left}"
        )


OnProgress: TypeAlias = Callable[[Progress], None]


class ProgressObserver(RunObserver):
    """Reports the progress of a run every `interval_s`, and at its end.

    Args:
        on_progress: Called with the progress; None to log it.
        interval_s: In seconds.
        clock: Tells the time, in seconds.
    """

    def __init__(
        self,
        on_progress: OnProgress | None = None,
        interval_s: float = INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_progress = on_progress or (lambda progress: log.info("%s", progress))
        self._interval_s = interval_s
        self._clock = clock
        self._total = self._before = self._done = self._failed = 0
        self._started = self._reported = 0.0

    def on_start(self, total: int, done: int) -> None:
        """See `RunObserver`."""
        self._total, self._before = total, done
        self._started = self._reported = self._clock()

    def on_result(self, name: str) -> None:
        """See `RunObserver`."""
        self.count()

    def on_failed(self, name: str, error: Exception) -> None:
        """See `RunObserver`."""
        log.warning("%s: %s", name, error)
        self.count(failed=True)

    def on_omitted(self, count: int) -> None:
        """See `RunObserver`."""
        log.warning("%d images of an earlier run are not among these and are omitted", count)

    def count(self, *, failed: bool = False) -> None:
        """Count an image that is done, and report the progress if it is time."""
        self._done += 1
        self._failed += failed
        now = self._clock()
        done = self._before + self._done
        if now - self._reported >= self._interval_s or done == self._total:
            self._reported = now
            rate = self._done / max(now - self._started, 1e-9)
            self._on_progress(Progress(done, self._failed, self._total, rate))
