"""Answers that are kept. Event loop only, no locks.

An answer is found by the image's digest, by what was asked of it and by the weights as they are
loaded, so loading them again begins anew. What is kept is the engine's result, before the options
that only change how it is told. It is kept as bytes, which cannot be changed and hold nothing of
the batch that they come from (docs/adr/0019-response-cache.md).
"""

from __future__ import annotations

import asyncio
import hashlib
import struct
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from itertools import chain, count

import numpy as np

from resnet50_server.batching.result import Result
from resnet50_server.images.decode import Source

from .lru import Shelf
from .single_flight import Flight, Urgency

# An image up to here is digested where it is, in a tenth of a millisecond; others in a thread.
# A raw frame of 224 x 224 in RGB is below it.
MAX_DIGEST_AT_HAND_BYTES = 160 * 1024
# A dict is copied as a whole when it is full; one of so many bytes within some milliseconds.
SHELF_BYTES = 16 * 2**20

_RAW = struct.Struct("<cIIII")
_QUESTION = struct.Struct("<II?")
_HEADER = struct.Struct("<II")


def digest_of(source: Source) -> bytes:
    """Return what stands for an image: 32 bytes. Nobody can make two images that share them."""
    # The first byte keeps a file from being taken for pixels.
    if isinstance(source, bytes):
        digest = hashlib.sha256(b"\0")
        digest.update(source)
    else:
        shape = (source.width, source.height, source.pixel_format, source.row_stride_bytes)
        digest = hashlib.sha256(_RAW.pack(b"\1", *shape))
        digest.update(source.pixels)
    return digest.digest()


@dataclass
class Lookups:
    """What came of looking for answers; grows only.

    Attributes:
        hits: Were there.
        shared: Were being computed, and were waited for.
        misses: Had to be computed.
    """

    hits: int = 0
    shared: int = 0
    misses: int = 0


class ResponseCache:
    """Keeps answers, the most recently used ones, as far as there is room.

    Args:
        max_bytes: How much they may take in memory.

    Attributes:
        lookups: What came of looking, by the names of variants.
    """

    def __init__(self, max_bytes: int) -> None:
        self.lookups: dict[str, Lookups] = {}
        # Digests spread evenly over them.
        shelves = max(1, max_bytes // SHELF_BYTES)
        self._shelves = [Shelf(max_bytes // shelves) for _ in range(shelves)]
        self._flights: dict[bytes, Flight] = {}
        self._numbers: dict[Hashable, int] = {}
        self._next_number = count()

    def __len__(self) -> int:
        return sum(map(len, self._shelves))

    @property
    def memory_bytes(self) -> int:
        """How much memory the answers take."""
        return sum(shelf.memory_bytes for shelf in self._shelves)

    @property
    def evictions(self) -> int:
        """How many answers went to make room for others."""
        return sum(shelf.evictions for shelf in self._shelves)

    def ask(
        self, owner: Hashable, name: str, digest: bytes, top_k: int, with_embedding: bool
    ) -> Asked:
        """Return what stands for a question.

        Args:
            owner: The weights as they are loaded; not to be asked of once they are dropped.
            name: The variant's.
            digest: The image's.
            top_k: How many categories are wanted; 0 for none.
            with_embedding: Whether the embedding is.
        """
        number = self._numbers.get(owner)
        if number is None:
            number = self._numbers[owner] = next(self._next_number)
        lookups = self.lookups.setdefault(name, Lookups())
        key = _QUESTION.pack(number, top_k, with_embedding) + digest
        shelf = self._shelves[int.from_bytes(digest[:4], "little") % len(self._shelves)]
        return Asked(self, owner, key, shelf, lookups, with_embedding)

    def forget(self, name: str) -> None:
        """Count nothing more of a variant that has been unloaded.

        Args:
            name: Its name.
        """
        self.lookups.pop(name, None)

    def drop(self, owner: Hashable) -> None:
        """Forget all answers of weights that no new request finds.

        Those that are still computed are given to whoever waits for them, and not kept.
        """
        number = self._numbers.pop(owner, None)
        if number is not None:
            prefix = number.to_bytes(4, "little")
            _go_on(chain.from_iterable(shelf.sweep(prefix) for shelf in self._shelves))


def _go_on(sweeping: Iterator[None]) -> None:
    """Do what is to be done up to the next yield, and then give others a turn."""
    if next(sweeping, sweeping) is None:
        asyncio.get_running_loop().call_soon(_go_on, sweeping)


@dataclass(frozen=True, slots=True)
class Asked:
    """One question to the cache; made by `ResponseCache.ask`."""

    _cache: ResponseCache
    _owner: Hashable
    _key: bytes
    _shelf: Shelf
    _lookups: Lookups
    _with_embedding: bool

    def find(self) -> Result | None:
        """Return the answer if it is kept."""
        value = self._shelf.find(self._key)
        if value is None:
            return None
        self._lookups.hits += 1
        return _unpack(value, self._with_embedding)

    def flight(self, urgency: Urgency) -> Flight | None:
        """Return a computation under way that is at least as urgent.

        Whoever is more urgent had better not wait for it: a bulk image may stand in line for long.
        """
        flight = self._cache._flights.get(self._key)
        return flight if flight is not None and flight.urgency <= urgency else None

    def lead(self, urgency: Urgency) -> Flight:
        """Begin a computation, which others that ask the same may wait for."""
        self._lookups.misses += 1
        flight = Flight(urgency, self._landed, self._shared)
        self._cache._flights[self._key] = flight
        return flight

    def _landed(self, flight: Flight, result: Result | None) -> None:
        cache = self._cache
        if cache._flights.get(self._key) is flight:  # or somebody more urgent has begun again
            del cache._flights[self._key]
        if result is not None and self._owner in cache._numbers:
            self._shelf.keep(self._key, _pack(result))

    def _shared(self) -> None:
        self._lookups.shared += 1


def _pack(result: Result) -> bytes:
    return b"".join(
        (
            _HEADER.pack(result.batch_size, len(result.indices)),
            result.indices.astype("<i8", copy=False).tobytes(),
            result.probabilities.astype("<f4", copy=False).tobytes(),
            b"" if result.embedding is None else result.embedding.astype("<f4").tobytes(),
        )
    )


def _unpack(value: bytes, with_embedding: bool) -> Result:
    """Return a kept result, whose arrays are views that nobody can write to."""
    batch_size, top_k = _HEADER.unpack_from(value)
    probabilities = _HEADER.size + 8 * top_k
    embedding = probabilities + 4 * top_k
    return Result(
        indices=np.frombuffer(value, np.int64, top_k, _HEADER.size),
        probabilities=np.frombuffer(value, np.float32, top_k, probabilities),
        embedding=np.frombuffer(value, np.float32, -1, embedding) if with_embedding else None,
        queue_s=0.0,
        compute_s=0.0,
        batch_size=batch_size,
        cache="hit",
    )
