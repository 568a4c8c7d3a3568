"""When calls are made: in a closed loop, at random times, or at the pace of streams.

Every call has a time at which it was meant to be made, and latency counts from there. If a server
stalls, or if this process does, the calls that were meant to be made meanwhile have waited, and say
so. (Counting from the time of sending would leave that out: "coordinated omission".)
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine, Iterator
from typing import Any

import grpc
import numpy as np

from .calls import Call
from .plan import Plan
from .record import Record

# A server that is away refuses thousands of calls a second; asking it more often tells no more.
PAUSE_WHILE_AWAY_S = 0.1
AWAY = grpc.StatusCode.UNAVAILABLE.name
# gRPC ends a call at its deadline; one that is still there so much later is given up.
GRACE_S = 5.0


def poisson(rate_per_s: float, seed: int) -> Iterator[float]:
    """Give times in seconds from the start, so many a second on average, independent of each other.

    Args:
        rate_per_s: Their mean number a second.
        seed: The same one gives the same times.
    """
    draw = np.random.default_rng(seed)
    time_s = 0.0
    while True:
        for gap_s in draw.exponential(1.0 / rate_per_s, 1024).tolist():
            time_s += gap_s
            yield time_s


def paced(fps: float, streams: int, seed: int) -> Iterator[float]:
    """Give the times of the frames of streams, one stream after the other, in seconds.

    Cameras are not in step: each stream starts at a random time within the first frame's.

    Args:
        fps: Frames per second of each stream.
        streams: How many there are.
        seed: The same one gives the same times.
    """
    starts_s = sorted((np.random.default_rng(seed).random(streams) / fps).tolist())
    for frame in itertools.count():
        for start_s in starts_s:
            yield start_s + frame / fps


class Generator:
    """Makes the calls of one plan.

    Args:
        plan: Says when.
        call: Makes one.
        record: Takes what became of them, and says when to begin and to end.
    """

    def __init__(self, plan: Plan, call: Call, record: Record) -> None:
        self._plan = plan
        self._call = call
        self._record = record
        self._clock = asyncio.get_running_loop().time
        self._under_way: set[asyncio.Task[None]] = set()
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """Make no further calls."""
        self._stopped.set()

    async def run(self) -> None:
        """Make calls until the record says that it is enough, or `stop` does."""
        load = self._plan.load
        if load.concurrency is not None:
            numbers = itertools.count()
            running = [
                asyncio.create_task(self._worker(numbers), name="bench worker")
                for _ in range(load.concurrency)
            ]
            await asyncio.gather(*running)
            return
        if load.fps is not None:
            times = paced(load.fps, self._plan.streams, self._plan.seed)
        else:
            assert load.rate_per_s is not None
            times = poisson(load.rate_per_s, self._plan.seed)
        arrivals = asyncio.create_task(self._arrivals(times), name="bench arrivals")
        stopping = asyncio.create_task(self._stopped.wait(), name="bench stop")
        await asyncio.wait((arrivals, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not arrivals.done():
            arrivals.cancel()
        await asyncio.wait((arrivals, stopping))
        if not arrivals.cancelled():
            arrivals.result()

    async def drain(self) -> None:
        """Wait for the calls that are under way; each one ends at its deadline."""
        if not self._under_way:
            return
        _, left = await asyncio.wait(self._under_way, timeout=self._plan.timeout_s + GRACE_S)
        for one in left:
            one.cancel()

    async def _worker(self, numbers: Iterator[int]) -> None:
        """Make one call after the other."""
        while not self._stopped.is_set() and self._record.wants(self._clock()):
            meant = self._clock()
            self._record.begin(meant)
            code = await self._one(next(numbers), meant)
            if code == AWAY:
                await asyncio.sleep(PAUSE_WHILE_AWAY_S)

    async def _arrivals(self, times: Iterator[float]) -> None:
        """Make calls at their times, whatever became of those before."""
        started = self._clock()
        for number, time_s in enumerate(times):
            meant = started + time_s
            if not self._record.wants(meant):
                break
            # Also when it is late: answers have to be taken in meanwhile.
            await asyncio.sleep(max(0.0, meant - self._clock()))
            self._record.begin(meant)
            self._record.late(meant, self._clock() - meant)
            self._spawn(self._one(number, meant))
        if not self._record.enough:  # answers are counted to the end
            await asyncio.sleep(max(0.0, self._record.ends - self._clock()))

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(coroutine, name="bench call")
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _one(self, number: int, meant: float) -> str:
        outcome = await self._call(number, meant + self._plan.timeout_s)
        self._record.end(meant, self._clock(), outcome)
        return outcome.code
