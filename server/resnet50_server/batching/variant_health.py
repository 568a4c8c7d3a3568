"""A circuit breaker for one variant: a failing variant leaves service, the server continues."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable

log = logging.getLogger(__name__)

# Results of the last minute are judged: a memory fault or an overflow shows within seconds.
WINDOW_S = 60.0
BUCKET_S = 5.0
# Some images may overflow where others do not (fp16), and their clients get an error. A variant
# that fails more often than it answers is of no use.
MAX_NON_FINITE_SHARE = 0.5
# The minimum number of failures: a few odd images on a quiet server are not the variant's fault.
MIN_NON_FINITE = 10
# A variant out of service is tested after `RETEST_S`, and after twice as long each time that the
# test, or the variant after it, fails again. After `STABLE_S` in service it begins anew.
RETEST_S = 30.0
MAX_RETEST_S = 480.0
STABLE_S = 600.0


class NonFiniteMonitor:
    """Counts results with NaN or Inf over a sliding window.

    Args:
        clock: Returns the time, in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        # Start of each bucket, results, non-finite results.
        self._buckets: deque[list[float]] = deque()

    def __len__(self) -> int:
        """Return how many buckets of `BUCKET_S` are remembered."""
        return len(self._buckets)

    def record(self, results: int, non_finite: int) -> str | None:
        """Count the results of a batch; return the problem if too many are non-finite."""
        now = self._clock()
        if not self._buckets or now >= self._buckets[-1][0] + BUCKET_S:
            self._buckets.append([now, 0, 0])
        while self._buckets[0][0] <= now - WINDOW_S:
            self._buckets.popleft()
        self._buckets[-1][1] += results
        self._buckets[-1][2] += non_finite
        if not non_finite:
            return None
        total = int(sum(bucket[1] for bucket in self._buckets))
        failed = int(sum(bucket[2] for bucket in self._buckets))
        if failed < MIN_NON_FINITE or failed <= MAX_NON_FINITE_SHARE * total:
            return None
        return f"{failed} of its last {total} results have NaN or Inf"

    def reset(self) -> None:
        """Forget all results."""
        self._buckets.clear()


class VariantHealth:
    """Takes a variant out of service by its results, and knows why.

    Args:
        name: The variant's name.
        clock: Returns the time, in seconds.

    Attributes:
        problem: Why the variant is out of service; None while it is in service.
    """

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self.problem: str | None = None
        self._name = name
        self._clock = clock
        self._monitor = NonFiniteMonitor(clock)
        self._callbacks: list[Callable[[], object]] = []
        self._failures = 0
        self._recovered_at = -math.inf

    @property
    def retest_s(self) -> float:
        """The pause before the next test, in seconds."""
        return float(min(RETEST_S * 2.0 ** max(0, self._failures - 1), MAX_RETEST_S))

    def on_change(self, callback: Callable[[], object]) -> None:
        """Call a function whenever `problem` was set or cleared."""
        self._callbacks.append(callback)

    def record(self, results: int, non_finite: int) -> None:
        """Count the results of a batch, and fail if too many of the last minute are non-finite.

        Args:
            results: Number of results.
            non_finite: How many of them have NaN or Inf.
        """
        problem = self._monitor.record(results, non_finite)
        if problem is not None:
            self.fail(
                problem,
                "The weights are broken, in memory or in their file, or the precision is too low"
                " for them: load the variant again (LoadVariant with replace), check its file"
                " (resnet50-server variants verify), or serve --precision fp32",
            )

    def fail(self, problem: str, advice: str) -> None:
        """Take the variant out of service.

        Args:
            problem: Description of the problem.
            advice: Advice to the operator, for the log.
        """
        if self.problem is not None:
            return
        if self._clock() >= self._recovered_at + STABLE_S:
            self._failures = 0
        self._failures += 1
        self.problem = problem
        self._monitor.reset()
        log.error(
            "variant %s is out of service: %s. Its requests are refused with UNAVAILABLE; it is"
            " tested in %g s. %s",
            self._name,
            problem,
            self.retest_s,
            advice,
        )
        self._notify()

    def on_test_failed(self) -> None:
        """Double the pause before the next test."""
        self._failures += 1

    def recover(self) -> None:
        """Take the variant into service again."""
        self.problem = None
        self._recovered_at = self._clock()
        log.warning("variant %s is in service again: it passed its self-test", self._name)
        self._notify()

    def _notify(self) -> None:
        for callback in self._callbacks:
            callback()
