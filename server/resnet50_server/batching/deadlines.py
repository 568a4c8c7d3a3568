"""Load shedding: refuses at once what cannot be answered in time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from resnet50_server.context import RequestContext, limit_for
from resnet50_server.errors import DeadlineUnreachable, QueueFull

from .batch import BatchPolicy, InFlightBatch
from .failed_batches import RetryQueue
from .fair_queue import BulkWeight, virtual_deadline
from .latency import JitterMargin
from .queue import TIMER_SLACK_S, VariantQueue
from .request_errors import deadline_error


class DeadlinePolicy:
    """Estimates when batches of one device end, and decides by that what is accepted and next.

    Args:
        policy: How batches form.
        workers: How many batches compute at once.
        prefetch: How many more are submitted before the device is free for them.
        queues: The queues of the device.
        in_flight: Batches submitted to the engine, in that order.
        retries: Failed batches that are retried before anything else.

    Attributes:
        margin: How much later than expected answers leave.
    """

    def __init__(
        self,
        policy: BatchPolicy,
        workers: int,
        prefetch: int,
        queues: Sequence[VariantQueue],
        in_flight: Sequence[InFlightBatch],
        retries: RetryQueue,
    ) -> None:
        self.margin = JitterMargin()
        self._policy = policy
        self._workers = workers
        self._prefetch = prefetch
        self._queues = queues
        self._in_flight = in_flight
        self._retries = retries
        self._bulk_weight = BulkWeight()

    def worker_free_times(self, now: float) -> list[float]:
        """Return when each of the device's workers is free, in loop time; sorted."""
        busy = sorted([max(now, batch.expected_end) for batch in self._in_flight])[-self._workers :]
        return [now] * (self._workers - len(busy)) + busy

    def free_at(self, now: float) -> float:
        """Return when the first of the workers is free, in loop time."""
        if len(self._in_flight) < self._workers:
            return now
        return self.worker_free_times(now)[0]

    def check(
        self,
        queue: VariantQueue,
        context: RequestContext,
        now: float,
        ready: float = 0.0,
    ) -> None:
        """Refuse an image for which there is no capacity, or no time.

        Args:
            queue: The queue of its variant.
            context: The context of its request. Admission control bounds the frames of streams.
            now: Loop time.
            ready: When it will be decoded, in loop time.

        Raises:
            QueueFull: See `check_capacity`.
            DeadlineUnreachable: See `check_deadline`.
        """
        if context.stream is None:
            self.check_capacity(queue, context, now)
        if context.deadline is None:
            return
        if self._is_idle():
            shortest_s = queue.shortest_s(now)
            ends = max(now, ready if shortest_s else now) + shortest_s
            if ends > context.deadline + TIMER_SLACK_S:
                raise deadline_error(context.deadline - now, ends - now)
        else:
            self.check_deadline(queue, context, now, ready)

    def check_capacity(self, queue: VariantQueue, context: RequestContext, now: float) -> None:
        """Refuse an image if its queue is full.

        Args:
            queue: The queue of its variant.
            context: The context of its request.
            now: Loop time.

        Raises:
            QueueFull: `max_queue_size` images wait already; or the image has no deadline, and is
                expected to wait for longer than `max_queue_wait_s`.
        """
        size, bulk = self._policy.max_queue_size, context.bulk
        waiting = queue.waiting.without_flow + queue.undecoded.without_flow
        if waiting >= limit_for(size, bulk):
            raise QueueFull(
                "max_queue_size",
                f"max_queue_size ({size}): {waiting} single images wait for variant"
                f" {queue.name}{', and the rest is for interactive ones' if bulk else ''}",
                max(0.01, self._wait_s(queue, queue.accepted, now)),
            )
        if context.deadline is not None:
            return
        longest_s = self._policy.max_queue_wait_s
        if self._wait_s(queue, queue.accepted, now) <= longest_s:
            return  # whatever its place
        due = virtual_deadline(now, None)
        wait_s = self._wait_s(queue, queue.count_before(due, bulk), now)
        if wait_s > longest_s:
            raise QueueFull(
                "max_queue_wait_s",
                f"max_queue_wait_s ({longest_s:g}): the images that wait for variant {queue.name}"
                f" take about {wait_s:.1f} s; call later, or with the deadline that you have",
                max(0.01, wait_s - longest_s),
            )

    def check_deadline(
        self,
        queue: VariantQueue,
        context: RequestContext,
        now: float,
        ready: float = 0.0,
    ) -> None:
        """Refuse an image that cannot be answered in time, or would make accepted ones late.

        Images with earlier deadlines go first. If there are several batches, each is expected to
        be full, because later arrivals fill it (ADR 0004). Images that are being
        decoded count like those that wait.

        Args:
            queue: The queue of its variant.
            context: The context of its request, which has a deadline.
            now: Loop time.
            ready: When it will be decoded, in loop time.

        Raises:
            DeadlineUnreachable: It cannot be, or would.
        """
        deadline, bulk = context.deadline, context.bulk
        assert deadline is not None
        due = virtual_deadline(now, None if bulk or context.stream is not None else deadline)
        batches, compute_s = self._retry_backlog()
        for other in self._queues:
            # Earlier images of other variants go first, in batches that later ones fill.
            if other is not queue and (images := other.count_before(due, bulk)):
                size = other.batch_size(other.limit.current(now))
                count = -(-images // size)
                batches += count
                compute_s += self._compute_s(other, min(count * size, other.accepted), size)
        limit = queue.batch_size(queue.limit.current(now), deadline - now)
        before, place = divmod(position := queue.count_before(due, bulk), limit)
        images = limit if before or queue.accepted >= limit else place + 1
        before_s = compute_s + (before * self._compute_s(queue, limit, limit) if before else 0.0)
        starts = self._start_after(batches + before, before_s, now)
        dispatched_at = max(ready, now if self._prefetch else starts)
        own_s = queue.latency.batch_s(images)
        # Each batch before its own may be late as well, by as long as it takes.
        margin_s = min(before_s + own_s, self.margin.seconds * (batches + before + 1))
        ends = max(dispatched_at + queue.preparation.batch_s(images), starts) + own_s
        if ends + margin_s > deadline + TIMER_SLACK_S:
            raise deadline_error(deadline - now, ends - now, margin_s)
        # Bulk delays no other image.
        if not bulk and queue.accepted >= (before + 1) * limit:
            self._check_moved(queue, position, limit, (batches, compute_s), now)

    def _check_moved(
        self,
        queue: VariantQueue,
        position: int,
        limit: int,
        others: tuple[int, float],
        now: float,
    ) -> None:
        """Refuse an image that would make an accepted one late.

        It pushes the last image of each batch behind it into the next batch.

        Args:
            queue: The queue of its variant.
            position: How many of its images go first.
            limit: How many images a batch has.
            others: How many batches go first besides, and how long they take, in seconds.
            now: Loop time.

        Raises:
            DeadlineUnreachable: It would.
        """
        batches, compute_s = others
        full_s, before = self._compute_s(queue, limit, limit), position // limit
        last = (before + 1) * limit - 1
        while (entry := queue.peek_at(last)) is not None:
            before += 1
            moved = entry.item.deadline
            after_s = compute_s + (before + 1) * full_s
            ends = self._start_after(batches + before + 1, after_s, now)
            if moved is not None and ends > moved + TIMER_SLACK_S:
                raise DeadlineUnreachable(
                    f"{position} images are due before this one, and those behind it were accepted"
                    " and would come too late; nothing was computed: allow more time or call"
                    " another server"
                )
            last += limit

    def next_queue(self, now: float) -> tuple[VariantQueue | None, float]:
        """Return the queue that the next batch is taken from, and when, in loop time.

        It is the one with the earliest deadline, however long its batches take: on one device no
        order makes the latest answer less late. Queues that have only bulk go last, but get one
        part in `BULK_EVERY` of the device's time.
        """
        delay_s = self._policy.max_queue_delay_ms / 1e3
        chosen, best = None, (0, now, 0.0)
        for queue in self._queues:
            if (due := queue.waiting.earliest_due()) is None:
                continue
            start, images = now, len(queue.waiting)
            if delay_s > 0.0 and images < queue.batch_size(queue.limit.current(now)):
                # The batch may wait to fill, but not past its earliest deadline.
                latest = due - queue.estimate_finish(images, 0.0, 0.0)
                start = max(now, min(queue.oldest_arrival() + delay_s, latest))
            rank = 0
            if queue.waiting.only_bulk:
                bulk_s = queue.latency.batch_s(min(images, queue.limit.current(now)))
                rank = -1 if self._bulk_weight.is_due(bulk_s) else 1
            if chosen is None or (rank, start, due) < best:
                chosen, best = queue, (rank, start, due)
        return chosen, best[1]

    def on_dispatched(self, queue: VariantQueue, images: int, only_bulk: bool) -> None:
        """Record a batch for the share of bulk.

        Args:
            queue: The queue that it was taken from.
            images: Its size.
            only_bulk: Whether the queue had only bulk.
        """
        if only_bulk:
            self._bulk_weight.reset()
        elif len(self._queues) > 1 and any(
            other.waiting.only_bulk for other in self._queues if other is not queue
        ):
            self._bulk_weight.add_interactive(queue.latency.batch_s(images))

    def on_answered(self, batch: InFlightBatch) -> None:
        """Learn how much later than expected the answers of a batch leave."""
        error_s = asyncio.get_running_loop().time() - batch.expected_end
        longest_s = batch.queue.latency.batch_s(len(batch))
        self.margin.observe(max(-longest_s, min(longest_s, error_s)))

    def _is_idle(self) -> bool:
        """Return whether the device has nothing to compute, now or once it is decoded."""
        return not (self._in_flight or self._retries or any(q.accepted for q in self._queues))

    def _start_after(self, batches: int, compute_s: float, now: float) -> float:
        """Return when the device has done `batches` that take `compute_s` in all, in loop time."""
        if not batches:
            return self.free_at(now)
        rounds, worker = divmod(batches, self._workers)
        return self.worker_free_times(now)[worker] + rounds * compute_s / batches

    def _compute_s(self, queue: VariantQueue, images: int, limit: int) -> float:
        """Return how long a worker is busy with images of a variant, in seconds."""
        if not images:
            return 0.0
        compute_s = queue.latency.estimate_s(images, limit)
        if self._prefetch:
            return compute_s
        return compute_s + queue.preparation.estimate_s(images, limit)

    def _retry_backlog(self) -> tuple[int, float]:
        """Return how many batches are retried, and how long they take, in seconds."""
        if not self._retries:
            return 0, 0.0
        sizes = [(batch.queue, len(batch.requests)) for batch in self._retries]
        return len(sizes), sum(self._compute_s(queue, size, size) for queue, size in sizes)

    def _wait_s(self, queue: VariantQueue, images: int, now: float) -> float:
        """Return how long an image waits behind so many others of its queue, in seconds."""
        compute_s = self._compute_s(queue, images, queue.limit.current(now))
        starts = self.free_at(now)
        if self._retries:
            starts = self._start_after(*self._retry_backlog(), now)
        return starts - now + compute_s / self._workers
