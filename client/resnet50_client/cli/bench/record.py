"""What became of the calls of one run."""

from __future__ import annotations

import collections
import math
import threading
from array import array

from .calls import DROPPED, OK, Outcome


class Record:
    """Takes note of calls; those meant for the warm-up are not counted.

    Latencies and errors are those of calls that were *meant* within the measured time, whenever
    their answers came. Rates are of answers that *came* within it, whenever their calls were made:
    otherwise a server that is behind would be credited with work that it did afterwards.

    Args:
        starts: When the load starts, in loop time.
        warm_up_s: How long nothing counts.
        duration_s: How long is measured after that.
        timeout_s: Answers later than that, counted from when their call was meant, are no good.
        requests: Enough after so many measured calls; None for no such limit.
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
        self.calls = 0  # meant within the measured time
        self.under_way = 0
        self.answered = 0  # came within the measured time, and so the next one
        self.on_time = 0
        self.good = 0  # of `calls`, those answered within their deadlines
        self.codes: collections.Counter[str] = collections.Counter()
        self._codes_lock = threading.Lock()  # the screen's thread looks at them
        self.batch_sizes: collections.Counter[int] = collections.Counter()
        # One number a call; of those with an answer.
        self.latency_ms = array("f")
        self.decode_ms = array("f")
        self.queue_ms = array("f")
        self.compute_ms = array("f")
        self.total_ms = array("f")
        self.late_ms = array("f")  # of calls of an open loop: how late this process made them

    def wants(self, meant: float) -> bool:
        """Return whether a call meant for that time is still wanted."""
        return meant < self.ends and not self.enough

    @property
    def enough(self) -> bool:
        """Whether no further calls are wanted, whatever the time."""
        return self.calls >= self._requests

    def close(self, now: float) -> None:
        """End the measured time before it is over."""
        self.ends = max(self.counts_from, min(self.ends, now))

    @property
    def duration_s(self) -> float:
        """How long was measured, in seconds."""
        return self.ends - self.counts_from

    def late(self, meant: float, late_s: float) -> None:
        """Note how late a call is made."""
        if self._counts(meant):
            self.late_ms.append(late_s * 1e3)

    def begin(self, meant: float) -> None:
        """Note that a call is made."""
        self.under_way += 1
        self.calls += self._counts(meant)

    def end(self, meant: float, now: float, outcome: Outcome) -> None:
        """Note what became of a call."""
        self.under_way -= 1
        in_time = outcome.code == OK and now - meant <= self._timeout_s
        if outcome.code == OK and self._counts(now):
            self.answered += 1
            self.on_time += in_time
        if not self._counts(meant):
            return
        with self._codes_lock:
            self.codes[outcome.code] += 1
        self.good += in_time
        if outcome.timing is None:
            return
        timing = outcome.timing
        self.latency_ms.append((now - meant) * 1e3)
        self.decode_ms.append(timing.decode_us / 1e3)
        self.queue_ms.append(timing.queue_us / 1e3)
        self.compute_ms.append(timing.compute_us / 1e3)
        self.total_ms.append(timing.total_us / 1e3)
        self.batch_sizes[timing.batch_size] += 1

    @property
    def errors(self) -> dict[str, int]:
        """How many calls failed, by status code; may be read from another thread."""
        with self._codes_lock:
            counts = sorted(self.codes.items())
        return {code: count for code, count in counts if code not in (OK, DROPPED)}

    @property
    def dropped(self) -> int:
        """How many frames had their place taken by a newer one."""
        return self.codes[DROPPED]

    def _counts(self, time: float) -> bool:
        return self.counts_from <= time < self.ends
