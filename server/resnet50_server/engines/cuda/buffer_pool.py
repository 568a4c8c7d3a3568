"""A pool of buffers, each used by one batch at a time."""

from __future__ import annotations

import queue
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

Slot = TypeVar("Slot")


class BufferPool(Generic[Slot]):
    """A fixed number of slots, shared by threads.

    Args:
        slots: All of them.
    """

    def __init__(self, slots: Iterable[Slot]) -> None:
        self._free: queue.SimpleQueue[Slot] = queue.SimpleQueue()
        self._count = 0
        for slot in slots:
            self._free.put(slot)
            self._count += 1

    @contextmanager
    def acquire(self) -> Iterator[Slot]:
        """Acquire a slot, waiting for a free one; it is released at the end of the block."""
        slot = self._free.get()
        try:
            yield slot
        finally:
            self._free.put(slot)

    @contextmanager
    def acquire_all(self) -> Iterator[list[Slot]]:
        """Acquire every slot, waiting for those in use; for one thread at a time."""
        slots: list[Slot] = []
        try:
            while len(slots) < self._count:
                slots.append(self._free.get())
            yield slots
        finally:
            for slot in slots:
                self._free.put(slot)
