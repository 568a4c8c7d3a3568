"""Response cache: results of images that were computed before. Event loop only, no locks.

A result is found by a digest of the image, by what was asked of it and by the weights as they are
loaded, so loading them again starts anew. Stored is the engine's result, before the options that
only change how it is reported; as bytes, which cannot be changed and keep nothing of their batch
alive (docs/adr/0019-response-cache.md).
"""

from __future__ import annotations

import asyncio
import hashlib
import struct
import sys
import time
from collections.abc import Awaitable, Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count
from typing import NamedTuple

import numpy as np

from resnet50_server.batching.result import Result
from resnet50_server.images.background import Color
from resnet50_server.images.source import ImageWarning, PreprocessedImage, Source

from .single_flight import SingleFlight

# An image up to here is hashed on the event loop, in a tenth of a millisecond; others in a thread.
# A raw frame of 224 x 224 in RGB is smaller.
MAX_INLINE_HASH_BYTES = 160 * 1024
# A dict is copied as a whole when it grows; one of so many bytes within some milliseconds.
SHARD_BYTES = 16 * 2**20
# Bytes of an entry besides its key and value: its share of a dict that is a third to a sixth
# full, and what an allocation is rounded up by. Measured: benchmarks/cache.py memory.
ENTRY_BYTES = 150
# How many keys `LruBytes.purge` looks at between two yields.
PURGE_CHUNK = 1000

_RAW = struct.Struct("<cIIIIII")
_KEY = struct.Struct("<II?")
# The size of the batch, how many categories there are, and a bit for each warning.
_HEADER = struct.Struct("<IHH")


class CacheKey(NamedTuple):
    """The key of a result, and of its computation.

    Attributes:
        owner: The weights as they are loaded.
        name: The variant's.
        digest: The image's; see `content_digest`.
        top_k: How many categories are returned; 0 for none.
        with_embedding: Whether the embedding is.
        background: Colour that transparent pixels are composited on; None drops alpha.
        priority: The class of the request. Only requests of one class share a computation: an
            interactive one would wait long for one in bulk.
    """

    owner: Hashable
    name: str
    digest: bytes
    top_k: int
    with_embedding: bool
    background: Color | None = None
    priority: Hashable = None


@dataclass
class CacheStats:
    """Lookups of one variant; grows only.

    Attributes:
        hits: The result was stored.
        shared: The result was being computed for another request.
        misses: The result had to be computed.
    """

    hits: int = 0
    shared: int = 0
    misses: int = 0


class ResponseCache:
    """Stores the most recently used results, bounded in bytes.

    Args:
        max_bytes: How much memory they may take.

    Attributes:
        stats: Lookups, by the names of variants.
    """

    def __init__(self, max_bytes: int) -> None:
        self.stats: dict[str, CacheStats] = {}
        # Digests spread evenly over them.
        shards = max(1, max_bytes // SHARD_BYTES)
        self._shards = [LruBytes(max_bytes // shards) for _ in range(shards)]
        self._flights: SingleFlight[Result] = SingleFlight()
        self._numbers: dict[Hashable, int] = {}  # of the owners
        self._next_number = count()

    def __len__(self) -> int:
        return sum(map(len, self._shards))

    @property
    def memory_bytes(self) -> int:
        """How much memory the results take."""
        return sum(shard.memory_bytes for shard in self._shards)

    @property
    def evictions(self) -> int:
        """How many results were evicted to make room for others."""
        return sum(shard.evictions for shard in self._shards)

    async def get_or_compute(
        self,
        key: CacheKey,
        compute: Callable[[], Awaitable[Result]],
        deadline: float | None = None,
    ) -> Result:
        """Return a result: stored, being computed for another request, or computed now.

        Args:
            key: The cache key. Its owner has not been dropped.
            compute: Computes it.
            deadline: Until when to wait for another request's computation, in loop time; None for
                no limit.

        Raises:
            ServingError: As `SingleFlight.run`.
        """
        number = self._numbers.get(key.owner)
        if number is None:
            number = self._numbers[key.owner] = next(self._next_number)
        stats = self.stats.setdefault(key.name, CacheStats())
        stored_as = _KEY.pack(number, key.top_k, key.with_embedding) + key.digest
        if key.background is not None:
            stored_as += bytes(key.background)
        shard = self._shards[int.from_bytes(key.digest[:4], "little") % len(self._shards)]
        value = shard.get(stored_as)
        if value is not None:
            stats.hits += 1
            return _unpack(value, key.with_embedding)

        async def compute_and_store() -> Result:
            stats.misses += 1
            result = await compute()
            if key.owner in self._numbers:
                shard.put(stored_as, _pack(result))
            return result

        joined = time.perf_counter()
        flight = stored_as, key.priority
        result, shared = await self._flights.run(flight, compute_and_store, deadline)
        if not shared:
            return result
        stats.shared += 1
        now = time.perf_counter()
        return replace(
            result,
            queue_s=now - joined,
            compute_s=0.0,
            batch=None,
            cache="shared",
            decode_s=0.0,
            decoded=now,
        )

    def drop(self, owner: Hashable) -> None:
        """Remove all results of weights that serve no new request.

        Those that are still being computed are returned, and not stored.
        """
        number = self._numbers.pop(owner, None)
        if number is not None:
            prefix = number.to_bytes(4, "little")
            _run_in_slices(chain.from_iterable(shard.purge(prefix) for shard in self._shards))

    def forget(self, name: str) -> None:
        """Drop the lookup counts of a variant that has been unloaded.

        Args:
            name: Its name.
        """
        self.stats.pop(name, None)


class LruBytes:
    """Bytes by bytes, bounded; the least recently used are evicted first.

    Bytes only: tuples, or an OrderedDict, would be visited by every full garbage collection.

    Args:
        max_bytes: How much memory they may take.

    Attributes:
        memory_bytes: How much they take.
        evictions: How many were evicted to make room for others.
    """

    def __init__(self, max_bytes: int) -> None:
        self.memory_bytes = 0
        self.evictions = 0
        self._max_bytes = max_bytes
        self._values: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: bytes) -> bytes | None:
        """Return a value, which counts as a use."""
        value = self._values.pop(key, None)
        if value is not None:
            self._values[key] = value
        return value

    def put(self, key: bytes, value: bytes) -> None:
        """Store a value, unless it alone is larger than the limit."""
        if key in self._values:
            self._remove(key)
        taken = _memory(key, value)
        if taken > self._max_bytes:
            return
        self.memory_bytes += taken
        self._values[key] = value
        if self.memory_bytes > self._max_bytes:
            self._evict()

    def purge(self, prefix: bytes) -> Iterator[None]:
        """Remove all keys with a prefix, a few between one yield and the next."""
        keys = list(self._values)
        for start in range(0, len(keys), PURGE_CHUNK):
            for key in keys[start : start + PURGE_CHUNK]:
                if key.startswith(prefix) and key in self._values:
                    self._remove(key)
            yield

    def _evict(self) -> None:
        # Somewhat more than is needed: finding the oldest takes as long for one as for many.
        left = self.memory_bytes - self._max_bytes + self._max_bytes // 64
        oldest = []
        for key, value in self._values.items():
            if left <= 0:
                break
            left -= _memory(key, value)
            oldest.append(key)
        # The newest stays.
        for key in oldest[: len(self._values) - 1]:
            self._remove(key)
            self.evictions += 1

    def _remove(self, key: bytes) -> None:
        self.memory_bytes -= _memory(key, self._values.pop(key))


def content_digest(source: Source) -> bytes:
    """Return 32 bytes that identify an image; two images with the same are infeasible to make."""
    # The first byte keeps a file from being taken for pixels.
    if isinstance(source, bytes):
        digest = hashlib.sha256(b"\0")
        digest.update(source)
    elif isinstance(source, PreprocessedImage):
        digest = hashlib.sha256(b"\2" + hashlib.sha256(source.transform_digest.encode()).digest())
        digest.update(source.pixels)
    else:
        shape = (source.width, source.height, source.pixel_format, source.row_stride_bytes)
        color = (source.color_matrix, source.color_range)
        digest = hashlib.sha256(_RAW.pack(b"\1", *shape, *color))
        digest.update(source.pixels)
    return digest.digest()


def _memory(key: bytes, value: bytes) -> int:
    """Return how much an entry takes, in bytes."""
    return sys.getsizeof(key) + sys.getsizeof(value) + ENTRY_BYTES


def _run_in_slices(work: Iterator[None]) -> None:
    """Run up to the next yield, and the rest in later turns of the event loop."""
    if next(work, work) is None:
        asyncio.get_running_loop().call_soon(partial(_run_in_slices, work))


def _pack(result: Result) -> bytes:
    return b"".join(
        (
            _HEADER.pack(
                result.batch_size,
                len(result.indices),
                sum(1 << warning for warning in set(result.warnings)),
            ),
            result.indices.astype("<i8", copy=False).tobytes(),
            result.probabilities.astype("<f4", copy=False).tobytes(),
            b"" if result.embedding is None else result.embedding.astype("<f4").tobytes(),
        )
    )


def _unpack(value: bytes, with_embedding: bool) -> Result:
    """Return a stored result; its arrays are read-only views."""
    batch_size, top_k, warnings = _HEADER.unpack_from(value)
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
        decoded=time.perf_counter(),
        warnings=tuple(one for one in ImageWarning if warnings >> one & 1) if warnings else (),
    )
