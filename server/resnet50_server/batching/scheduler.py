"""Dynamic batching: decoded images in, results out, batches formed when the engine is free.

Lives wholly on the event loop, so it needs no locks; it knows nothing of gRPC or torch. One
`Scheduler` serves one device and holds one queue per variant. It is work-conserving: when the
engine is free it takes what waits, earliest deadline first and fair between streams, up to
`max_batch_size`. A request that is cancelled or whose deadline cannot be met leaves its queue and
costs nothing. A batch that fails is run again in parts (`rescue`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import Context
from functools import partial

import numpy as np
from numpy.typing import NDArray

from resnet50_server.engines.base import BatchOutput, Engine
from resnet50_server.errors import EngineFailed, ServingError, ShuttingDown
from resnet50_server.events import BatchEvent, ServerEvents
from resnet50_server.runtime.fatal import EngineHung, FatalError, dump_stacks
from resnet50_server.runtime.worker_threads import WorkerThreads

from .batch import BatchPolicy, InFlightBatch, answer, seen
from .deadlines import DeadlinePolicy
from .hang_detector import HangDetector
from .queue import (
    TIMER_SLACK_S,
    CancelCounts,
    PendingRequest,
    Undecoded,
    VariantQueue,
    fail_pending,
)
from .result import Result
from .retry import Rescue, Rescues

log = logging.getLogger(__name__)

# How often to look whether a queue's last batches have ended.
LOOK_S = 0.005


class Scheduler:
    """Feeds one device from the queues of its variants, a batch at a time.

    Made and used on a running event loop. There is no task that loops: an arrival or the end of a
    batch calls `_dispatch`, which hands over what can start.

    Args:
        policy: How batches form.
        threads: Where engines run; `workers` + `ahead` of them.
        on_fatal: Called once if the device is lost, or hangs, or the scheduler itself fails; the
            server then cannot answer any more and must say so.
        workers: How many batches compute at once.
        prefetch: How many more may be handed over before the device is free for them, so that they
            are stacked and copied by then (docs/adr/0011-batch-prefetching.md).
        events: Receive every batch.
        device: Its name, for observers.
        engine_timeout_s: See `HangDetector`.

    Attributes:
        busy_s: How long the device has computed, in seconds: the batches that have ended, each
            divided by `workers`, so that a device whose workers all compute gains 1 a second.
        cancelled: Images that were cancelled by their callers.
        hung: Whether a batch has not come back, nor will.
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
        self._running: list[InFlightBatch] = []  # in the order in which they were handed over
        self._rescues = Rescues(device, self._queues, self._fatal)
        self._timetable = DeadlinePolicy(
            policy, workers, prefetch, self._queues, self._running, self._rescues.parts
        )
        self._hang_detector = HangDetector(engine_timeout_s, self._running, workers, self._on_hung)
        self._woken = False
        self._timer: asyncio.TimerHandle | None = None
        self._closing: BaseException | None = None

    def add(
        self,
        name: str,
        engine: Engine,
        warm: Iterable[tuple[int, float]] = (),
        crop: int = 224,
    ) -> VariantQueue:
        """Give a variant its queue.

        Args:
            name: The variant's.
            engine: What computes it.
            warm: Sizes of batches that ran already, and how long they took, in seconds; the first
                deadlines are judged by them.
            crop: Side of its images, in pixels.
        """
        queue = VariantQueue(
            name, engine, self.cancelled, self.policy.max_batch_size, self._loop.time, crop
        )
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
        deadline: float | None = None,
        flow: Hashable | None = None,
        bulk: bool = False,
        context: object = None,
        shadow: bool = False,
        accepted: bool = False,
    ) -> asyncio.Future[Result]:
        """Queue one decoded image; cancelling what is returned takes it out again.

        Args:
            queue: The variant's queue.
            image: uint8 [crop, crop, 3], RGB.
            top_k: How many categories to return; 0 for none.
            with_embedding: Whether the embedding is wanted.
            deadline: When the answer must be there, in the loop's time; None for no limit.
            flow: What the image belongs to if it is one of many, such as a stream; however many of
                a flow wait, they delay nobody else by more than one.
            bulk: Whether it goes behind those that are not; see `FairQueue`.
            context: What observers are told of the image.
            shadow: Whether no caller waits for it: where such batches fail, the device is not lost.
            accepted: Whether `accept` has taken it.

        Raises:
            QueueFull: `max_queue_size` images wait already.
            DeadlineUnreachable: What waits and runs ahead takes longer than there is time, or what
                waits already would come too late.
            ShuttingDown: The scheduler has been closed, or the variant takes no more images.
            VariantUnhealthy: The variant is out of service, and a caller waits.
            EngineFailed: (from the returned awaitable) the engine failed on it.
            DoesNotFit: (as well) the device has no memory for it.
        """
        if accepted:
            self._require_open(queue, shadow)
        else:
            self._require(queue, deadline, flow, bulk, shadow=shadow)
        now = self._loop.time()
        probe = self._timetable.is_probe(queue, deadline, now)
        future: asyncio.Future[Result] = self._loop.create_future()
        waiting = PendingRequest(
            image, top_k, with_embedding, deadline, now, future, probe, context
        )
        waiting.shadow = shadow
        queue.push(waiting, flow, bulk)
        if not self._woken and len(self._running) < self.workers + self.prefetch:
            # In the loop's next turn: what arrives in this one shares the batch.
            self._woken = True
            # In an empty context: batches, timers and faults of the device are no request's own.
            self._loop.call_soon(self._dispatch, context=Context())
        return future

    @contextmanager
    def accept(
        self,
        queue: VariantQueue,
        *,
        deadline: float | None = None,
        flow: Hashable | None = None,
        bulk: bool = False,
        decode_s: float = 0.0,
    ) -> Iterator[None]:
        """Accept an image that is decoded in the `with` block, and submitted after it.

        Meanwhile it counts like those that wait, so that what cannot be answered in time is refused
        before it is decoded, and not after.

        Args:
            queue: As for `submit`; so are the others.
            deadline: The same.
            flow: The same.
            bulk: The same.
            decode_s: How long that will take, the wait for a thread included, in seconds.

        Raises:
            ServingError: As `submit`.
        """
        self._require(queue, deadline, flow, bulk, decode_s)
        now = self._loop.time()
        entry = queue.undecoded.push(
            Undecoded(deadline), now, deadline=deadline, flow=flow, bulk=bulk
        )
        try:
            yield
        finally:
            queue.undecoded.remove(entry, self._loop.time())

    async def remove(self, queue: VariantQueue, reason: ServingError, patience_s: float) -> bool:
        """Take no more images into a queue, fail those that wait, wait for those that run.

        Args:
            queue: Of a variant that goes.
            reason: What those that wait are told.
            patience_s: How long those that run may take, in seconds.

        Returns:
            Whether they have ended; if not, the engine is still in use.
        """
        queue.removed = reason
        self._queues.remove(queue)
        fail_pending([entry.item for entry in queue.waiting], partial(type(reason), *reason.args))
        ends = self._loop.time() + patience_s
        while runs := self._runs(queue):
            if self._loop.time() >= ends:
                break
            await asyncio.sleep(LOOK_S)
        return not runs

    @property
    def idle(self) -> bool:
        """Whether no batch is with the device."""
        return not self._running

    @property
    def engines(self) -> list[Engine]:
        """Those of the variants that it serves."""
        return [queue.engine for queue in self._queues]

    async def close(self) -> None:
        """Stop; what waits or is being computed is answered with `ShuttingDown`."""
        self._closing = self._closing or ShuttingDown("closed")
        self._hang_detector.close()
        if self._timer is not None:
            self._timer.cancel()
        stopped = "the server stopped while it computed this request"
        fail_pending(self._in_batches(), partial(ShuttingDown, stopped))
        stopped = "the server stopped before it came to this request"
        fail_pending(self._in_queues(), partial(ShuttingDown, stopped))

    def _require(
        self,
        queue: VariantQueue,
        deadline: float | None,
        flow: Hashable | None,
        bulk: bool,
        decode_s: float = 0.0,
        shadow: bool = False,
    ) -> None:
        """Refuse an image for which there is no room, or no time."""
        self._require_open(queue, shadow)
        now, timetable = self._loop.time(), self._timetable
        if flow is None:  # frames are held back before they come here
            timetable.check_capacity(queue, deadline, bulk, now)
        if deadline is not None and not timetable.is_probe(queue, deadline, now):
            timetable.check_deadline(queue, deadline, flow, bulk, now, now + decode_s)

    def _require_open(self, queue: VariantQueue, shadow: bool) -> None:
        if self._closing is not None:
            raise ShuttingDown() from self._closing
        if queue.removed is not None:
            raise type(queue.removed)(*queue.removed.args)
        if queue.health.problem is not None and not shadow:
            raise queue.unhealthy()

    def _runs(self, queue: VariantQueue) -> bool:
        """Return whether batches of a queue are with the device, or will be again."""
        queues = [running.queue for running in self._running]
        queues += [part.queue for part in self._rescues.parts]
        return any(one is queue for one in queues)

    def _in_batches(self) -> list[PendingRequest]:
        batches = (
            *(running.entries for running in self._running),
            *(part.images for part in self._rescues.parts),
        )
        return [waiting for images in batches for waiting in images]

    def _in_queues(self) -> list[PendingRequest]:
        return [entry.item for queue in self._queues for entry in queue.waiting]

    def _dispatch(self) -> None:
        """Hand over what can start."""
        self._woken = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        try:
            while self._closing is None and self._dispatch_one():
                pass
        except Exception as error:
            self._fatal(_died(error))

    def _dispatch_one(self) -> bool:
        """Form one batch and hand it over; return whether there may be another."""
        if len(self._running) >= self.workers + self.prefetch:
            return False
        now = self._loop.time()
        free_at = self._timetable.lanes(now)[0]
        if self._rescues.parts:
            # Its images have waited longest.
            if part := self._rescues.next(now, free_at):
                self._submit_to_engine(part.queue, part.images, now, free_at, part.rescue)
            return True
        queue, start = self._timetable.next(now)
        if queue is None:
            return False
        images, limit = len(queue.waiting), queue.size(queue.limit.now(now))
        if len(self._running) >= self.workers and images < limit:
            # What comes until the device is free could join: handed over just so much ahead that
            # the device does not wait for it.
            start = max(start, free_at - queue.preparation.batch_s(images))
        if start > now + TIMER_SLACK_S:
            self._timer = self._loop.call_at(start, self._dispatch)
            return False
        only_bulk = queue.waiting.only_bulk
        batch = queue.take(limit, now, free_at, self._timetable.margin.seconds)
        if batch:
            self._submit_to_engine(queue, batch, now, free_at)
            self._timetable.on_dispatched(queue, len(batch), only_bulk)
        return True

    def _submit_to_engine(
        self,
        queue: VariantQueue,
        entries: list[PendingRequest],
        now: float,
        free_at: float,
        rescue: Rescue | None = None,
    ) -> None:
        running = InFlightBatch(
            queue,
            entries,
            handed=now,
            free_at=free_at,
            ends=queue.ends(len(entries), now, free_at),
            alone=len(self._running) < self.workers,
            rescue=rescue,
        )
        self._running.append(running)
        self._hang_detector.start()
        call = partial(
            queue.engine.run,
            [waiting.image for waiting in entries],
            max(waiting.top_k for waiting in entries),
            any(waiting.with_embedding for waiting in entries),
        )
        self._threads.submit_callback(call, partial(self._on_ended, running))

    def _on_ended(
        self, running: InFlightBatch, output: BatchOutput | None, error: BaseException | None
    ) -> None:
        self._running.remove(running)
        if self._closing is not None:
            return
        try:
            self._complete(running, output, error)
        except Exception as fault:
            # Ours. Its images are nowhere any more but here.
            fail_pending(running.entries, partial(EngineFailed, "the batch scheduler died"), fault)
            self._fatal(_died(fault))
        self._dispatch()

    def _complete(
        self, running: InFlightBatch, output: BatchOutput | None, error: BaseException | None
    ) -> None:
        """Account for a batch that has left the engine, and answer its images or try again."""
        now = self._loop.time()
        batch = seen(running, output, now, self._device)
        if len(self._running) >= self.workers:
            # The device comes to the next one that was handed over ahead.
            following = self._running[self.workers - 1]
            following.free_at = now
            following.ends = following.queue.ends(len(following.entries), following.handed, now)
        try:
            self._answer(running, output, error, batch)
        except Exception as failure:
            # What the engine returned may be as wrong as an error.
            batch.failed, batch.compute_s = True, 0.0
            batch.out_of_memory = self._rescues.failed(
                running.queue, running.entries, running.rescue, failure, now
            )
        # One that failed took the device's time as well, as far as can be seen from here.
        took_s = batch.ended - batch.started if batch.failed else batch.compute_s
        self.busy_s += max(0.0, took_s) / self.workers
        self._events.batch_ended(batch)

    def _answer(
        self,
        running: InFlightBatch,
        output: BatchOutput | None,
        error: BaseException | None,
        batch: BatchEvent,
    ) -> None:
        """Take in what a batch made, and answer its images."""
        now, queue, size = self._loop.time(), running.queue, len(running.entries)
        if output is None:
            if isinstance(error, Exception):
                raise error
            # What would end a thread, or the event loop, is none of theirs.
            raise RuntimeError(f"the engine raised {error!r}") from error
        foreseen = queue.latency.known
        queue.latency.observe(size, output.compute_s)
        if running.alone:
            queue.preparation.observe(size, max(0.0, now - running.handed - output.compute_s))
        answer(running, output, batch)
        queue.measured_at = now
        self._rescues.computed(queue, running.rescue)
        if foreseen:
            # Behind the callers' turns, which send what they were given here.
            self._loop.call_soon(self._on_answered, running)

    def _on_answered(self, running: InFlightBatch) -> None:
        """Learn how much later than expected a batch's answers leave."""
        error_s = self._loop.time() - running.ends
        longest_s = running.queue.latency.batch_s(len(running.entries))
        self._timetable.margin.observe(max(-longest_s, min(longest_s, error_s)))

    def _on_hung(self, running: InFlightBatch) -> None:
        """Turn everybody away from a device that does not come back."""
        self.hung = True
        dump_stacks()
        self._fatal(
            EngineHung(
                f"a batch of {len(running.entries)} on variant {running.queue.name} has not come"
                f" back from the engine for {running.ran_s:.1f} s (engine_timeout_s)"
            )
        )

    def _fatal(self, fault: FatalError) -> None:
        """Leave nobody hanging when the device is lost, or by a fault of ours."""
        log.critical("%s", fault, exc_info=fault.__cause__)
        self._closing = fault
        self._hang_detector.close()
        # What has not been computed yet, or is still being, is somebody else's to compute.
        lost = partial(ShuttingDown, "the server has lost its engine")
        fail_pending(self._in_batches() + self._in_queues(), lost)
        if self._on_fatal is not None:
            self._on_fatal(fault)


def _died(error: Exception) -> FatalError:
    """Return what a fault in here comes to."""
    died = FatalError("the batch scheduler died; the log says why")
    died.__cause__ = error
    return died
