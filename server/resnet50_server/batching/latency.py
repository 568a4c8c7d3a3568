"""Latency model: how long a batch takes, learned from the batches that ran."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

# A batch counts as at most this many times its expected duration.
CLIP = 4.0
# Number of batches after which expected durations are reliable enough for that.
CLIP_AFTER = 8.0
# A batch that takes less than this part of its expected duration shows that a slow phase is over.
FAST = 0.5
# The part of their weight that earlier batches keep then.
KEPT_WHEN_FAST = 0.1
# Number of batches of which the shortest is known.
RECENT = 16
# Batches may have so many times as many images as the largest one that was measured.
GROWTH = 2
# A batch is efficient if its throughput is at least this part of the largest batch's.
EFFICIENT = 0.96


class LatencyModel:
    """t(b) = α + β·b seconds for a batch of b images, fitted online.

    Least squares with exponential forgetting, α and β not negative. An estimate needs one batch;
    the slope needs two different sizes. Until then it is 0, which never overestimates larger
    batches, so that no request is refused that could have been served.

    Args:
        padded: Returns how many images the device computes for a batch; see `Engine.padded`. The
            batch is observed, and estimated, as one of that size. None for its own size.
        memory: Time constant of the forgetting, in batches.
        steady: Whether batches of one size take about as long unless the device is slowed down.
            Then a batch that is much faster than expected shows that it no longer is, and those
            before it are largely forgotten.

    Attributes:
        alpha_s: Fixed cost of a batch, in seconds; 0 before the first one.
        beta_s: Cost of each of its images, in seconds.
    """

    def __init__(
        self,
        padded: Callable[[int], int] | None = None,
        memory: int = 200,
        steady: bool = False,
    ) -> None:
        self.alpha_s = self.beta_s = 0.0
        self._padded = padded or int
        self._keep = 1.0 - 1.0 / memory
        self._steady = steady
        self._recent: deque[float] = deque(maxlen=RECENT)
        # Of sizes and durations: means, the sizes' variance, and their covariance; weighted.
        self._weight = self._size = self._s = self._variance = self._covariance = 0.0
        self._largest = 0

    @property
    def known(self) -> bool:
        """True once a batch was observed."""
        return self._largest > 0

    def covers(self, images: int) -> bool:
        """Return whether a batch of `images` images, or a larger one, was observed."""
        return 0 < self._padded(images) <= self._largest

    def observe(self, images: int, duration_s: float) -> None:
        """Learn from a batch of `images` images that took `duration_s` seconds.

        A batch that took far longer than expected, for example because the process was stopped,
        counts as `CLIP` times the expected; a device that became slower is learned all the same.
        """
        size, keep = self._padded(images), self._keep
        expected_s = self.alpha_s + self.beta_s * size
        self._recent.append(duration_s)
        if duration_s > CLIP * expected_s and self._weight >= CLIP_AFTER:
            duration_s = min(duration_s, CLIP * self._longest_s(size))
        if self._steady and duration_s < FAST * expected_s:
            keep = KEPT_WHEN_FAST
        self._largest = max(self._largest, size)
        self._weight = weight = keep * self._weight + 1.0
        # By West's update, which needs no sums of squares.
        off_size, off_s, kept = size - self._size, duration_s - self._s, 1.0 - 1.0 / weight
        self._size = mean = self._size + off_size / weight
        self._s += off_s / weight
        self._variance = kept * (self._variance + off_size * off_size / weight)
        self._covariance = kept * (self._covariance + off_size * off_s / weight)
        if self._variance > 1e-9 * mean * mean:
            self.beta_s = max(0.0, self._covariance / self._variance)
        # Otherwise all sizes but one are forgotten, and the slope stays as it was.
        self.alpha_s = self._s - self.beta_s * mean
        if self.alpha_s < 0.0:
            # The best line through the origin.
            self.alpha_s = 0.0
            self.beta_s = (self._covariance + mean * self._s) / (self._variance + mean * mean)

    def batch_s(self, images: int) -> float:
        """Return how long one batch of `images` images takes, in seconds."""
        return self.alpha_s + self.beta_s * self._padded(images)

    @property
    def shortest_s(self) -> float:
        """How long the fastest of the last `RECENT` batches took, in seconds; 0 if unknown."""
        return min(self._recent, default=0.0)

    def estimate_s(self, images: int, max_batch_size: int) -> float:
        """Return seconds to compute `images` images in batches of at most `max_batch_size`."""
        full, rest = divmod(images, max_batch_size)
        needed_s = self.batch_s(rest) if rest else 0.0
        return needed_s + full * self.batch_s(max_batch_size) if full else needed_s

    def size(self, limit: int, within_s: float) -> int:
        """Return the size of the largest batch that takes `within_s` at most.

        If that one is not efficient, the smallest efficient size. Where the time is short, it is
        at most `GROWTH` times as large as the largest batch that was measured.

        Args:
            limit: Maximum number of images in a batch.
            within_s: How long it should take, in seconds.
        """
        if self._longest_s(self._padded(limit)) <= max(0.0, within_s):
            return limit
        limit = min(limit, GROWTH * self._largest)
        # From n / (α + β·n) = EFFICIENT · limit / (α + β·limit).
        fixed_s, all_s = self.alpha_s, self.beta_s * limit
        efficient = EFFICIENT * limit * fixed_s / (fixed_s + (1.0 - EFFICIENT) * all_s)
        fitting = (within_s - fixed_s) / self.beta_s if self.beta_s > 0.0 else 0.0
        return max(1, min(limit, self._padded(max(math.ceil(efficient), int(fitting)))))

    def _longest_s(self, size: int) -> float:
        """Return how long a batch takes at most, in seconds.

        One that is larger than any that was measured may take proportionally longer.

        Args:
            size: How many images the device computes for it.
        """
        seen = min(size, self._largest) or size
        return (self.alpha_s + self.beta_s * seen) * (size / seen)


class JitterMargin:
    """How much later than expected answers leave, estimated like TCP's round trips (RFC 6298).

    The mean error plus four mean deviations, both smoothed exponentially. An early answer never
    widens the deviation: it makes no other one late.

    Attributes:
        seconds: The margin to add to an expected time; never negative.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._mean = self._deviation = 0.0

    def observe(self, error_s: float) -> None:
        """Learn from an answer that was so much later than expected, in seconds."""
        off = error_s - self._mean
        self._mean += off / 8
        self._deviation += (max(off, min(-off, self._deviation)) - self._deviation) / 4
        self.seconds = max(0.0, self._mean + 4 * self._deviation)
