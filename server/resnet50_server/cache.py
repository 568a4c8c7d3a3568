"""Answers that are kept, and computations that several requests share. Event loop only, no locks.

An answer is found by the image's digest, by what was asked of it and by the weights as they are
loaded, so loading them again begins anew. What is kept is the engine's result, before the options
that only change how it is told. It is kept as bytes: they cannot be changed, hold nothing of the
batch that they come from, and Python's garbage collector does not look at them
(docs/adr/0019-response-cache.md).
"""

from __future__ import annotations

import asyncio
import hashlib
import struct
import sys
from collections.abc import Hashable
from dataclasses import dataclass, replace
from itertools import count
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np

from .decode import Source
from .errors import DeadlineUnreachable, EngineFailed, InvalidImage, Overloaded
from .fair_queue import due_at
from .variant_queue import Result

# An image up to here is digested where it is, in a tenth of a millisecond; others in a thread.
# A raw frame of 224 x 224 in RGB is below it.
MAX_DIGEST_AT_HAND_BYTES = 160 * 1024
# What an answer takes besides its key and value: its share of a dict that is a third to a sixth
# full, and what an allocation is rounded up by. Measured: benchmarks/cache.py memory.
ENTRY_BYTES = 150
# Making room makes some more: finding the oldest costs as much for one as for many.
MAX_SLACK_BYTES = 2**20
# A variant's answers are looked for, and go, so many a turn of the loop.
SWEPT_AT_ONCE = 1000

_RAW = struct.Struct("<cIIII")
_QUESTION = struct.Struct("<II?")
_HEADER = struct.Struct("<II")

Urgency: TypeAlias = tuple[int, float]
"""What of two requests the queues would take first: the smaller one."""


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


def urgency_of(now: float, deadline: float | None, flow: Hashable | None, bulk: bool) -> Urgency:
    """Return how urgent a request is.

    A frame's turn depends on its own stream, so frames come behind all that stand alone.

    Args:
        now: Loop time.
        deadline: In loop time; None for no limit.
        flow: The stream that it belongs to, if it does.
        bulk: Whether it gives way to interactive ones.
    """
    if bulk:
        return 2, 0.0
    return (0, due_at(now, deadline)) if flow is None else (1, 0.0)


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
        max_bytes: The same.
        bytes: How much they take.
        evictions: How many went to make room for others.
        lookups: What came of looking, by the names of variants.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.evictions = 0
        self.lookups: dict[str, Lookups] = {}
        # In the order of their last use. Bytes only: a dict of tuples, or an OrderedDict, would be
        # walked through by every full garbage collection.
        self._kept: dict[bytes, bytes] = {}
        self._flights: dict[bytes, Flight] = {}
        self._numbers: dict[Hashable, int] = {}
        self._next_number = count()

    def __len__(self) -> int:
        return len(self._kept)

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
        return Asked(self, owner, key, lookups, with_embedding)

    def drop(self, owner: Hashable) -> None:
        """Forget all answers of weights that no new request finds.

        Those that are still computed are given to whoever waits for them, and not kept.
        """
        number = self._numbers.pop(owner, None)
        if number is not None:
            self._sweep(list(self._kept), number.to_bytes(4, "little"))

    def _sweep(self, keys: list[bytes], prefix: bytes) -> None:
        for key in keys[-SWEPT_AT_ONCE:]:
            if key.startswith(prefix) and key in self._kept:
                self._remove(key)
        del keys[-SWEPT_AT_ONCE:]
        if keys:
            asyncio.get_running_loop().call_soon(self._sweep, keys, prefix)

    def _keep(self, owner: Hashable, key: bytes, value: bytes) -> None:
        if owner not in self._numbers:
            return
        if key in self._kept:  # it was computed twice, the second time for somebody more urgent
            self._remove(key)
        taken = _memory(key, value)
        if taken > self.max_bytes:
            return
        self.bytes += taken
        self._kept[key] = value
        if self.bytes > self.max_bytes:
            self._make_room()

    def _make_room(self) -> None:
        left = self.bytes - (self.max_bytes - min(MAX_SLACK_BYTES, self.max_bytes // 64))
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
        self.bytes -= _memory(key, self._kept.pop(key))


@dataclass(frozen=True, slots=True)
class Asked:
    """One question to the cache; made by `ResponseCache.ask`."""

    _cache: ResponseCache
    _owner: Hashable
    _key: bytes
    _lookups: Lookups
    _with_embedding: bool

    def find(self) -> Result | None:
        """Return the answer if it is kept."""
        kept = self._cache._kept
        value = kept.pop(self._key, None)
        if value is None:
            return None
        kept[self._key] = value
        self._lookups.hits += 1
        return _unpack(value, self._with_embedding)

    def flight(self, urgency: Urgency) -> Flight | None:
        """Return a computation that is under way, if waiting for it is no loss.

        It is one if whoever it is for is less urgent: a bulk request's image may wait for long.
        """
        flight = self._cache._flights.get(self._key)
        return flight if flight is not None and flight.urgency <= urgency else None

    def lead(self, urgency: Urgency) -> Flight:
        """Begin a computation, which others that ask the same may wait for."""
        self._lookups.misses += 1
        flight = self._cache._flights[self._key] = Flight(self, urgency)
        return flight

    def _landed(self, flight: Flight, result: Result | None) -> None:
        flights = self._cache._flights
        if flights.get(self._key) is flight:  # or somebody more urgent has begun again
            del flights[self._key]
        if result is not None:
            self._cache._keep(self._owner, self._key, _pack(result))

    def _shared(self) -> None:
        self._lookups.shared += 1


class Flight:
    """A computation, and all who wait for it: its leader, and followers. Made by `Asked.lead`.

    It goes on while anybody waits. If it fails for a reason of its leader's, who has left or is
    refused, followers are told to ask again; what is wrong with the image is wrong for all.

    As a context, of what comes before the batch: an error within it ends the flight.

    Args:
        asked: What is computed.
        urgency: Its leader's.

    Attributes:
        urgency: The same.
        crowded: Whether it ended because there was no room. So it will for others, who had better
            try all at once than in turn.
    """

    __slots__ = ("_asked", "_computing", "_leader", "_loop", "_waiting", "crowded", "urgency")

    def __init__(self, asked: Asked, urgency: Urgency) -> None:
        self.urgency = urgency
        self.crowded = False
        self._asked = asked
        self._loop = asyncio.get_running_loop()
        self._computing: asyncio.Future[Result] | None = None
        self._leader: asyncio.Future[Result] | None = None
        self._waiting: dict[asyncio.Future[Any], None] = {}  # followers, as they came

    def __enter__(self) -> Flight:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None and self._computing is None:
            self._asked._landed(self, None)
            self._release(error)

    def carry(self, computing: asyncio.Future[Result]) -> asyncio.Future[Result]:
        """Wait for a batch.

        Args:
            computing: Its result to come; cancelled when nobody waits any more.

        Returns:
            The same for the leader, who leaves by cancelling it.
        """
        self._computing = computing
        self._leader = leader = self._loop.create_future()
        leader.add_done_callback(self._left)
        computing.add_done_callback(self._land)
        return leader

    async def follow(self, deadline: float | None) -> Result | None:
        """Wait for the result.

        Args:
            deadline: Until when, in loop time; None for no limit.

        Returns:
            None if the computation ended without one, for a reason of its leader's: ask again.

        Raises:
            InvalidImage: The image cannot be read.
            EngineFailed: The engine fails on it.
            DeadlineUnreachable: There is no result yet.
        """
        joined = self._loop.time()
        waiter: asyncio.Future[Result | None] = self._loop.create_future()
        self._waiting[waiter] = None
        waiter.add_done_callback(self._left)
        timer = None
        if deadline is not None:
            timer = self._loop.call_at(deadline, _expire, waiter)
        try:
            result = await waiter
        finally:
            if timer is not None:
                timer.cancel()
            # An error's traceback holds this frame, which would hold the error: a circle.
            del waiter
        if result is None:
            return None
        self._asked._shared()
        waited_s = self._loop.time() - joined
        return replace(result, queue_s=waited_s, compute_s=0.0, batch=None, cache="shared")

    def _left(self, waiter: asyncio.Future[Any]) -> None:
        """See that one waits no longer; the last one ends the computation."""
        self._waiting.pop(waiter, None)
        computing, leader = self._computing, self._leader
        if computing is None or leader is None or computing.done():
            return
        if leader.done() and not self._waiting:
            self._asked._landed(self, None)
            computing.cancel()

    def _land(self, computing: asyncio.Future[Result]) -> None:
        """Tell everybody how it ended."""
        leader = self._leader
        assert leader is not None  # `carry` made it
        if computing.cancelled():
            return  # nobody waits
        error = computing.exception()
        if error is None:
            result = computing.result()
            self._asked._landed(self, result)
            if not leader.done():
                leader.set_result(result)
            for waiter in self._waiting:
                if not waiter.done():
                    waiter.set_result(result)
        else:
            self._asked._landed(self, None)
            if not leader.done():
                leader.set_exception(error)
            self._release(error)

    def _release(self, error: BaseException) -> None:
        """Let followers fail as the leader did, or go on by themselves."""
        self.crowded = isinstance(error, Overloaded)
        for waiter in self._waiting:
            if waiter.done():
                continue
            # To each its own, as a traceback grows with whoever raises it.
            if isinstance(error, InvalidImage):
                waiter.set_exception(InvalidImage(error.field, error.reason, kind=error.kind))
            elif isinstance(error, EngineFailed):
                # Computing it again, each in turn, would fail as many batches in a row.
                failure = type(error)(*error.args)
                failure.__cause__ = error.__cause__
                waiter.set_exception(failure)
            else:
                waiter.set_result(None)


def _expire(waiter: asyncio.Future[Result | None]) -> None:
    if not waiter.done():
        waiter.set_exception(
            DeadlineUnreachable(
                "the deadline passed while the same image was computed for another request"
            )
        )


def _memory(key: bytes, value: bytes) -> int:
    """Return how much an entry takes, in bytes."""
    return sys.getsizeof(key) + sys.getsizeof(value) + ENTRY_BYTES


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
