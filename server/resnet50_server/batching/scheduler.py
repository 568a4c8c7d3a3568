"""Dynamic batching: decoded images in, results out; batches form when the engine is free.

Everything here is on the event loop, so it needs no locks; it knows nothing of gRPC or torch. One
`Scheduler` feeds one device from one queue per variant. It is work-conserving: a free engine gets
the waiting requests, earliest deadline first and fair between streams, up to `max_batch_size`. A
request that is cancelled, or cannot meet its deadline, leaves its queue and costs nothing. Failed
batches are retried, see `failed_batches`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from contextvars import Context
from functools import partial

import numpy as np
from numpy.typing import NDArray

from resnet50_server.context import RequestContext
from resnet50_server.engines.base import BatchOutput, Engine
from resnet50_server.errors import EngineFailed, ServingError, ShuttingDown
from resnet50_server.events import BatchEvent, ServerEvents
from resnet50_server.runtime.fatal import EngineHung, FatalError, dump_stacks
from resnet50_server.runtime.worker_threads import WorkerThreads

from .batch import BatchPolicy, InFlightBatch
from .deadlines import DeadlinePolicy
from .failed_batches import AdaptiveBatchLimit, RetryQueue
from .hang_detector import HangDetector
from .latency import JitterMargin
from .queue import TIMER_SLACK_S, CancelCounts, PendingRequest, Undecoded, VariantQueue
from .request_errors import fail_pending
from .result import Result

log = logging.getLogger(__name__)

# How often `remove` checks whether a queue's last batches have ended.
POLL_INTERVAL_S = 0.005
FAILED = "the batch scheduler failed; see the log"


class Scheduler:
    """Feeds one device from the queues of its variants, a batch at a time.

    Made and used on a running event loop. It has no task: the arrival of a request and the end of a
    batch call `_dispatch`, which submits the batches that can start.

    Args:
        policy: How batches form.
        threads: The engine threads, `workers` + `prefetch` of them.
        on_fatal: Called once if the device is lost or hangs, or the scheduler itself fails: the
            server cannot serve any more.
        workers: How many batches compute at once.
        prefetch: How many more are submitted before the device is free for them, so that they are
            stacked and copied by then (docs/adr/0011-batch-prefetching.md).
        events: Receive every batch.
        device: Its name, for events.
        engine_timeout_s: See `HangDetector`.

    Attributes:
        busy_s: How long the device has computed, in seconds: the sum over ended batches divided by
            `workers`, so that it grows by 1 a second if all workers compute.
        cancelled: Counts the requests that clients have cancelled.
        hung: Whether a batch does not return from the engine.
    """

    def __init__(
        self,
        policy: BatchPolicy,
        threads: WorkerThreads,
        on_fatal: Callable[[FatalError], None] | None = None,
        workers: int = 1,
        prefetch: int = 0,
        events: ServerEvents | None = None,
        device: str = "",
        engine_timeout_s: float = 0.0,
    ) -> None:
        self.policy = policy
        self.workers = workers
        self.prefetch = prefetch
        self.busy_s = 0.0
        self.cancelled = CancelCounts()
        self.hung = False
        self._loop = asyncio.get_running_loop()
        self._threads = threads
        self._on_fatal = on_fatal
        self._events = events or ServerEvents()
        self._device = device
        self._queues: list[VariantQueue] = []  # two of one name while one replaces the other
        self._in_flight: list[InFlightBatch] = []  # in the order of their submission
        self._retries = RetryQueue(device, self._queues, self._fatal)
        self._deadlines = DeadlinePolicy(
            policy, workers, prefetch, self._queues, self._in_flight, self._retries
        )
        self._hang_detector = HangDetector(
            engine_timeout_s, self._in_flight, workers, self._on_hung
        )
        self._woken = False
        # Batches, timers and errors of the device belong to no request.
        self._context = Context()
        self._timer: asyncio.TimerHandle | None = None
        self._closing: BaseException | None = None

    def add(
        self,
        name: str,
        engine: Engine,
        warm: Iterable[tuple[int, float]] = (),
        image_size: tuple[int, int] = (224, 224),
    ) -> VariantQueue:
        """Make the queue of a variant.

        Args:
            name: The variant's name.
            engine: The engine that computes it.
            warm: Sizes and durations in seconds of batches that ran already; the first deadlines
                are judged by them.
            image_size: Height and width of its images, in pixels.
        """
        limit = AdaptiveBatchLimit(self.policy.max_batch_size)
        queue = VariantQueue(name, engine, limit, self.cancelled, self._loop.time, image_size)
        self._queues.append(queue)
        for images, duration_s in warm:
            queue.latency.observe(images, duration_s)
            queue.measured_at = self._loop.time()
        return queue

    def submit(
        self,
        queue: VariantQueue,
        image: NDArray[np.uint8],
        *,
        top_k: int,
        with_embedding: bool,
        context: RequestContext,
        accepted: bool = False,
    ) -> asyncio.Future[Result]:
        """Queue one decoded image; cancelling the returned future removes it.

        Args:
            queue: The variant's queue.
            image: uint8 [height, width, 3], RGB.
            top_k: Number of categories in the result; 0 for none.
            with_embedding: Whether the result has the embedding.
            context: The context of its request: its deadline; its stream, whose waiting images
                delay others by one at most; whether it goes behind interactive images.
            accepted: Whether `accept` has accepted it.

        Raises:
            QueueFull: `max_queue_size` images wait already.
            DeadlineUnreachable: It cannot meet its deadline, or an accepted one would miss its own.
            ShuttingDown: The scheduler is closed, or the variant accepts no more requests.
            VariantUnhealthy: The variant is out of service, and the image is no shadow.
            EngineFailed: (from the future) the engine failed on its batch.
            DoesNotFit: (from the future) the device has no memory for it.
        """
        now = self._loop.time()
        self._check_open(queue, context)
        if not accepted:
            self._deadlines.check(queue, context, now)
        future: asyncio.Future[Result] = self._loop.create_future()
        request = PendingRequest(image, top_k, with_embedding, context, now, future)
        queue.push(request)
        if not self._woken and len(self._in_flight) < self.workers + self.prefetch:
            # In the loop's next iteration: requests that arrive in this one share the batch.
            self._woken = True
            self._loop.call_soon(self._dispatch, context=self._context)
        return future

    def accept(
        self, queue: VariantQueue, context: RequestContext, decode_s: float = 0.0
    ) -> AbstractContextManager[None]:
        """Accept an image that is decoded in the `with` block, and submitted after it.

        Until then it counts like a waiting one, so that images that cannot be answered in time are
        refused before they are decoded.

        Args:
            queue: The variant's queue.
            context: The context of its request.
            decode_s: How long decoding takes, including the wait for a thread, in seconds.

        Raises:
            ServingError: As `submit`.
        """
        now = self._loop.time()
        self._check_open(queue, context)
        self._deadlines.check(queue, context, now, now + decode_s)
        return Undecoded(queue.undecoded, context, self._loop)

    async def remove(self, queue: VariantQueue, reason: ServingError, timeout_s: float) -> bool:
        """Close a queue, fail its waiting requests, and wait for its batches in flight.

        Args:
            queue: The queue of a variant that is unloaded.
            reason: The error of its waiting requests.
            timeout_s: How long its batches may take, in seconds.

        Returns:
            Whether they have ended; if not, the engine is still in use.
        """
        queue.removed = reason
        self._queues.remove(queue)
        fail_pending([entry.item for entry in queue.waiting], partial(type(reason), *reason.args))
        ends = self._loop.time() + timeout_s
        while self._has_batches(queue) and self._loop.time() < ends:
            await asyncio.sleep(POLL_INTERVAL_S)
        return not self._has_batches(queue)

    @property
    def batches(self) -> int:
        """Number of batches in flight."""
        return len(self._in_flight)

    @property
    def idle(self) -> bool:
        """True while no batch is in flight."""
        return not self._in_flight

    @property
    def margin(self) -> JitterMargin:
        """How much later than expected answers leave."""
        return self._deadlines.margin

    @property
    def queues(self) -> list[VariantQueue]:
        """The queues of its variants."""
        return list(self._queues)

    async def close(self) -> None:
        """Stop; pending requests fail with `ShuttingDown`."""
        self._closing = self._closing or ShuttingDown("closed")
        self._hang_detector.close()
        if self._timer is not None:
            self._timer.cancel()
        self._fail_all("the server stopped before it answered this request")

    def _check_open(self, queue: VariantQueue, context: RequestContext) -> None:
        if self._closing is not None:
            raise ShuttingDown() from self._closing
        queue.check_open(context.shadow)

    def _has_batches(self, queue: VariantQueue) -> bool:
        """Return whether batches of a queue are in flight, or will be retried."""
        return any(batch.queue is queue for batch in (*self._in_flight, *self._retries))

    def _fail_all(self, reason: str) -> None:
        """Fail all pending requests with `ShuttingDown`: clients ask another server."""
        requests = [entry.item for queue in self._queues for entry in queue.waiting]
        for batch in (*self._in_flight, *self._retries):
            requests += batch.requests
        fail_pending(requests, partial(ShuttingDown, reason))

    def _dispatch(self) -> None:
        """Submit the batches that can start."""
        self._woken = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        try:
            slots = self.workers + self.prefetch
            while self._closing is None and len(self._in_flight) < slots and self._dispatch_one():
                pass
        except Exception as error:
            self._fatal(FatalError(FAILED), error)

    def _dispatch_one(self) -> bool:
        """Form and submit one batch; return whether there may be another."""
        now = self._loop.time()
        if self._retries:
            # These requests have waited longest.
            free_at = self._deadlines.free_at(now)
            if retry := self._retries.pop(now, free_at):
                self._submit_to_engine(*retry, now=now, free_at=free_at)
            return True
        queue, start = self._deadlines.next_queue(now)
        if queue is None:
            return False
        free_at = self._deadlines.free_at(now)
        images, limit = len(queue.waiting), queue.batch_size(queue.limit.current(now))
        if len(self._in_flight) >= self.workers and images < limit:
            # Requests that arrive until the device is free could join: submit it only so early
            # that the device does not wait for it.
            start = max(start, free_at - queue.preparation.batch_s(images))
        if start > now + TIMER_SLACK_S:
            self._timer = self._loop.call_at(start, self._dispatch)
            return False
        only_bulk = queue.waiting.only_bulk
        requests = queue.take_batch(limit, now, free_at, self._deadlines.margin.seconds)
        if requests:
            self._submit_to_engine(queue, requests, now=now, free_at=free_at)
            self._deadlines.on_dispatched(queue, len(requests), only_bulk)
        return True

    def _submit_to_engine(
        self,
        queue: VariantQueue,
        requests: list[PendingRequest],
        attempts: int = 0,
        is_self_test: bool = False,
        *,
        now: float,
        free_at: float,
    ) -> None:
        batch = InFlightBatch(
            queue,
            requests,
            attempts,
            is_self_test,
            dispatched_at=now,
            device_free_at=free_at,
            device_was_idle=len(self._in_flight) < self.workers,
        )
        self._in_flight.append(batch)
        self._hang_detector.start()
        self._threads.submit_callback(batch.engine_call(), partial(self._on_returned, batch))

    def _on_returned(
        self, batch: InFlightBatch, output: BatchOutput | None, error: BaseException | None
    ) -> None:
        self._in_flight.remove(batch)
        if self._closing is not None:
            return
        try:
            self._complete(batch, output, error)
        except Exception as failure:
            # A bug of the scheduler. The requests of this batch are in no list any more.
            fail_pending(batch.requests, partial(EngineFailed, FAILED), failure)
            self._fatal(FatalError(FAILED), failure)
        self._dispatch()

    def _complete(
        self, batch: InFlightBatch, output: BatchOutput | None, error: BaseException | None
    ) -> None:
        """Resolve or retry the requests of a batch that has returned from the engine."""
        now = self._loop.time()
        event = batch.to_event(output, now, self._device)
        if len(self._in_flight) >= self.workers:
            # The next prefetched batch.
            self._in_flight[self.workers - 1].on_device_free(now)
        try:
            self._resolve(batch, output, error, event, now)
        except Exception as failure:
            # The engine's error, or its output is malformed.
            event.failed, event.compute_s = True, 0.0
            event.out_of_memory = self._retries.on_failed(batch, failure, now)
        # A failed batch has used the device as well.
        took_s = event.ended - event.started if event.failed else event.compute_s
        self.busy_s += max(0.0, took_s) / self.workers
        self._events.batch_ended(event)

    def _resolve(
        self,
        batch: InFlightBatch,
        output: BatchOutput | None,
        error: BaseException | None,
        event: BatchEvent,
        now: float,
    ) -> None:
        """Give the requests of a batch their results, and update the estimates."""
        if output is None:
            if isinstance(error, Exception):
                raise error
            # E.g. SystemExit: it must end neither a thread nor the event loop.
            raise RuntimeError(f"the engine raised {error!r}") from error
        was_expected = batch.queue.latency.covers(len(batch))
        batch.update_estimates(output, now)
        batch.resolve(output, event)
        self._retries.on_computed(batch)
        if was_expected:
            # After the tasks that send the results resolved here.
            self._loop.call_soon(self._deadlines.on_answered, batch)

    def _on_hung(self, batch: InFlightBatch) -> None:
        """Abandon the device, because a batch does not return."""
        self.hung = True
        dump_stacks()
        self._fatal(
            EngineHung(
                f"a batch of {len(batch)} on variant {batch.queue.name} has not returned from the"
                f" engine for {batch.ran_s:.1f} s (engine_timeout_s)"
            )
        )

    def _fatal(self, error: FatalError, cause: Exception | None = None) -> None:
        """Fail all pending requests, because the device or the scheduler is lost."""
        error.__cause__ = cause
        log.critical("%s", error, exc_info=cause)
        self._closing = error
        self._hang_detector.close()
        self._fail_all("the server has lost its engine")
        if self._on_fatal is not None:
            self._on_fatal(error)
