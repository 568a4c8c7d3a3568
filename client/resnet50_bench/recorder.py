"""Recorder of the outcomes and latencies of a run's calls."""

from __future__ import annotations

import collections
import math
import threading
from array import array

from .calls import DROPPED, OK, Outcome


class Recorder:
    """Records calls, except those of the warm-up.

    Latencies and errors are of the calls whose *intended* time is within the measured time.
    Rates are of the responses that were *received* within it, so that a server with a backlog
    is not credited with work done afterwards.

    Args:
        starts: Start of the load, in loop time.
        warm_up_s: Duration of the warm-up in seconds.
        duration_s: Measured duration after that in seconds.
        timeout_s: Later responses, counted from a call's intended time, are not in time.
        requests: Maximum number of measured calls; None for no limit.
    """

    def __init__(
        self,
        starts: float,
        warm_up_s: float,
        duration_s: float,
        timeout_s: float,
        requests: int | None = None,
    ) -> None:
        self.counts_from = starts + warm_up_s
        self.ends = self.counts_from + duration_s
        self._timeout_s = timeout_s
        self._requests = requests if requests is not None else math.inf
        self.calls = 0  # intended within the measured time
        self.in_flight = 0
        self.answered = 0  # received within the measured time, as the next one
        self.on_time = 0
        self.good = 0  # number of `calls` that completed within their deadlines
        self.codes: collections.Counter[str] = collections.Counter()
        self._codes_lock = threading.Lock()  # the display's thread reads them
        self.batch_sizes: collections.Counter[int] = collections.Counter()
        # One number per successful call.
        self.latency_ms = array("f")
        self.decode_ms = array("f")
        self.queue_ms = array("f")
        self.compute_ms = array("f")
        self.total_ms = array("f")
        self.late_ms = array("f")  # delay of each call of an open loop by this process

    def wants(self, intended: float) -> bool:
        """Return True if a call with this intended time is part of the run."""
        return intended < self.ends and not self.enough

    @property
    def enough(self) -> bool:
        """True if `requests` calls were made."""
        return self.calls >= self._requests

    def close(self, now: float) -> None:
        """End the measured time early."""
        self.ends = max(self.counts_from, min(self.ends, now))

    @property
    def duration_s(self) -> float:
        """Measured time in seconds."""
        return self.ends - self.counts_from

    def late(self, intended: float, late_s: float) -> None:
        """Record a call's delay."""
        if self._counts(intended):
            self.late_ms.append(late_s * 1e3)

    def begin(self, intended: float) -> None:
        """Record the start of a call."""
        self.in_flight += 1
        self.calls += self._counts(intended)

    def end(self, intended: float, now: float, outcome: Outcome) -> None:
        """Record the outcome of a call."""
        self.in_flight -= 1
        in_time = outcome.code == OK and now - intended <= self._timeout_s
        if outcome.code == OK and self._counts(now):
            self.answered += 1
            self.on_time += in_time
        if not self._counts(intended):
            return
        with self._codes_lock:
            self.codes[outcome.code] += 1
        self.good += in_time
        if outcome.timing is None:
            return
        timing = outcome.timing
        self.latency_ms.append((now - intended) * 1e3)
        self.decode_ms.append(timing.decode_us / 1e3)
        self.queue_ms.append(timing.queue_us / 1e3)
        self.compute_ms.append(timing.compute_us / 1e3)
        self.total_ms.append(timing.total_us / 1e3)
        self.batch_sizes[timing.batch_size] += 1

    @property
    def errors(self) -> dict[str, int]:
        """Failed calls by status code; safe to read from another thread."""
        with self._codes_lock:
            counts = sorted(self.codes.items())
        return {code: count for code, count in counts if code not in (OK, DROPPED)}

    @property
    def dropped(self) -> int:
        """Number of frames replaced by newer ones."""
        return self.codes[DROPPED]

    def _counts(self, time: float) -> bool:
        return self.counts_from <= time < self.ends
