"""Threads that decode, shared fairly between streams and single requests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from resnet50_server.batching.fair_queue import Entry, FairQueue, virtual_deadline
from resnet50_server.batching.latency import LatencyModel
from resnet50_server.context import CURRENT_REQUEST
from resnet50_server.engines.devices import set_threads
from resnet50_server.errors import ShuttingDown
from resnet50_server.images.decode_guard import decode_timeout_error
from resnet50_server.runtime.clock import counted_s, poll_interval_s
from resnet50_server.runtime.fatal import DecodingHung, dump_stacks
from resnet50_server.runtime.worker_threads import WorkerThreads

log = logging.getLogger(__name__)

Result = TypeVar("Result")

# Threads that may take the place of others, for each of those: a burst of images that are all
# made to be slow is not what ends a server. Each that is held may hold a core.
SPARES, LEAST_SPARES = 2, 4


@dataclass(eq=False)
class _Job:
    call: Callable[[], Any]
    future: asyncio.Future[Any]
    request_id: str
    started: float = 0.0
    ran_s: float = 0.0
    looked: float = 0.0
    timer: asyncio.TimerHandle | None = None
    stuck: bool = False


def decode_threads(cores: int, engine_on_cpu: bool) -> int:
    """Return how many threads should decode.

    A GPU leaves the cores to decoding, and takes more images than they can decode: a thread for
    each. A CPU engine works twice as long on an image as decoding does where int8 is fastest, and
    many times as long in fp32, so one thread in three keeps it fed; more would only take cores from
    it in bursts (docs/adr/0009-request-overhead.md).

    Args:
        cores: How many this process may use.
        engine_on_cpu: Whether all engines compute on them too.
    """
    return max(1, cores // 3) if engine_on_cpu else max(1, cores)


class DecodePool:
    """Runs calls in threads; what waits for one stands in a fair queue. Event loop only.

    A call that takes too long is answered for, but no thread can be ended. Another one takes its
    place, for `spares` of them at most; once the call returns there is one thread too many, which
    ends. When all are held, spares too, and for `timeout_s` none comes free, nothing can be decoded
    any more.

    Args:
        threads: How many calls run at once.
        timeout_s: How long one may take from when a thread has it, in seconds; without the time in
            which the whole process stood still.
        on_hung: Called once nothing can be decoded any more.
        initialize: Runs in each thread first. Decoding is parallel over images, so by default torch
            resizes one in one thread.

    Attributes:
        stuck: Threads whose call has taken longer than that, and still runs.
        cancelled: Calls that were given up, while they waited or ran.
        spares: How many threads may take the place of others.
    """

    def __init__(
        self,
        threads: int,
        timeout_s: float = 10.0,
        on_hung: Callable[[DecodingHung], None] | None = None,
        initialize: Callable[[], object] | None = None,
    ) -> None:
        self._threads = WorkerThreads(threads, "decode", initialize or partial(set_threads, 1))
        self._timeout_s = timeout_s
        self._look_s = poll_interval_s(timeout_s)
        self.stuck = 0
        self._on_hung = on_hung
        self.spares = max(LEAST_SPARES, SPARES * threads)
        self._wanted = threads
        self._lost = False
        self._hanging: asyncio.TimerHandle | None = None
        self._count = self._free = threads
        self.cancelled = 0
        self._waiting: FairQueue[_Job] = FairQueue()
        self._call = LatencyModel()  # of one call each

    def submit(
        self,
        call: Callable[[], Result],
        *,
        deadline: float | None = None,
        flow: Hashable | None = None,
        bulk: bool = False,
    ) -> asyncio.Future[Result]:
        """Run a call in a thread; cancelling the future takes it out of the queue.

        Args:
            call: Runs in a thread.
            deadline: In loop time; earlier ones come first.
            flow: Whose call it is; see `FairQueue`.
            bulk: Whether it goes behind those that are not.

        Returns:
            Gets what `call` returns.

        Raises:
            ShuttingDown: No thread is left.
            InvalidImage: (from the future) it takes longer than `timeout_s`.
        """
        if self._lost:
            raise _turned_away()
        loop = asyncio.get_running_loop()
        asked = CURRENT_REQUEST.get(None)
        job = _Job(call, loop.create_future(), asked.request_id if asked is not None else "")
        entry = self._waiting.push(job, loop.time(), deadline=deadline, flow=flow, bulk=bulk)
        job.future.add_done_callback(partial(self._on_cancel, entry))
        self._start(loop)
        return job.future

    def expected_s(
        self, *, deadline: float | None = None, flow: Hashable | None = None, bulk: bool = False
    ) -> float:
        """Return how long a call that comes now takes with the wait for a thread, in seconds.

        Args:
            deadline: As for `run`; so are the others.
            flow: The same.
            bulk: The same.
        """
        rounds = 1.0
        if not self._free:
            now = asyncio.get_running_loop().time()
            due = virtual_deadline(now, deadline if flow is None and not bulk else None)
            before = self._waiting.count_before(due, bulk)
            rounds += (before + 1) / max(1, self._count - self.stuck)
        return rounds * self._call.batch_s(1)

    @property
    def waiting(self) -> int:
        """How many calls wait for a thread."""
        return len(self._waiting)

    @property
    def busy(self) -> int:
        """How many threads run a call, stuck ones included."""
        return self._count - self._free

    def close(self) -> None:
        """Start no more calls; those that run are left to themselves."""
        self._threads.close()
        if self._hanging is not None:
            self._hanging.cancel()

    def _on_cancel(self, entry: Entry[_Job], future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            self.cancelled += 1
            if not entry.taken:
                self._waiting.remove(entry, future.get_loop().time())

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._free and (entry := self._waiting.pop(loop.time())) is not None:
            if entry.item.future.done():  # gave up in this very turn of the loop
                continue
            self._free -= 1
            job = entry.item
            job.started = loop.time()
            self._plan(loop, job)
            self._threads.submit_callback(job.call, partial(self._finish, loop, job))

    def _plan(self, loop: asyncio.AbstractEventLoop, job: _Job) -> None:
        job.looked = loop.time()
        job.timer = loop.call_later(self._look_s, self._look, loop, job)

    def _look(self, loop: asyncio.AbstractEventLoop, job: _Job) -> None:
        """Count how long a call has run."""
        job.ran_s += counted_s(loop.time() - job.looked, self._look_s)
        if job.ran_s < self._timeout_s:
            self._plan(loop, job)
        else:
            self._give_up(loop, job)

    def _give_up(self, loop: asyncio.AbstractEventLoop, job: _Job) -> None:
        """Answer for a call that takes too long, and have another thread do the work of its own."""
        job.stuck = True
        self.stuck += 1
        log.warning(
            "decoding an image of request %s takes longer than %g s (decode_timeout_s); threads"
            " taken by such images: %d, of %d that there may be",
            job.request_id or "unknown",
            self._timeout_s,
            self.stuck,
            self._wanted + self.spares,
        )
        if not job.future.done():
            job.future.set_exception(decode_timeout_error("image", self._timeout_s))
        if self._replace():
            self._start(loop)
        elif self.stuck == self._count:
            self._hanging = loop.call_later(self._timeout_s, self._hang)

    def _replace(self) -> bool:
        """Start a spare thread; return whether there was one."""
        if self._count == self._wanted + self.spares:
            return False
        try:
            self._threads.add()
        except RuntimeError as error:  # the system's limit; perhaps not for the next one
            log.error("no thread can take the place of one that decodes for too long: %s", error)
            return False
        self._count += 1
        self._free += 1
        return True

    def _hang(self) -> None:
        """Turn away who waits, and who comes: nobody will be decoded for."""
        self._lost = True
        for entry in self._waiting:
            if not entry.item.future.done():
                entry.item.future.set_exception(_turned_away())
        dump_stacks()
        if self._on_hung is not None:
            self._on_hung(
                DecodingHung(
                    f"all {self._count} decode threads have been held by images for longer than"
                    f" {self._timeout_s:g} s (decode_timeout_s), {self.spares} spare ones included"
                )
            )

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
        if job.stuck:
            self._unstick()
        self._call.observe(1, loop.time() - job.started)
        if not job.future.done():
            if error is None:
                job.future.set_result(result)
            else:
                job.future.set_exception(_of_image(error))
        self._start(loop)

    def _unstick(self) -> None:
        """Take back a thread whose call has returned after all, or end one if it is too many."""
        self.stuck -= 1
        if self._hanging is not None:
            self._hanging.cancel()
            self._hanging = None
        if self._count - self.stuck > self._wanted:
            self._threads.retire()
            self._count -= 1
            self._free -= 1


def _turned_away() -> ShuttingDown:
    return ShuttingDown("the server cannot decode images any more")


def _of_image(error: BaseException) -> Exception:
    """Return what fails an image; what would end a task or the event loop does not leave here."""
    if isinstance(error, Exception):
        return error
    failed = RuntimeError(f"decoding raised {error!r}")
    failed.__cause__ = error
    return failed
