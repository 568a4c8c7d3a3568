"""How many images of a variant the device has memory for at once, as far as is known."""

from __future__ import annotations

import math

# After a batch that did not fit, so long none is larger than what did. A few batches that are tried
# in vain in half a minute cost nothing, and full ones are back soon after the memory is.
HOLD_S = 30.0


class BatchLimit:
    """The largest batch; less for a while after one that did not fit.

    Args:
        images: The largest batch there may be.
    """

    def __init__(self, images: int) -> None:
        self._images = self._fits = images
        self._until = -math.inf

    def now(self, now: float) -> int:
        """Return how many images the next batch may hold.

        Args:
            now: Loop time.
        """
        return self._fits if now < self._until else self._images

    def did_not_fit(self, images: int, now: float) -> bool:
        """Take in that the device had no memory for a batch of so many.

        Returns:
            Whether memory is short since now, and not already before.
        """
        fresh = now >= self._until
        self._fits = max(1, min(self.now(now), images // 2))
        self._until = now + HOLD_S
        return fresh
