"""Things that are used by one batch at a time and given back, such as pinned buffers."""

from __future__ import annotations

import queue
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

Slot = TypeVar("Slot")


class Ring(Generic[Slot]):
    """A fixed number of slots, shared by threads; who finds none free waits for one.

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
    def one(self) -> Iterator[Slot]:
        """Hold a slot; it is given back whatever happens."""
        slot = self._free.get()
        try:
            yield slot
        finally:
            self._free.put(slot)

    @contextmanager
    def all(self) -> Iterator[list[Slot]]:
        """Hold every slot, once whoever has one gives it back; by one thread at a time."""
        slots: list[Slot] = []
        try:
            while len(slots) < self._count:
                slots.append(self._free.get())
            yield slots
        finally:
            for slot in slots:
                self._free.put(slot)
