"""Detects a batch that does not return from the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from resnet50_server.runtime.clock import counted_s, poll_interval_s

from .batch import InFlightBatch

# A batch may take this many times the usual time of its size: slow is not hung.
SLOW_FACTOR = 10.0


class HangDetector:
    """Polls how long the batches of a device have run. Event loop only.

    Time in which the whole process was stopped does not count.

    Args:
        timeout_s: How long a batch may take, in seconds, or `SLOW_FACTOR` times the usual time if
            that is longer; 0 turns the detector off.
        in_flight: Batches submitted to the engine, in that order.
        workers: How many of them compute at once: the first ones.
        on_hung: Called with the first batch that has taken longer; polling ends then.
    """

    def __init__(
        self,
        timeout_s: float,
        in_flight: Sequence[InFlightBatch],
        workers: int,
        on_hung: Callable[[InFlightBatch], None],
    ) -> None:
        self._timeout_s = timeout_s
        self._interval_s = poll_interval_s(timeout_s)
        self._in_flight = in_flight
        self._workers = workers
        self._on_hung = on_hung
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._polled_at = 0.0

    def start(self) -> None:
        """Poll until no batch is in flight."""
        if self._timeout_s and self._timer is None:
            self._schedule()

    def close(self) -> None:
        """Stop polling."""
        if self._timer is not None:
            self._timer.cancel()

    def _schedule(self) -> None:
        self._polled_at = self._loop.time()
        self._timer = self._loop.call_later(self._interval_s, self._poll)

    def _poll(self) -> None:
        passed_s = counted_s(self._loop.time() - self._polled_at, self._interval_s)
        for batch in self._in_flight[: self._workers]:
            batch.ran_s += passed_s
            usual_s = batch.queue.latency.batch_s(len(batch))
            if batch.ran_s >= max(self._timeout_s, SLOW_FACTOR * usual_s):
                self._on_hung(batch)
                return
        self._timer = None
        if self._in_flight:
            self._schedule()
