"""Whether what a variant answers are numbers."""

from __future__ import annotations

from collections import deque

# Looked at is the last minute: what a memory fault or an overflow does shows within seconds, and a
# variant that nobody asks any more has its next chance after that.
WINDOW_S = 60.0
BUCKET_S = 5.0
# Some images may overflow where others do not (fp16), and their callers are told. A server that
# fails more than it answers is worth less in a pool than none: nobody makes a failed call again.
MOST = 0.5
# So many at least: a handful of odd images on a quiet server is not the variant's fault.
LEAST = 10


class Soundness:
    """Counts a variant's answers of the last minute; those that are not numbers apart."""

    def __init__(self) -> None:
        # Start of each bucket in loop time, answers, and how many of them are not numbers.
        self._buckets: deque[list[float]] = deque()

    def observe(self, answers: int, not_numbers: int, now: float) -> None:
        """Take in a batch.

        Args:
            answers: How many answers it gave.
            not_numbers: How many of them are not numbers.
            now: Loop time.
        """
        if not self._buckets or now >= self._buckets[-1][0] + BUCKET_S:
            self._forget(now)
            self._buckets.append([now, 0, 0])
        self._buckets[-1][1] += answers
        self._buckets[-1][2] += not_numbers

    def problem(self, now: float) -> str | None:
        """Say what is wrong with the variant; None if it is sound.

        Args:
            now: Loop time.
        """
        self._forget(now)
        answers = int(sum(bucket[1] for bucket in self._buckets))
        wrong = int(sum(bucket[2] for bucket in self._buckets))
        if wrong < LEAST or wrong <= MOST * answers:
            return None
        return f"{wrong} of its last {answers} answers are not numbers"

    def _forget(self, now: float) -> None:
        while self._buckets and self._buckets[0][0] <= now - WINDOW_S:
            self._buckets.popleft()
