"""Whether a variant is healthy. One that is not is out of service, and the server goes on."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable

log = logging.getLogger(__name__)

# Looked at is the last minute: what a memory fault or an overflow does shows within seconds.
WINDOW_S = 60.0
BUCKET_S = 5.0
# Some images may overflow where others do not (fp16), and their callers are told. A variant that
# fails more than it answers serves nobody.
MOST = 0.5
# So many at least: a handful of odd images on a quiet server is not the variant's fault.
LEAST = 10
# An unhealthy variant is tested after `RETEST_S`, and after twice as long each time that the test,
# or the variant after it, fails again. Healthy for `STABLE_S`, it begins anew.
RETEST_S = 30.0
MAX_RETEST_S = 480.0
STABLE_S = 600.0


class VariantHealth:
    """Judges a variant by its answers, and keeps why it is out of service.

    Args:
        name: The variant's.
        clock: Tells the time, in seconds.

    Attributes:
        problem: Why its requests are refused; None while it is healthy.
    """

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self.problem: str | None = None
        self._name = name
        self._clock = clock
        self._watchers: list[Callable[[], object]] = []
        # Start of each bucket on the clock, answers, and how many of them are not numbers.
        self._buckets: deque[list[float]] = deque()
        self._failures = 0
        self._recovered_at = -math.inf

    @property
    def retest_s(self) -> float:
        """How long to wait until it is tested, in seconds."""
        return float(min(RETEST_S * 2.0 ** max(0, self._failures - 1), MAX_RETEST_S))

    def watch(self, see: Callable[[], object]) -> None:
        """Have a function called whenever `problem` has been set or cleared."""
        self._watchers.append(see)

    def observe(self, answers: int, non_finite: int) -> None:
        """Take in a batch; the variant is unhealthy once most of the last minute's are no numbers.

        Args:
            answers: How many answers it gave.
            non_finite: How many of them are not numbers.
        """
        now = self._clock()
        if not self._buckets or now >= self._buckets[-1][0] + BUCKET_S:
            self._buckets.append([now, 0, 0])
        self._buckets[-1][1] += answers
        self._buckets[-1][2] += non_finite
        if not non_finite:
            return
        while self._buckets[0][0] <= now - WINDOW_S:
            self._buckets.popleft()
        total = int(sum(bucket[1] for bucket in self._buckets))
        wrong = int(sum(bucket[2] for bucket in self._buckets))
        if wrong >= LEAST and wrong > MOST * total:
            self.fail(
                f"{wrong} of its last {total} answers are not numbers",
                "The weights are broken, in memory or in their file, or the precision is too low"
                " for them: load the variant again (LoadVariant with replace), check its file"
                " (resnet50-server variants verify), or serve --precision fp32",
            )

    def fail(self, problem: str, advice: str) -> None:
        """Take the variant out of service.

        Args:
            problem: What is wrong with it.
            advice: What an operator can do, for the log.
        """
        if self.problem is not None:
            return
        if self._clock() >= self._recovered_at + STABLE_S:
            self._failures = 0
        self._failures += 1
        self.problem = problem
        self._buckets.clear()
        log.error(
            "variant %s is out of service: %s. Its requests are refused with UNAVAILABLE; it is"
            " tested in %g s. %s",
            self._name,
            problem,
            self.retest_s,
            advice,
        )
        self._changed()

    def failed_again(self) -> None:
        """Take in that a test has failed: the next one comes later."""
        self._failures += 1

    def recover(self) -> None:
        """Take the variant into service again."""
        self.problem = None
        self._recovered_at = self._clock()
        log.warning("variant %s is in service again: it has passed its test", self._name)
        self._changed()

    def _changed(self) -> None:
        for see in self._watchers:
            see()
