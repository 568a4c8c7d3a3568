"""The pending requests of one variant, and how the next batch is taken from them."""

from __future__ import annotations

import asyncio
import math
import time
from bisect import bisect_right
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from resnet50_server.context import RequestContext
from resnet50_server.engines.base import Engine
from resnet50_server.errors import ServingError, VariantUnhealthy

from .fair_queue import Entry, FairQueue
from .latency import LatencyModel
from .request_errors import deadline_error, fail_pending
from .result import Result
from .variant_health import VariantHealth

if TYPE_CHECKING:
    from .failed_batches import AdaptiveBatchLimit

# Timers fire, and clocks differ, by so much: a deadline is not missed by less.
TIMER_SLACK_S = 1e-6
# A batch takes at most this part of its most urgent request's time from arrival to deadline.
BATCHES_PER_DEADLINE = 4
# A device that has been idle for so long may have changed its speed.
REMEASURE_AFTER_S = 1.0


@dataclass(eq=False, slots=True)
class PendingRequest:
    """One decoded image, until its future is done.

    Attributes:
        image: uint8 [height, width, 3], RGB.
        top_k: Number of categories in the result; 0 for none.
        with_embedding: Whether the result has the embedding.
        context: The context of its request.
        arrived: In loop time.
        future: Gets the result.
        batched: Whether it is in a batch.
    """

    image: NDArray[np.uint8]
    top_k: int
    with_embedding: bool
    context: RequestContext
    arrived: float
    future: asyncio.Future[Result]
    batched: bool = False

    @property
    def deadline(self) -> float | None:
        """When its result is due, in loop time; None for no limit."""
        return self.context.deadline


class Undecoded(AbstractContextManager[None]):
    """An accepted image while it is being decoded: in the queue until the `with` block ends.

    Args:
        queue: The queue of such images.
        context: The context of its request.
        loop: Tells the time.

    Attributes:
        deadline: In loop time; None for none.
    """

    __slots__ = ("_entry", "_loop", "_queue", "deadline")

    def __init__(
        self,
        queue: FairQueue[Undecoded],
        context: RequestContext,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.deadline = context.deadline
        self._queue = queue
        self._loop = loop
        self._entry = queue.push(
            self,
            loop.time(),
            deadline=context.deadline,
            flow=context.stream,
            bulk=context.bulk,
        )

    def __exit__(self, *_: object) -> None:
        entry = self._entry
        del self._entry  # it refers to this object
        self._queue.remove(entry, self._loop.time())


@dataclass(eq=False, slots=True)
class CancelCounts:
    """How many requests clients have cancelled; only increases.

    Attributes:
        waiting: Before they were in a batch.
        computing: In a batch, which computes them all the same.
    """

    waiting: int = 0
    computing: int = 0


class VariantQueue:
    """The pending requests of one variant; made by `Scheduler.add`.

    Args:
        name: The variant's name.
        engine: The engine that computes it.
        limit: How large its batches may be.
        cancelled: Counts its cancelled requests.
        clock: Returns loop time.
        image_size: Height and width of its images, in pixels.

    Attributes:
        image_size: Height and width of its images, in pixels.
        limit: How large its batches may be.
        latency: How long its batches take on the device.
        preparation: How long they take besides: submission, stacking, copying, and the way back to
            the event loop.
        waiting: Decoded requests, in their order.
        undecoded: Accepted images that are being decoded, in the same order.
        measured_at: When a batch ended last, in loop time.
        removed: Why it accepts no more requests; None while it does.
        health: Whether the variant is in service.
        consecutive_failures: Number of batches that have failed since one was computed.
        failed_self_test: Whether the variant has failed its self-test, and computed nothing since.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        limit: AdaptiveBatchLimit,
        cancelled: CancelCounts,
        clock: Callable[[], float] = time.monotonic,
        image_size: tuple[int, int] = (224, 224),
    ) -> None:
        self.name = name
        self.engine = engine
        self.limit = limit
        self.image_size = image_size
        self.latency = LatencyModel(engine.padded, steady=True)
        self.preparation = LatencyModel()
        self.waiting: FairQueue[PendingRequest] = FairQueue()
        self.undecoded: FairQueue[Undecoded] = FairQueue()
        self.measured_at = -math.inf
        self.removed: ServingError | None = None
        self.health = VariantHealth(name, clock)
        self.health.on_change(self._on_health)
        self.consecutive_failures = 0
        self.failed_self_test = False
        self._cancelled = cancelled

    def check_open(self, shadow: bool) -> None:
        """Refuse a request if the variant is being unloaded or is out of service.

        Args:
            shadow: Whether no client waits for it; then it may test a variant out of service.

        Raises:
            ServingError: `removed`, or `VariantUnhealthy`.
        """
        if self.removed is not None:
            raise type(self.removed)(*self.removed.args)
        if self.health.problem is not None and not shadow:
            raise self.unhealthy_error()

    def unhealthy_error(self) -> VariantUnhealthy:
        """Return the error of requests while the variant is out of service."""
        return VariantUnhealthy(f"variant {self.name} is out of service: {self.health.problem}")

    def _on_health(self) -> None:
        if self.health.problem is not None:
            fail_pending([entry.item for entry in self.waiting], self.unhealthy_error)

    def estimate_finish(self, images: int, dispatched_at: float, device_free_at: float) -> float:
        """Return when a batch is expected to end, in loop time.

        Args:
            images: Its size.
            dispatched_at: When it is submitted, in loop time.
            device_free_at: When the device is free for it; until then it is only prepared.
        """
        ready = dispatched_at + self.preparation.batch_s(images)
        return max(ready, device_free_at) + self.latency.batch_s(images)

    def shortest_s(self, arrived: float) -> float:
        """Return how long an image takes at best that an idle device computes alone, in seconds.

        By the fastest of the recent batches: on an idle device an image that comes too late delays
        no other, and if outdated estimates refused every image, they would never be updated. So it
        is 0 if none ended shortly before the image arrived: the device may be faster by now.

        Args:
            arrived: When the image arrived, in loop time.
        """
        if arrived - self.measured_at > REMEASURE_AFTER_S:
            return 0.0
        preparation, latency = self.preparation, self.latency
        return min(preparation.shortest_s, preparation.batch_s(1)) + min(
            latency.shortest_s, latency.batch_s(1)
        )

    @property
    def accepted(self) -> int:
        """Number of images that wait for a batch, or will once they are decoded."""
        return len(self.waiting) + len(self.undecoded)

    def count_before(self, due: float, bulk: bool = False) -> int:
        """Return how many accepted images go first; see `FairQueue.count_before`."""
        return self.waiting.count_before(due, bulk) + self.undecoded.count_before(due, bulk)

    def peek_at(self, position: int) -> Entry[PendingRequest] | Entry[Undecoded] | None:
        """Return the accepted image at a position, bulk aside; None if there is none.

        Decoded ones count as the first, because images are decoded in the same order, but for the
        few that a more urgent one has overtaken.
        """
        decoded = self.waiting.interactive
        if position < decoded:
            return self.waiting.peek_at(position)
        return self.undecoded.peek_at(position - decoded)

    def push(self, request: PendingRequest) -> None:
        """Add a request; it is removed when its future is cancelled."""
        context = request.context
        entry = self.waiting.push(
            request,
            request.arrived,
            deadline=context.deadline,
            flow=context.stream,
            bulk=context.bulk,
        )

        def discard_if_cancelled(future: asyncio.Future[Result]) -> None:
            if not future.cancelled():
                return
            if request.batched:
                self._cancelled.computing += 1
                return
            self._cancelled.waiting += 1
            if not entry.taken:  # otherwise `take_batch` has removed it
                self.waiting.remove(entry, future.get_loop().time())

        request.future.add_done_callback(discard_if_cancelled)

    def oldest_arrival(self) -> float:
        """Return when the longest-waiting request arrived, in loop time."""
        return min(entry.item.arrived for entry in self.waiting)

    def batch_size(self, limit: int, within_s: float = math.inf) -> int:
        """Return how many images a batch may have for deadlines to be met under overload.

        A request that arrives just after a batch was dispatched waits for that one, and for its
        own. If both were as long as `limit` allows, it would miss its deadline, and the device
        would compute many small batches, each just in time (docs/adr/0024-goodput.md).

        Args:
            limit: Maximum number of images in a batch.
            within_s: From arrival to deadline of a request that is about to join, in seconds.
        """
        head = self.waiting.peek_at(0) or self.waiting.peek()
        if head is not None and head.item.deadline is not None:
            within_s = min(within_s, head.item.deadline - head.item.arrived)
        if within_s == math.inf:
            return limit
        return self.latency.size(limit, within_s / BATCHES_PER_DEADLINE)

    def take_batch(
        self, limit: int, now: float, device_free_at: float, margin_s: float = 0.0
    ) -> list[PendingRequest]:
        """Remove and return the requests of the next batch; fail those that would end too late.

        A batch takes longer the more images it has, so its earliest deadline bounds it. While all
        waiting requests fit into one batch, it is made smaller to meet that deadline. When more
        are waiting, the device is behind, and small batches would put it further behind: then the
        request that a full batch would make late is shed (ADR 0004), as is one
        that it would make late if it is as late as batches usually are. An idle device computes the
        last one if that may be in time at all, see `shortest_s`.

        Args:
            limit: Maximum number of images in a batch.
            now: Loop time.
            device_free_at: When the device is free, in loop time.
            margin_s: How much later than expected batches end, in seconds.
        """
        batch: list[Entry[PendingRequest]] = []
        while True:
            while len(batch) < limit and (entry := self.waiting.pop(now)) is not None:
                # The callback of a future that was cancelled just now has not run yet.
                if not entry.item.future.done():
                    batch.append(entry)
            first, deadline = None, math.inf
            for entry in batch:
                due = entry.item.context.deadline
                if due is not None and due < deadline:
                    first, deadline = entry, due
            if first is None:
                break
            deadline += TIMER_SLACK_S
            ends = self._expected_end(first.item, len(batch), now, device_free_at)
            late_s = min(margin_s, self.latency.batch_s(len(batch))) if self.waiting else 0.0
            if ends + late_s <= deadline:
                break
            if not self.waiting:
                sizes = range(1, len(batch))
                fitting = bisect_right(
                    sizes, deadline, key=lambda n: self.estimate_finish(n, now, device_free_at)
                )
                if fitting:
                    for entry in batch[fitting:]:
                        self.waiting.put_back(entry)
                    batch = batch[:fitting]
                    break
            batch.remove(first)
            late = deadline_error(deadline - now, ends - now, late_s, accepted=True)
            first.item.future.set_exception(late)
        for entry in batch:
            entry.item.batched = True
        return [entry.item for entry in batch]

    def shed_late(
        self, requests: list[PendingRequest], now: float, device_free_at: float
    ) -> list[PendingRequest]:
        """Return the requests that can be retried in time; fail those that would end too late.

        Args:
            requests: Of a failed batch; some may be cancelled.
            now: Loop time.
            device_free_at: When the device is free, in loop time.
        """
        left = [request for request in requests if not request.future.done()]
        while left:
            first = min(left, key=_deadline)
            ends = self._expected_end(first, len(left), now, device_free_at)
            if ends <= _deadline(first) + TIMER_SLACK_S:
                break
            left.remove(first)
            late = deadline_error(_deadline(first) - now, ends - now, accepted=True)
            first.future.set_exception(late)
        return left

    def _expected_end(
        self, first: PendingRequest, images: int, now: float, device_free_at: float
    ) -> float:
        """Return when a batch ends that is submitted now; at best if only `first` is there."""
        if images == 1 and device_free_at <= now and not self.waiting:
            return now + self.shortest_s(first.arrived)
        return self.estimate_finish(images, now, device_free_at)


def _deadline(request: PendingRequest) -> float:
    return math.inf if request.deadline is None else request.deadline
