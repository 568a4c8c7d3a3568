"""Threads that decode, shared fairly between streams and single requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch

from .fair_queue import FairQueue
from .threads import Threads

Result = TypeVar("Result")


@dataclass(eq=False)
class _Job:
    call: Callable[[], Any]
    future: asyncio.Future[Any]


def decode_threads(cores: int, engine_on_cpu: bool) -> int:
    """Return how many threads should decode.

    A GPU leaves the cores to decoding, and takes more images than they can decode: a thread for
    each. A CPU engine works twice as long on an image as decoding does where int8 is fastest, and
    many times as long in fp32, so one thread in three keeps it fed; more would only take cores from
    it in bursts (docs/adr/0009-cost-of-a-request.md).

    Args:
        cores: How many this process may use.
        engine_on_cpu: Whether all engines compute on them too.
    """
    return max(1, cores // 3) if engine_on_cpu else max(1, cores)


class DecodePool:
    """Runs calls in threads; what waits for one stands in a fair queue. Event loop only.

    Args:
        threads: How many calls run at once.
    """

    def __init__(self, threads: int) -> None:
        # Decoding is parallel over images; within one, torch's threads would only get in the way.
        self._threads = Threads(threads, "decode", partial(torch.set_num_threads, 1))
        self._free = threads
        self._waiting: FairQueue[_Job] = FairQueue()

    async def run(
        self,
        call: Callable[[], Result],
        *,
        deadline: float | None = None,
        flow: Hashable | None = None,
        bulk: bool = False,
    ) -> Result:
        """Return what `call` returns; cancelling it while it waits costs nothing.

        Args:
            call: Runs in a thread.
            deadline: In loop time; earlier ones come first.
            flow: Whose call it is; see `FairQueue`.
            bulk: Whether it goes behind those that are not.
        """
        loop = asyncio.get_running_loop()
        job = _Job(call, loop.create_future())
        entry = self._waiting.push(job, loop.time(), deadline=deadline, flow=flow, bulk=bulk)
        self._start(loop)
        try:
            result: Result = await job.future
        except asyncio.CancelledError:
            if not entry.taken:
                self._waiting.remove(entry, loop.time())
            raise
        return result

    def close(self) -> None:
        """Start no more calls; those that run are left to themselves."""
        self._threads.close()

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._free and (entry := self._waiting.pop(loop.time())) is not None:
            if entry.item.future.done():  # gave up in this very turn of the loop
                continue
            self._free -= 1
            self._threads.start(entry.item.call, partial(self._finish, loop, entry.item))

    def _finish(
        self,
        loop: asyncio.AbstractEventLoop,
        job: _Job,
        result: Any,
        error: BaseException | None,
    ) -> None:
        self._free += 1
        if not job.future.done():
            if error is None:
                job.future.set_result(result)
            else:
                job.future.set_exception(error)
        self._start(loop)
