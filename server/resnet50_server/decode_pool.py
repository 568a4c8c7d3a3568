"""Threads that decode, shared fairly between streams and single requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch

from .fair_queue import FairQueue

Result = TypeVar("Result")


@dataclass(eq=False)
class _Job:
    call: Callable[[], Any]
    future: asyncio.Future[Any]


class DecodePool:
    """Runs calls in threads; what waits for one stands in a fair queue. Event loop only.

    Args:
        threads: How many calls run at once.
    """

    def __init__(self, threads: int) -> None:
        # Decoding is parallel over images; within one, torch's threads would only get in the way.
        self._executor = ThreadPoolExecutor(
            threads, "decode", initializer=torch.set_num_threads, initargs=(1,)
        )
        self._free = threads
        self._waiting: FairQueue[_Job] = FairQueue()

    async def run(
        self,
        call: Callable[[], Result],
        *,
        deadline: float | None = None,
        flow: Hashable | None = None,
    ) -> Result:
        """Return what `call` returns; cancelling it while it waits costs nothing.

        Args:
            call: Runs in a thread.
            deadline: In loop time; earlier ones come first.
            flow: Whose call it is; see `FairQueue`.
        """
        loop = asyncio.get_running_loop()
        job = _Job(call, loop.create_future())
        entry = self._waiting.push(job, loop.time(), deadline=deadline, flow=flow)
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
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._free and (entry := self._waiting.pop(loop.time())) is not None:
            if entry.item.future.done():  # gave up in this very turn of the loop
                continue
            self._free -= 1
            running = loop.run_in_executor(self._executor, entry.item.call)
            running.add_done_callback(partial(self._finish, entry.item))

    def _finish(self, job: _Job, done: asyncio.Future[Any]) -> None:
        self._free += 1
        if not job.future.done():
            if done.cancelled():
                job.future.cancel()
            elif (error := done.exception()) is not None:
                job.future.set_exception(error)
            else:
                job.future.set_result(done.result())
        self._start(done.get_loop())
