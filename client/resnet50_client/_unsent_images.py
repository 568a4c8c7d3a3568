"""Images of a bulk run that were read and not sent yet."""

from __future__ import annotations

import collections

from ._batch_sizes import BatchSizes, message_bytes
from ._bulk_images import BulkImage


class UnsentImages:
    """Images in the order of reading: small ones for batches, large ones for calls of their own.

    Args:
        sizes: Limits of a batch.
    """

    def __init__(self, sizes: BatchSizes) -> None:
        self._sizes = sizes
        self._small: collections.deque[BulkImage] = collections.deque()
        self._large: collections.deque[BulkImage] = collections.deque()

    def __len__(self) -> int:
        return len(self._small) + len(self._large)

    @property
    def send_by(self) -> float | None:
        """When the oldest small image is sent, by the clock, in an incomplete batch if need be."""
        return self._small[0].send_by if self._small else None

    def add(self, image: BulkImage) -> None:
        """Add an image that was read."""
        large = message_bytes([image]) > self._sizes.max_bytes
        (self._large if large else self._small).append(image)

    def take(self, count: int, now: float, no_more_soon: bool) -> list[BulkImage]:
        """Remove and return the images of the next call; [] while a batch is incomplete.

        Args:
            count: How many small images are wanted in a batch.
            now: The time, by the clock.
            no_more_soon: No image will be read before another one is answered.
        """
        if self._large and (not self._small or self._large[0].index < self._small[0].index):
            return [self._large.popleft()]
        # With a slow source a part of a batch is sent, rather than waiting for the rest.
        if self._small and (
            len(self._small) >= count
            or no_more_soon
            or now >= self._small[0].send_by
            or message_bytes(self._small) >= self._sizes.max_bytes
        ):
            return self._sizes.take(self._small, count)
        return [self._large.popleft()] if self._large else []
