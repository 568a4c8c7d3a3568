"""A pool of decode threads, shared fairly between streams and single requests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from resnet50_server.batching.fair_queue import Entry, FairQueue, virtual_deadline
from resnet50_server.batching.latency import LatencyModel
from resnet50_server.context import RequestContext
from resnet50_server.engines.devices import set_threads
from resnet50_server.errors import ShuttingDown
from resnet50_server.images.decode_guard import decode_timeout_error
from resnet50_server.runtime.clock import counted_s, poll_interval_s
from resnet50_server.runtime.fatal import DecodingHung, dump_stacks
from resnet50_server.runtime.worker_threads import WorkerThreads

log = logging.getLogger(__name__)

Result = TypeVar("Result")

NO_REQUEST = RequestContext("", "", ())

# Spare threads replace those whose image takes too long, so that a burst of images made to be slow
# does not end a server. Each such thread may occupy a core.
SPARES_PER_THREAD, MIN_SPARES = 2, 4


@dataclass(eq=False, slots=True)
class _Job:
    """A call that is queued or runs."""

    call: Callable[[], Any]
    future: asyncio.Future[Any]
    request_id: str
    started: float = 0.0
    elapsed_s: float = 0.0
    polled_at: float = 0.0
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
    """Runs calls in threads, from a fair queue. Event loop only.

    A call that takes too long fails, but its thread cannot be ended. A spare thread replaces it, up
    to `spares` of them; when the call returns after all, a thread too many ends. When all threads
    are stuck, spares included, and none returns for `timeout_s`, the pool is exhausted.

    Args:
        threads: How many calls run at once.
        timeout_s: How long one may run, in seconds, without the time in which the process was
            stopped.
        on_hung: Called when the pool is exhausted.
        initialize: Runs in each thread first. Decoding is parallel over images, so by default torch
            resizes one in one thread.

    Attributes:
        stuck: Threads whose call has timed out and still runs.
        cancelled: Calls that were cancelled while they waited or ran.
        spares: How many threads may be added for stuck ones.
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
        self._poll_interval_s = poll_interval_s(timeout_s)
        self.stuck = 0
        self._on_hung = on_hung
        self.spares = max(MIN_SPARES, SPARES_PER_THREAD * threads)
        self._target = threads
        self._exhausted = False
        self._exhausted_timer: asyncio.TimerHandle | None = None
        self._count = self._free = threads
        self.cancelled = 0
        self._waiting: FairQueue[_Job] = FairQueue()
        self._latency = LatencyModel()  # of one call each

    def submit(
        self,
        call: Callable[[], Result],
        context: RequestContext = NO_REQUEST,
    ) -> asyncio.Future[Result]:
        """Run a call in a thread; cancelling the future removes it from the queue.

        Args:
            call: Runs in a thread.
            context: The request that it belongs to; its deadline, stream and priority order the
                queue.

        Returns:
            The result of `call`.

        Raises:
            ShuttingDown: The pool is exhausted.
            InvalidImage: (from the future) it takes longer than `timeout_s`.
        """
        if self._exhausted:
            raise _exhausted_error()
        loop = asyncio.get_running_loop()
        job = _Job(call, loop.create_future(), context.request_id)
        entry = self._waiting.push(
            job, loop.time(), deadline=context.deadline, flow=context.stream, bulk=context.bulk
        )
        job.future.add_done_callback(partial(self._on_cancel, entry))
        self._dispatch(loop)
        return job.future

    def expected_s(self, context: RequestContext) -> float:
        """Return how long a call would take with the wait for a thread, in seconds.

        Args:
            context: The request that it belongs to.
        """
        if self._free:
            # Slow calls of the past say nothing about this one.
            return self._latency.shortest_s
        now = asyncio.get_running_loop().time()
        ordered = context.stream is None and not context.bulk
        due = virtual_deadline(now, context.deadline if ordered else None)
        before = self._waiting.count_before(due, context.bulk)
        rounds = 1.0 + (before + 1) / max(1, self._count - self.stuck)
        return rounds * self._latency.batch_s(1)

    @property
    def waiting(self) -> int:
        """Calls that wait for a thread."""
        return len(self._waiting)

    @property
    def threads(self) -> int:
        """Threads, spare ones included."""
        return self._count

    @property
    def busy(self) -> int:
        """Threads that run a call, stuck ones included."""
        return self._count - self._free

    def close(self) -> None:
        """Start no more calls; those that run are not waited for."""
        self._threads.close()
        if self._exhausted_timer is not None:
            self._exhausted_timer.cancel()

    def _on_cancel(self, entry: Entry[_Job], future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            self.cancelled += 1
            if not entry.taken:
                self._waiting.remove(entry, future.get_loop().time())

    def _dispatch(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._free and (entry := self._waiting.pop(loop.time())) is not None:
            if entry.item.future.done():  # cancelled in this iteration of the loop
                continue
            self._free -= 1
            job = entry.item
            job.started = loop.time()
            self._arm_timer(loop, job)
            self._threads.submit_callback(job.call, partial(self._complete, loop, job))

    def _arm_timer(self, loop: asyncio.AbstractEventLoop, job: _Job) -> None:
        job.polled_at = loop.time()
        job.timer = loop.call_later(self._poll_interval_s, self._check_timeout, loop, job)

    def _check_timeout(self, loop: asyncio.AbstractEventLoop, job: _Job) -> None:
        """Count how long a call has run."""
        job.elapsed_s += counted_s(loop.time() - job.polled_at, self._poll_interval_s)
        if job.elapsed_s < self._timeout_s:
            self._arm_timer(loop, job)
        else:
            self._on_timeout(loop, job)

    def _on_timeout(self, loop: asyncio.AbstractEventLoop, job: _Job) -> None:
        """Fail a call that takes too long; replace its thread."""
        job.stuck = True
        self.stuck += 1
        log.warning(
            "decoding an image of request %s takes longer than %g s (decode_timeout_s); stuck"
            " threads: %d of at most %d",
            job.request_id or "unknown",
            self._timeout_s,
            self.stuck,
            self._target + self.spares,
        )
        if not job.future.done():
            job.future.set_exception(decode_timeout_error("image", self._timeout_s))
        if self._add_spare():
            self._dispatch(loop)
        elif self.stuck == self._count:
            self._exhausted_timer = loop.call_later(self._timeout_s, self._on_exhausted)

    def _add_spare(self) -> bool:
        """Start a spare thread; return whether there was one."""
        if self._count == self._target + self.spares:
            return False
        try:
            self._threads.add()
        except RuntimeError as error:  # the system's limit, which may pass
            log.error("failed to start a spare decode thread: %s", error)
            return False
        self._count += 1
        self._free += 1
        return True

    def _on_exhausted(self) -> None:
        """Refuse all calls, waiting ones and new ones."""
        self._exhausted = True
        for entry in self._waiting:
            if not entry.item.future.done():
                entry.item.future.set_exception(_exhausted_error())
        dump_stacks()
        if self._on_hung is not None:
            self._on_hung(
                DecodingHung(
                    f"all {self._count} decode threads, {self.spares} spare ones included, have"
                    f" been stuck in images for {self._timeout_s:g} s (decode_timeout_s)"
                )
            )

    def _complete(
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
            self._reclaim()
        self._latency.observe(1, loop.time() - job.started)
        if not job.future.done():
            if error is None:
                job.future.set_result(result)
            else:
                job.future.set_exception(_as_exception(error))
        self._dispatch(loop)

    def _reclaim(self) -> None:
        """Reuse a stuck thread whose call has returned; end one if there are too many."""
        self.stuck -= 1
        if self._exhausted_timer is not None:
            self._exhausted_timer.cancel()
            self._exhausted_timer = None
        if self._count - self.stuck > self._target:
            self._threads.retire()
            self._count -= 1
            self._free -= 1


def _exhausted_error() -> ShuttingDown:
    return ShuttingDown("the server cannot decode images any more: all decode threads are stuck")


def _as_exception(error: BaseException) -> Exception:
    """Return an error for the image; others would end a task or the event loop."""
    if isinstance(error, Exception):
        return error
    failed = RuntimeError(f"decoding raised {error!r}")
    failed.__cause__ = error
    return failed
