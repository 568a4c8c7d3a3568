"""Dynamic batching: decoded images in, results out, batches formed when the engine is free.

Lives wholly on the event loop, so it needs no locks; it knows nothing of gRPC or torch. One
`Scheduler` serves one device and holds one queue per variant. It is work-conserving: when the
engine is free it takes what waits, earliest deadline first and fair between streams, up to
`max_batch_size`. A request that is cancelled or whose deadline cannot be met leaves its queue and
costs nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from .engine.protocol import BatchOutput, Engine
from .errors import DeadlineUnreachable, EngineFailed, QueueFull, ServingError, ShuttingDown
from .fair_queue import due_at
from .latency import Margin
from .observer import Batch, Observer
from .priority import BULK_EVERY, share
from .threads import Threads
from .variant_queue import TICK_S, GivenUp, Result, VariantQueue, Waiting, too_late

log = logging.getLogger(__name__)

# One batch may fail for what is in it; so many in a row mean that the device is lost.
MAX_FAILURES = 5
# An idle device that was not measured for so long may have changed.
PROBE_AFTER_S = 1.0
# How often to look whether a queue's last batches have ended.
LOOK_S = 0.005


@dataclass(frozen=True)
class BatchPolicy:
    """How batches form.

    Attributes:
        max_batch_size: Images in one batch, at most.
        max_queue_delay_ms: How long a free engine waits for a batch to fill; 0 takes what is there.
        max_queue_size: Images that may wait per variant; one more is refused.
    """

    max_batch_size: int = 32
    max_queue_delay_ms: float = 0.0
    max_queue_size: int = 512


@dataclass(eq=False, slots=True)
class _Running:
    """A batch that was handed to the device.

    Attributes:
        queue: Whose.
        entries: Its images.
        handed: When, in loop time.
        free_at: When the device was, or will be, free for it.
        ends: When it will have ended, as far as is known.
        alone: Whether the device was free for it at once, so that its preparation shows.
    """

    queue: VariantQueue
    entries: list[Waiting]
    handed: float
    free_at: float
    ends: float
    alone: bool


class Scheduler:
    """Feeds one device from the queues of its variants, a batch at a time.

    Made and used on a running event loop. There is no task that loops: an arrival or the end of a
    batch calls `_form`, which hands over what can start.

    Args:
        policy: How batches form.
        threads: Where engines run; `workers` + `ahead` of them.
        on_broken: Called once with the error if the device fails `MAX_FAILURES` batches in a row or
            the scheduler itself does; the server then cannot answer any more and must say so.
        workers: How many batches compute at once.
        ahead: How many more may be handed over before the device is free for them, so that they
            are stacked and copied by then (docs/adr/0011-batches-in-flight.md).
        observer: Sees every batch.
        device: Its name, for observers.

    Attributes:
        busy_s: How long the device has computed, in seconds: the batches that have ended, each
            divided by `workers`, so that a device whose workers all compute gains 1 a second.
        given_up: Images that were cancelled by their callers.
    """

    def __init__(
        self,
        policy: BatchPolicy,
        threads: Threads,
        on_broken: Callable[[BaseException], None] | None = None,
        workers: int = 1,
        ahead: int = 0,
        observer: Observer | None = None,
        device: str = "",
    ) -> None:
        self.policy = policy
        self.workers = workers
        self.ahead = ahead
        self.busy_s = 0.0
        self.given_up = GivenUp()
        self._loop = asyncio.get_running_loop()
        self._threads = threads
        self._on_broken = on_broken
        self._observer = observer or Observer()
        self._device = device
        self._queues: list[VariantQueue] = []  # two of one name while one replaces the other
        self._running: list[_Running] = []  # in the order in which they were handed over
        self._woken = False
        self._timer: asyncio.TimerHandle | None = None
        self._failures = 0
        # How long the device has computed what is not bulk while a queue held nothing else.
        self._before_bulk_s = 0.0
        self._margin = Margin()
        self._closing: BaseException | None = None

    def add(
        self, name: str, engine: Engine, warm: Iterable[tuple[int, float]] = ()
    ) -> VariantQueue:
        """Give a variant its queue.

        Args:
            name: The variant's.
            engine: What computes it.
            warm: Sizes of batches that ran already, and how long they took, in seconds; the first
                deadlines are judged by them.
        """
        queue = VariantQueue(name, engine, self.given_up)
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

        Raises:
            QueueFull: `max_queue_size` images wait already.
            DeadlineUnreachable: What waits and runs ahead takes longer than there is time, or what
                waits already would come too late.
            ShuttingDown: The scheduler has been closed.
            EngineFailed: (from the returned awaitable) the batch failed.
        """
        if self._closing is not None:
            raise ShuttingDown() from self._closing
        if queue.removed is not None:
            raise type(queue.removed)(*queue.removed.args)
        now = self._loop.time()
        room = self.policy.max_queue_size
        if len(queue.waiting) >= share(room, bulk):
            raise QueueFull(
                "max_queue_size",
                f"max_queue_size ({room}): {len(queue.waiting)} images wait for variant"
                f" {queue.name}{', and the rest is for interactive ones' if bulk else ''}",
                max(0.01, self._wait_s(queue, now)),
            )
        probe = self._is_probe(queue, deadline, now)
        if deadline is not None and not probe:
            self._check(queue, deadline, flow, bulk, now)
        future: asyncio.Future[Result] = self._loop.create_future()
        waiting = Waiting(image, top_k, with_embedding, deadline, now, future, probe, context)
        waiting.shadow = shadow
        queue.push(waiting, flow, bulk)
        if not self._woken and len(self._running) < self.workers + self.ahead:
            # In the loop's next turn: what arrives in this one shares the batch.
            self._woken = True
            self._loop.call_soon(self._form)
        return future

    def check(
        self, queue: VariantQueue, deadline: float | None, flow: Hashable | None, bulk: bool = False
    ) -> None:
        """Refuse what could not be answered in time if it were submitted now.

        For images that are still to be decoded: those that are refused here cost no decoding.

        Raises:
            DeadlineUnreachable: As `submit`.
        """
        now = self._loop.time()
        if deadline is not None and not self._is_probe(queue, deadline, now):
            self._check(queue, deadline, flow, bulk, now)

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
        self._fail([entry.item for entry in queue.waiting], reason)
        ends = self._loop.time() + patience_s
        while runs := any(running.queue is queue for running in self._running):
            if self._loop.time() >= ends:
                break
            await asyncio.sleep(LOOK_S)
        return not runs

    async def close(self) -> None:
        """Stop; what waits or is being computed is answered with `ShuttingDown`."""
        self._closing = self._closing or ShuttingDown("closed")
        if self._timer is not None:
            self._timer.cancel()
        self._fail(
            self._in_batches(), ShuttingDown("the server stopped while it computed this request")
        )
        self._fail(
            self._in_queues(), ShuttingDown("the server stopped before it came to this request")
        )

    def _in_batches(self) -> list[Waiting]:
        return [waiting for running in self._running for waiting in running.entries]

    def _in_queues(self) -> list[Waiting]:
        return [entry.item for queue in self._queues for entry in queue.waiting]

    @staticmethod
    def _fail(those: list[Waiting], error: ServingError, cause: Exception | None = None) -> None:
        for waiting in those:
            if not waiting.future.done():
                failure = type(error)(*error.args)  # each caller's traceback is its own
                failure.__cause__ = cause
                waiting.future.set_exception(failure)

    def _lanes(self, now: float) -> list[float]:
        """Return when each of the device's `workers` is free for another batch; sorted."""
        busy = sorted(max(now, running.ends) for running in self._running)[-self.workers :]
        return [now] * (self.workers - len(busy)) + busy

    def _starts(self, batches: int, work_s: float, now: float) -> float:
        """Return when the device comes to what waits behind `batches` that take `work_s` in all."""
        lanes = self._lanes(now)
        if not batches:
            return lanes[0]
        rounds, lane = divmod(batches, self.workers)
        return lanes[lane] + rounds * work_s / batches

    def _work_s(self, queue: VariantQueue, images: int) -> float:
        """Return how long a worker is taken by images of a variant, in seconds."""
        limit = self.policy.max_batch_size
        work_s = queue.latency.estimate_s(images, limit)
        return work_s if self.ahead else work_s + queue.preparation.estimate_s(images, limit)

    def _wait_s(self, queue: VariantQueue, now: float) -> float:
        """Return how long the queue takes to empty, in seconds."""
        work_s = self._work_s(queue, len(queue.waiting))
        return self._starts(0, 0.0, now) - now + work_s / self.workers

    def _is_probe(self, queue: VariantQueue, deadline: float | None, now: float) -> bool:
        """Return whether a request is computed whatever is expected of its deadline.

        What was learned may be wrong by now, and where everything is refused nothing is learned: an
        idle device that was not measured lately takes one.
        """
        return (
            not self._running
            and not queue.waiting
            and now - queue.measured_at > PROBE_AFTER_S
            and (deadline is None or now < deadline)
        )

    def _check(
        self, queue: VariantQueue, deadline: float, flow: Hashable | None, bulk: bool, now: float
    ) -> None:
        """Refuse what cannot be answered in time, or would make late what was accepted before.

        What is due earlier runs first. Once there is more than one batch, each is expected to be
        full: those that come later fill it (docs/adr/0004-deadlines.md).
        """
        limit = self.policy.max_batch_size
        due = due_at(now, deadline if flow is None else None)
        batches, work_s = 0, 0.0
        for other in self._queues:
            # What is due before this takes along what is not, as far as its batch holds it.
            if other is not queue and (images := other.waiting.before(due, bulk)):
                count = -(-images // limit)
                batches += count
                work_s += self._work_s(other, min(count * limit, len(other.waiting)))
        full_s = self._work_s(queue, limit)
        before, place = divmod(position := queue.waiting.before(due, bulk), limit)
        images = limit if before or len(queue.waiting) >= limit else place + 1
        starts = self._starts(batches + before, work_s + before * full_s, now)
        ends = queue.ends(images, now if self.ahead else starts, starts) + self._margin.seconds
        if ends > deadline + TICK_S:
            raise too_late(deadline - now, ends - now)
        if bulk:
            return  # nobody stands behind it
        # Whoever is last in a batch before which this one comes becomes the first in the next.
        last = (before + 1) * limit - 1
        while (entry := queue.waiting.at(last)) is not None:
            before += 1
            moved = entry.item.deadline
            ends = self._starts(batches + before + 1, work_s + (before + 1) * full_s, now)
            if moved is not None and ends > moved + TICK_S:
                raise DeadlineUnreachable(
                    f"{position} images are due before this one, and those behind it were accepted"
                    " and would come too late; nothing was computed: allow more time or call"
                    " another server"
                )
            last += limit

    def _form(self) -> None:
        """Hand over what can start."""
        self._woken = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        try:
            while self._closing is None and self._form_one():
                pass
        except Exception as error:
            self._break(error)

    def _form_one(self) -> bool:
        """Form one batch and hand it over; return whether there may be another."""
        if len(self._running) >= self.workers + self.ahead:
            return False
        now = self._loop.time()
        queue, start = self._next(now)
        if queue is None:
            return False
        limit, free_at = self.policy.max_batch_size, self._lanes(now)[0]
        images = len(queue.waiting)
        if len(self._running) >= self.workers and images < limit:
            # What comes until the device is free could join: handed over just so much ahead that
            # the device does not wait for it.
            start = max(start, free_at - queue.preparation.batch_s(images))
        if start > now + TICK_S:
            self._timer = self._loop.call_at(start, self._form)
            return False
        only_bulk = queue.waiting.only_bulk
        batch = queue.take(limit, now, free_at)
        if batch:
            self._hand_over(queue, batch, now, free_at)
            if only_bulk:
                self._before_bulk_s = 0.0
            elif any(other.waiting.only_bulk for other in self._queues if other is not queue):
                self._before_bulk_s += queue.latency.batch_s(len(batch))
        return True

    def _next(self, now: float) -> tuple[VariantQueue | None, float]:
        """Return the queue that the next batch comes from, and how long it is held back to fill.

        The one with the earliest deadline, whatever its batches take: on one device no order makes
        the latest answer less late. One that holds bulk only goes behind those that do not, but for
        a sixteenth (`BULK_EVERY`) of the device's time.
        """
        limit, delay_s = self.policy.max_batch_size, self.policy.max_queue_delay_ms / 1e3
        chosen, best = None, (0, now, 0.0)
        for queue in self._queues:
            if (due := queue.due()) is None:
                continue
            start, images = now, len(queue.waiting)
            if delay_s > 0.0 and images < limit:
                # Held back to fill, but never past its first deadline.
                latest = due - queue.ends(images, 0.0, 0.0)
                start = max(now, min(queue.oldest() + delay_s, latest))
            place = (self._rank(queue), start, due)
            if chosen is None or place < best:
                chosen, best = queue, place
        return chosen, best[1]

    def _rank(self, queue: VariantQueue) -> int:
        """Return a queue's place among those of the device by its priority, the lowest first."""
        if not queue.waiting.only_bulk:
            return 0
        images = min(len(queue.waiting), self.policy.max_batch_size)
        return -1 if self._before_bulk_s > BULK_EVERY * queue.latency.batch_s(images) else 1

    def _hand_over(
        self, queue: VariantQueue, entries: list[Waiting], now: float, free_at: float
    ) -> None:
        running = _Running(
            queue,
            entries,
            handed=now,
            free_at=free_at,
            ends=queue.ends(len(entries), now, free_at),
            alone=len(self._running) < self.workers,
        )
        self._running.append(running)
        call = partial(
            queue.engine.run,
            [waiting.image for waiting in entries],
            max(waiting.top_k for waiting in entries),
            any(waiting.with_embedding for waiting in entries),
        )
        self._threads.start(call, partial(self._on_ended, running))

    def _on_ended(
        self, running: _Running, output: BatchOutput | None, error: BaseException | None
    ) -> None:
        self._running.remove(running)
        if self._closing is not None:
            return
        ended, now = time.perf_counter(), self._loop.time()
        batch = Batch(
            running.queue.name,
            len(running.entries),
            0.0 if output is None else output.compute_s,
            ended,
            [waiting.context for waiting in running.entries],
            failed=False,
            started=ended - max(0.0, now - max(running.handed, running.free_at)),
            device=self._device,
        )
        try:
            self._settle(running, output, error, batch)
        except Exception as failure:
            # What the engine returned may be as wrong as an error.
            batch.failed, batch.compute_s = True, 0.0
            self._on_failed(running, failure)
        # One that failed took the device's time as well, as far as can be seen from here.
        took_s = ended - batch.started if batch.failed else batch.compute_s
        self.busy_s += max(0.0, took_s) / self.workers
        self._observer.batch_ended(batch)
        self._form()

    def _settle(
        self,
        running: _Running,
        output: BatchOutput | None,
        error: BaseException | None,
        batch: Batch,
    ) -> None:
        """Take in what a batch made, and answer its images."""
        now, queue, size = self._loop.time(), running.queue, len(running.entries)
        if len(self._running) >= self.workers:
            # The device comes to the next one that was handed over ahead.
            following = self._running[self.workers - 1]
            following.free_at = now
            following.ends = following.queue.ends(len(following.entries), following.handed, now)
        if output is None:
            raise error or RuntimeError("the engine returned nothing")
        finite = _finite(output).tolist()
        foreseen = queue.latency.known
        queue.latency.observe(size, output.compute_s)
        if running.alone:
            queue.preparation.observe(size, max(0.0, now - running.handed - output.compute_s))
        started = max(running.handed, running.free_at)
        for position, waiting in enumerate(running.entries):
            if waiting.future.done():
                continue
            if not finite[position]:
                waiting.future.set_exception(EngineFailed("the network's answer is not a number"))
            else:
                waiting.future.set_result(_result(output, position, waiting, started, batch))
        queue.measured_at, self._failures = now, 0
        if foreseen:
            # Behind the callers' turns, which send what they were given here.
            self._loop.call_soon(self._on_answered, running)

    def _on_answered(self, running: _Running) -> None:
        """Learn how much later than expected a batch's answers leave."""
        error_s = self._loop.time() - running.ends
        longest_s = running.queue.latency.batch_s(len(running.entries))
        self._margin.observe(max(-longest_s, min(longest_s, error_s)))

    def _on_failed(self, running: _Running, error: Exception) -> None:
        size, name = len(running.entries), running.queue.name
        log.error("a batch of %d failed on variant %s", size, name, exc_info=error)
        # Nobody is failed by a candidate's, and others show whether the device is lost.
        self._failures += not all(waiting.shadow for waiting in running.entries)
        self._fail(running.entries, EngineFailed("the engine failed on this batch"), error)
        if self._failures >= MAX_FAILURES:
            broken = EngineFailed(f"{MAX_FAILURES} batches in a row failed")
            broken.__cause__ = error
            self._break(broken)

    def _break(self, error: Exception) -> None:
        """Leave nobody hanging when the device is lost, or by a fault of ours."""
        log.critical("the batch scheduler died", exc_info=error)
        self._closing = error
        self._fail(self._in_batches() + self._in_queues(), EngineFailed("the batch scheduler died"))
        if self._on_broken is not None:
            self._on_broken(error)


def _finite(output: BatchOutput) -> NDArray[np.bool_]:
    """Return for each image of a batch whether its answer is made of numbers: bool [N]."""
    finite = np.asarray(np.isfinite(output.probabilities).all(axis=1))
    if output.embeddings is not None:
        finite = finite & np.isfinite(output.embeddings).all(axis=1)
    return finite


def _result(
    output: BatchOutput,
    position: int,
    waiting: Waiting,
    started: float,
    batch: Batch,
) -> Result:
    embedding = None
    if waiting.with_embedding:
        assert output.embeddings is not None  # asked for by this request
        embedding = output.embeddings[position]
    return Result(
        indices=output.indices[position, : waiting.top_k],
        probabilities=output.probabilities[position, : waiting.top_k],
        embedding=embedding,
        queue_s=max(0.0, started - waiting.arrived),
        compute_s=output.compute_s,
        batch_size=batch.size,
        batch=batch,
    )
