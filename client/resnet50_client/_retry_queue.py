"""Images of a bulk run that are to be sent again, by the time when."""

from __future__ import annotations

import heapq
import itertools
import math

from ._bulk_images import BulkImage


class RetryQueue:
    """Groups of images, the one that is due first in front; of two due together the older one."""

    def __init__(self) -> None:
        self._groups: list[tuple[float, int, list[BulkImage]]] = []
        self._sequence = itertools.count()

    @property
    def due(self) -> float:
        """When the first group is due, by the clock; infinity if there is none."""
        return self._groups[0][0] if self._groups else math.inf

    def push(self, due: float, images: list[BulkImage]) -> None:
        """Add a group that is due at a time, by the clock."""
        heapq.heappush(self._groups, (due, next(self._sequence), images))

    def pop(self) -> list[BulkImage]:
        """Remove and return the first group."""
        return heapq.heappop(self._groups)[2]
