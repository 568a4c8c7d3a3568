"""Recorder of the outcomes and latencies of a run's calls."""

from __future__ import annotations

import collections
import dataclasses
import math
import threading
from array import array
from dataclasses import dataclass

from .calls import DROPPED, OK, Outcome
from .recording import Recording
from .resource_usage import GeneratorMeter

# The display shows the latencies of as many responses.
NEWEST = 1000


@dataclass(frozen=True)
class Progress:
    """State of a run in progress.

    Attributes:
        calls: Number of measured calls so far.
        in_flight: Number of calls without an outcome.
        answered: Number of successful calls.
        errors: Failed calls by status code.
        newest_ms: Latencies of the newest responses, at most `NEWEST`.
    """

    calls: int = 0
    in_flight: int = 0
    answered: int = 0
    errors: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    newest_ms: array[float] = dataclasses.field(default_factory=lambda: array("f"))

    def __add__(self, other: Progress) -> Progress:
        """Return the state of two parts of a run."""
        return Progress(
            self.calls + other.calls,
            self.in_flight + other.in_flight,
            self.answered + other.answered,
            self.errors + other.errors,
            self.newest_ms + other.newest_ms,
        )


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

    def progress(self) -> Progress:
        """Return the state of the run; may be called from another thread."""
        return Progress(
            calls=self.calls,
            in_flight=self.in_flight,
            answered=len(self.latency_ms),
            errors=collections.Counter(self.errors),
            newest_ms=self.latency_ms[-NEWEST:],
        )

    def recording(self, own: GeneratorMeter, interrupted: bool) -> Recording:
        """Return all that was recorded, at the end of the run.

        Args:
            own: Resource usage of this process.
            interrupted: True if the run was stopped early.
        """
        return Recording(
            duration_s=self.duration_s,
            interrupted=interrupted,
            calls=self.calls,
            answered=self.answered,
            on_time=self.on_time,
            good=self.good,
            codes=self.codes,
            batch_sizes=self.batch_sizes,
            latency_ms=self.latency_ms,
            decode_ms=self.decode_ms,
            queue_ms=self.queue_ms,
            compute_ms=self.compute_ms,
            total_ms=self.total_ms,
            late_ms=self.late_ms,
            loop_lag_ms=own.loop_lag_ms,
            cpu_share=own.cpu_share,
        )

    @property
    def dropped(self) -> int:
        """Number of frames replaced by newer ones."""
        return self.codes[DROPPED]

    def _counts(self, time: float) -> bool:
        return self.counts_from <= time < self.ends
