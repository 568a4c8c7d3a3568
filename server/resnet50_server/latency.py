"""How long a batch takes, learned from the batches that ran."""

from __future__ import annotations

import math

CLIP = 4.0
# Batches until the fit is worth comparing with; the first ones are slow while memory is allocated.
CLIP_AFTER = 8


class LatencyModel:
    """t(b) = α + β·b seconds for a batch of b images, fitted online.

    Least squares with exponential forgetting (design §7). An estimate needs one batch; the slope
    needs two different sizes, until then it is taken as 0, which never overestimates larger batches
    and so never refuses what could have been served.

    Args:
        memory: How many batches the fit remembers, as the time constant of the forgetting.
    """

    def __init__(self, memory: int = 200) -> None:
        self._keep = 1.0 - 1.0 / memory
        self._weight = self._b = self._t = self._bb = self._bt = 0.0

    def observe(self, batch_size: int, duration_s: float) -> None:
        """Take in a batch of `batch_size` images that took `duration_s` seconds.

        A batch that took far longer than expected, because the process was stopped, say, counts as
        `CLIP` times the expected: a device that has really become slower is learned all the same.
        """
        if self._weight >= CLIP_AFTER:
            duration_s = min(duration_s, CLIP * self.estimate_s(batch_size, batch_size))
        keep = self._keep
        self._weight = keep * self._weight + 1.0
        self._b = keep * self._b + batch_size
        self._t = keep * self._t + duration_s
        self._bb = keep * self._bb + batch_size * batch_size
        self._bt = keep * self._bt + batch_size * duration_s

    @property
    def coefficients(self) -> tuple[float, float]:
        """(α, β) in seconds and seconds per image; (0, 0) before the first batch."""
        if self._weight == 0.0:
            return 0.0, 0.0
        mean_b, mean_t = self._b / self._weight, self._t / self._weight
        spread = self._bb / self._weight - mean_b * mean_b
        if spread <= 1e-9 * max(1.0, mean_b * mean_b):
            return mean_t, 0.0
        slope = max(0.0, (self._bt / self._weight - mean_b * mean_t) / spread)
        return max(0.0, mean_t - slope * mean_b), slope

    def estimate_s(self, images: int, max_batch_size: int) -> float:
        """Return seconds to compute `images` images in batches of at most `max_batch_size`."""
        if images <= 0:
            return 0.0
        alpha, beta = self.coefficients
        return alpha * math.ceil(images / max_batch_size) + beta * images

    def images_within(self, duration_s: float) -> int:
        """Return how many images one batch can hold to last at most `duration_s`; at most 2**31."""
        alpha, beta = self.coefficients
        if duration_s < alpha:
            return 0
        return 2**31 if beta == 0.0 else min(2**31, int((duration_s - alpha) / beta))
