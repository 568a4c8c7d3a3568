"""Load generator: calls in a closed loop, at random times, or at the frame rate of streams.

Latency counts from a call's intended time. If the server or this process stalls, the calls that
were due meanwhile include the delay. (Counting from the time of sending would hide it, which is
known as coordinated omission.)
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
from .recorder import Recorder

# An unreachable server fails thousands of calls per second, which adds no information.
PAUSE_WHILE_AWAY_S = 0.1
AWAY = grpc.StatusCode.UNAVAILABLE.name
# gRPC ends a call at its deadline; one that is still pending this much later is cancelled.
GRACE_S = 5.0


def poisson(rate_per_s: float, seed: int) -> Iterator[float]:
    """Yield times of a Poisson process in seconds from the start.

    Args:
        rate_per_s: Mean rate per second.
        seed: Random seed.
    """
    draw = np.random.default_rng(seed)
    time_s = 0.0
    while True:
        for gap_s in draw.exponential(1.0 / rate_per_s, 1024).tolist():
            time_s += gap_s
            yield time_s


def paced(fps: float, streams: int, seed: int) -> Iterator[float]:
    """Yield the times of all streams' frames in seconds, one stream after the other.

    Cameras are not synchronised: each stream starts at a random time within one frame interval.

    Args:
        fps: Frames per second of each stream.
        streams: Number of streams.
        seed: Random seed.
    """
    starts_s = sorted((np.random.default_rng(seed).random(streams) / fps).tolist())
    for frame in itertools.count():
        for start_s in starts_s:
            yield start_s + frame / fps


class Generator:
    """Makes the calls of one plan.

    Args:
        plan: The benchmark.
        call: Makes one call.
        recorder: Records outcomes, and decides when the run ends.
    """

    def __init__(self, plan: Plan, call: Call, recorder: Recorder) -> None:
        self._plan = plan
        self._call = call
        self._recorder = recorder
        self._clock = asyncio.get_running_loop().time
        self._in_flight: set[asyncio.Task[None]] = set()
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """Stop making calls."""
        self._stopped.set()

    async def run(self) -> None:
        """Make calls until the recorder has enough, or `stop` is called."""
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
        try:
            await asyncio.wait((arrivals, stopping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (arrivals, stopping):
                task.cancel()  # no effect on one that has ended
        await asyncio.wait((arrivals, stopping))
        if not arrivals.cancelled():
            arrivals.result()

    async def drain(self) -> None:
        """Wait for the calls in flight; each one ends at its deadline."""
        if not self._in_flight:
            return
        _, left = await asyncio.wait(self._in_flight, timeout=self._plan.timeout_s + GRACE_S)
        for one in left:
            one.cancel()

    async def _worker(self, numbers: Iterator[int]) -> None:
        """Make one call after another."""
        while not self._stopped.is_set() and self._recorder.wants(self._clock()):
            intended = self._clock()
            self._recorder.begin(intended)
            code = await self._one(next(numbers), intended)
            if code == AWAY:
                await asyncio.sleep(PAUSE_WHILE_AWAY_S)

    async def _arrivals(self, times: Iterator[float]) -> None:
        """Make calls at their intended times, independent of earlier calls."""
        started = self._clock()
        for number, time_s in enumerate(times):
            intended = started + time_s
            if not self._recorder.wants(intended):
                break
            # Yield to the event loop even when late, so that responses are received.
            await asyncio.sleep(max(0.0, intended - self._clock()))
            self._recorder.begin(intended)
            self._recorder.late(intended, self._clock() - intended)
            self._spawn(self._one(number, intended))
        if not self._recorder.enough:  # responses are counted until the end
            await asyncio.sleep(max(0.0, self._recorder.ends - self._clock()))

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(coroutine, name="bench call")
        self._in_flight.add(task)
        task.add_done_callback(self._in_flight.discard)

    async def _one(self, number: int, intended: float) -> str:
        outcome = await self._call(number, intended + self._plan.timeout_s)
        self._recorder.end(intended, self._clock(), outcome)
        return outcome.code
