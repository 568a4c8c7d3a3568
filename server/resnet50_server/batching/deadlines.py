"""When a device comes to what waits for it: what cannot be answered in time is refused at once."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence

from resnet50_server.context import BULK_EVERY, limit_for
from resnet50_server.errors import DeadlineUnreachable, QueueFull

from .batch import BatchPolicy, InFlightBatch
from .fair_queue import virtual_deadline
from .latency import JitterMargin
from .queue import TIMER_SLACK_S, VariantQueue, deadline_error
from .retry import Part

# An idle device that was not measured for so long may have changed.
PROBE_AFTER_S = 1.0


class DeadlinePolicy:
    """Expects when batches end on one device, from those that run and wait.

    Args:
        policy: How batches form.
        workers: How many batches compute at once.
        prefetch: How many more may be handed over before the device is free for them.
        queues: Those of the device.
        running: Batches that were handed over, in that order.
        parts: What is run again before anything else.

    Attributes:
        margin: How much later than expected answers leave.
    """

    def __init__(
        self,
        policy: BatchPolicy,
        workers: int,
        prefetch: int,
        queues: Sequence[VariantQueue],
        running: Sequence[InFlightBatch],
        parts: Collection[Part],
    ) -> None:
        self.margin = JitterMargin()
        self._policy = policy
        self._workers = workers
        self._prefetch = prefetch
        self._queues = queues
        self._running = running
        self._parts = parts
        # How long the device has computed what is not bulk while a queue held nothing else.
        self._before_bulk_s = 0.0

    def lanes(self, now: float) -> list[float]:
        """Return when each of the device's workers is free for another batch; sorted."""
        busy = sorted(max(now, running.ends) for running in self._running)[-self._workers :]
        return [now] * (self._workers - len(busy)) + busy

    def check_capacity(
        self, queue: VariantQueue, deadline: float | None, bulk: bool, now: float
    ) -> None:
        """Refuse an image for which its queue has no room.

        Args:
            queue: Whose.
            deadline: In loop time; None for none.
            bulk: Whether it goes behind those that are not.
            now: Loop time.

        Raises:
            QueueFull: `max_queue_size` images wait already, or those before this one, which has no
                deadline, take longer than `max_queue_wait_s`.
        """
        room = self._policy.max_queue_size
        waiting = queue.waiting.alone + queue.undecoded.alone
        if waiting >= limit_for(room, bulk):
            raise QueueFull(
                "max_queue_size",
                f"max_queue_size ({room}): {waiting} single images wait for variant"
                f" {queue.name}{', and the rest is for interactive ones' if bulk else ''}",
                max(0.01, self._wait_s(queue, queue.accepted, now)),
            )
        if deadline is not None:
            return
        longest_s = self._policy.max_queue_wait_s
        wait_s = self._wait_s(queue, queue.before(virtual_deadline(now, None), bulk), now)
        if wait_s > longest_s:
            raise QueueFull(
                "max_queue_wait_s",
                f"max_queue_wait_s ({longest_s:g}): the images that wait for variant {queue.name}"
                f" take about {wait_s:.1f} s; call later, or with the deadline that you have",
                max(0.01, wait_s - longest_s),
            )

    def is_probe(self, queue: VariantQueue, deadline: float | None, now: float) -> bool:
        """Return whether a request is computed whatever is expected of its deadline.

        What was learned may be wrong by now, and where everything is refused nothing is learned: an
        idle device that was not measured lately takes one.
        """
        return (
            not self._running
            and not queue.accepted
            and now - queue.measured_at > PROBE_AFTER_S
            and (deadline is None or now < deadline)
        )

    def check_deadline(
        self,
        queue: VariantQueue,
        deadline: float,
        flow: Hashable | None,
        bulk: bool,
        now: float,
        ready: float = 0.0,
    ) -> None:
        """Refuse what cannot be answered in time, or would make late what was accepted before.

        What is due earlier runs first. Once there is more than one batch, each is expected to be
        full: those that come later fill it (ADR 0004). Those that are still to be
        decoded count like those that wait.

        Args:
            queue: Whose.
            deadline: In loop time.
            flow: What the image belongs to.
            bulk: Whether it goes behind those that are not.
            now: Loop time.
            ready: When it will have been decoded, in loop time.

        Raises:
            DeadlineUnreachable: That is so.
        """
        due = virtual_deadline(now, deadline if flow is None and not bulk else None)
        batches, work_s = self._again()
        for other in self._queues:
            # What is due before this takes along what is not, as far as its batch holds it.
            if other is not queue and (images := other.before(due, bulk)):
                most = other.size(other.limit.now(now))
                count = -(-images // most)
                batches += count
                work_s += self._work_s(other, min(count * most, other.accepted), most)
        limit = queue.size(queue.limit.now(now), deadline - now)
        full_s = self._work_s(queue, limit, limit)
        before, place = divmod(position := queue.before(due, bulk), limit)
        images = limit if before or queue.accepted >= limit else place + 1
        starts = self._starts(batches + before, work_s + before * full_s, now)
        handed = max(ready, now if self._prefetch else starts)
        # Each batch before its own may be late as well.
        margin_s = self.margin.seconds * (batches + before + 1)
        ends = queue.ends(images, handed, starts) + margin_s
        if ends > deadline + TIMER_SLACK_S:
            raise deadline_error(deadline - now, ends - now)
        if bulk:
            return  # nobody stands behind it
        # Whoever is last in a batch before which this one comes becomes the first in the next.
        last = (before + 1) * limit - 1
        while (entry := queue.at(last)) is not None:
            before += 1
            moved = entry.item.deadline
            ends = self._starts(batches + before + 1, work_s + (before + 1) * full_s, now)
            if moved is not None and ends > moved + TIMER_SLACK_S:
                raise DeadlineUnreachable(
                    f"{position} images are due before this one, and those behind it were accepted"
                    " and would come too late; nothing was computed: allow more time or call"
                    " another server"
                )
            last += limit

    def next(self, now: float) -> tuple[VariantQueue | None, float]:
        """Return the queue that the next batch comes from, and how long it is held back to fill.

        The one with the earliest deadline, whatever its batches take: on one device no order makes
        the latest answer less late. One that holds bulk only goes behind those that do not, but for
        a sixteenth (`BULK_EVERY`) of the device's time.
        """
        delay_s = self._policy.max_queue_delay_ms / 1e3
        chosen, best = None, (0, now, 0.0)
        for queue in self._queues:
            if (due := queue.due()) is None:
                continue
            start, images = now, len(queue.waiting)
            if delay_s > 0.0 and images < queue.size(queue.limit.now(now)):
                # Held back to fill, but never past its first deadline.
                latest = due - queue.ends(images, 0.0, 0.0)
                start = max(now, min(queue.oldest() + delay_s, latest))
            place = (self._rank(queue, now), start, due)
            if chosen is None or place < best:
                chosen, best = queue, place
        return chosen, best[1]

    def on_dispatched(self, queue: VariantQueue, images: int, only_bulk: bool) -> None:
        """Take in that a batch was handed over.

        Args:
            queue: Whose.
            images: Its size.
            only_bulk: Whether the queue held nothing else.
        """
        if only_bulk:
            self._before_bulk_s = 0.0
        elif any(other.waiting.only_bulk for other in self._queues if other is not queue):
            self._before_bulk_s += queue.latency.batch_s(images)

    def _rank(self, queue: VariantQueue, now: float) -> int:
        """Return a queue's place among those of the device by its priority, the lowest first."""
        if not queue.waiting.only_bulk:
            return 0
        images = min(len(queue.waiting), queue.limit.now(now))
        return -1 if self._before_bulk_s > BULK_EVERY * queue.latency.batch_s(images) else 1

    def _starts(self, batches: int, work_s: float, now: float) -> float:
        """Return when the device comes to what waits behind `batches` that take `work_s` in all."""
        lanes = self.lanes(now)
        if not batches:
            return lanes[0]
        rounds, lane = divmod(batches, self._workers)
        return lanes[lane] + rounds * work_s / batches

    def _work_s(self, queue: VariantQueue, images: int, limit: int) -> float:
        """Return how long a worker is taken by images of a variant, in seconds."""
        work_s = queue.latency.estimate_s(images, limit)
        return work_s if self._prefetch else work_s + queue.preparation.estimate_s(images, limit)

    def _again(self) -> tuple[int, float]:
        """Return how many batches are run again, and how long they take, in seconds."""
        if not self._parts:
            return 0, 0.0
        sizes = [(part.queue, len(part.images)) for part in self._parts]
        return len(sizes), sum(self._work_s(queue, size, size) for queue, size in sizes)

    def _wait_s(self, queue: VariantQueue, images: int, now: float) -> float:
        """Return how long so many images of a queue take, in seconds."""
        work_s = self._work_s(queue, images, queue.limit.now(now))
        return self._starts(*self._again(), now) - now + work_s / self._workers
