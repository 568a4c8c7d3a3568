"""Threads that decode, shared fairly between streams and single requests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch

from .fair_queue import FairQueue
from .file_guard import took_too_long
from .threads import Threads

log = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass(eq=False)
class _Job:
    call: Callable[[], Any]
    future: asyncio.Future[Any]
    timer: asyncio.TimerHandle | None = None
    stuck: bool = False


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

    A call that takes too long is answered for, but no thread can be ended: until its call returns,
    it stays taken, and what waits has one thread less.

    Args:
        threads: How many calls run at once.
        timeout_s: How long one may take from when a thread has it, in seconds.

    Attributes:
        stuck: Threads whose call has taken longer than that, and still runs.
        cancelled: Calls that were given up, while they waited or ran.
    """

    def __init__(self, threads: int, timeout_s: float = 10.0) -> None:
        # Decoding is parallel over images; within one, torch's threads would only get in the way.
        self._threads = Threads(threads, "decode", partial(torch.set_num_threads, 1))
        self._timeout_s = timeout_s
        self.stuck = 0
        self._count = self._free = threads
        self.cancelled = 0
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

        Raises:
            InvalidImage: It takes longer than `timeout_s`.
        """
        loop = asyncio.get_running_loop()
        job = _Job(call, loop.create_future())
        entry = self._waiting.push(job, loop.time(), deadline=deadline, flow=flow, bulk=bulk)
        self._start(loop)
        try:
            result: Result = await job.future
        except asyncio.CancelledError:
            self.cancelled += 1
            if not entry.taken:
                self._waiting.remove(entry, loop.time())
            raise
        finally:
            # An error's traceback holds this frame. If this frame held the error, by its future,
            # the request and its image would stay until garbage is looked for, which is seldom.
            del job, entry
        return result

    @property
    def waiting(self) -> int:
        """How many calls wait for a thread."""
        return len(self._waiting)

    @property
    def busy(self) -> int:
        """How many threads run a call."""
        return self._count - self._free

    def close(self) -> None:
        """Start no more calls; those that run are left to themselves."""
        self._threads.close()

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._free and (entry := self._waiting.pop(loop.time())) is not None:
            if entry.item.future.done():  # gave up in this very turn of the loop
                continue
            self._free -= 1
            job = entry.item
            job.timer = loop.call_later(self._timeout_s, self._give_up, job)
            self._threads.start(job.call, partial(self._finish, loop, job))

    def _give_up(self, job: _Job) -> None:
        job.stuck = True
        self.stuck += 1
        log.warning(
            "decoding takes longer than %g s (decode_timeout_s); threads taken by such images: %d",
            self._timeout_s,
            self.stuck,
        )
        if not job.future.done():
            job.future.set_exception(took_too_long("image", self._timeout_s))

    def _finish(
        self,
        loop: asyncio.AbstractEventLoop,
        job: _Job,
        result: Any,
        error: BaseException | None,
    ) -> None:
        self._free += 1
        if job.timer is not None:
            job.timer.cancel()
        self.stuck -= job.stuck
        if not job.future.done():
            if error is None:
                job.future.set_result(result)
            else:
                job.future.set_exception(error)
        self._start(loop)
