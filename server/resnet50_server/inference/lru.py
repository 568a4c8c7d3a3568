"""What is kept in memory: bytes by bytes, bounded, the least recently used going first."""

from __future__ import annotations

import sys
from collections.abc import Iterator

# What an entry takes besides its key and value: its share of a dict that is a third to a sixth
# full, and what an allocation is rounded up by. Measured: benchmarks/cache.py memory.
ENTRY_BYTES = 150
# How many keys are looked at between two yields of `sweep`.
SWEPT_AT_ONCE = 1000


class Shelf:
    """Bytes by bytes, in the order of their last use.

    Bytes only: tuples, or an OrderedDict, would be walked through by every full garbage collection.

    Args:
        max_bytes: How much they may take in memory.

    Attributes:
        memory_bytes: How much they take.
        evictions: How many went to make room for others.
    """

    def __init__(self, max_bytes: int) -> None:
        self.memory_bytes = 0
        self.evictions = 0
        self._max_bytes = max_bytes
        self._kept: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, key: bytes) -> bytes | None:
        """Return a value, which counts as its use."""
        value = self._kept.pop(key, None)
        if value is not None:
            self._kept[key] = value
        return value

    def keep(self, key: bytes, value: bytes) -> None:
        """Keep a value in the place of what has the same key, unless it is too large for it all."""
        if key in self._kept:
            self._remove(key)
        taken = _memory(key, value)
        if taken > self._max_bytes:
            return
        self.memory_bytes += taken
        self._kept[key] = value
        if self.memory_bytes > self._max_bytes:
            self._make_room()

    def sweep(self, prefix: bytes) -> Iterator[None]:
        """Remove all keys that begin so, a few between one yield and the next."""
        keys = list(self._kept)
        for start in range(0, len(keys), SWEPT_AT_ONCE):
            for key in keys[start : start + SWEPT_AT_ONCE]:
                if key.startswith(prefix) and key in self._kept:
                    self._remove(key)
            yield

    def _make_room(self) -> None:
        # Somewhat more than is needed: finding the oldest takes as long for one as for many.
        left = self.memory_bytes - self._max_bytes + self._max_bytes // 64
        oldest = []
        for key, value in self._kept.items():
            if left <= 0:
                break
            left -= _memory(key, value)
            oldest.append(key)
        # The one that has just come stays.
        for key in oldest[: len(self._kept) - 1]:
            self._remove(key)
            self.evictions += 1

    def _remove(self, key: bytes) -> None:
        self.memory_bytes -= _memory(key, self._kept.pop(key))


def _memory(key: bytes, value: bytes) -> int:
    """Return how much an entry takes, in bytes."""
    return sys.getsizeof(key) + sys.getsizeof(value) + ENTRY_BYTES
