"""Batch sizes that an engine prepares; a batch runs in the smallest bucket that fits it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable


class Buckets:
    """Batch sizes: the powers of two below the largest, and the largest itself.

    Args:
        max_batch_size: The largest batch.
        sizes: Other sizes instead of the powers of two; the largest is always among them.

    Raises:
        ValueError: A size is not between 1 and `max_batch_size`.
    """

    def __init__(self, max_batch_size: int, sizes: Iterable[int] | None = None) -> None:
        if sizes is None:
            sizes = (2**power for power in range(max_batch_size.bit_length()))
        found = {*sizes, max_batch_size}
        if min(found) < 1 or max(found) > max_batch_size:
            raise ValueError(
                f"buckets: {sorted(found)} must lie between 1 and max_batch_size ({max_batch_size})"
            )
        self.sizes = tuple(sorted(found))

    @property
    def largest(self) -> int:
        """The largest batch."""
        return self.sizes[-1]

    def bucket_for(self, images: int) -> int:
        """Return the smallest size that fits `images`.

        Raises:
            ValueError: There is none.
        """
        if not 1 <= images <= self.largest:
            raise ValueError(
                f"a batch has {images} images; this engine was prepared for 1 to {self.largest}"
                " (max_batch_size)"
            )
        return self.sizes[bisect_left(self.sizes, images)]
