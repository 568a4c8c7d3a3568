"""The images that wait for one variant, and how the next batch is taken from them."""

from __future__ import annotations

import asyncio
import math
import time
from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet50_server.engines.base import Engine
from resnet50_server.errors import DeadlineUnreachable, ServingError, VariantUnhealthy

from .batch_limit import BatchLimit
from .fair_queue import Entry, FairQueue
from .latency import LatencyModel
from .result import Result
from .variant_health import VariantHealth

# Timers fire, and clocks differ, by so much: a deadline is not missed by less.
TIMER_SLACK_S = 1e-6
# A batch takes the time of its most urgent request, from arrival to deadline, by so much at most.
BATCHES_IN_TIME = 4


@dataclass(eq=False, slots=True)
class PendingRequest:
    """One image in a queue, until its future is done.

    Attributes:
        image: uint8 [crop, crop, 3], RGB.
        top_k: How many categories are wanted; 0 for none.
        with_embedding: Whether the embedding is wanted.
        deadline: In loop time; None for no limit.
        arrived: In loop time.
        future: Gets the result.
        probe: Whether it is computed whatever its deadline, to see how fast the device is.
        context: What observers are told of it.
        shadow: Whether no caller waits for it.
        batched: Whether it is in a batch.
    """

    image: NDArray[np.uint8]
    top_k: int
    with_embedding: bool
    deadline: float | None
    arrived: float
    future: asyncio.Future[Result]
    probe: bool = False
    context: Any = None
    shadow: bool = False
    batched: bool = False


@dataclass(eq=False, slots=True)
class Undecoded:
    """An image that was accepted, and is still to be decoded.

    Attributes:
        deadline: In loop time; None for no limit.
    """

    deadline: float | None


@dataclass(eq=False, slots=True)
class CancelCounts:
    """How many images were cancelled by their callers; grows only.

    Attributes:
        waiting: Before they were in a batch.
        computing: In a batch, which computes them all the same.
    """

    waiting: int = 0
    computing: int = 0


class VariantQueue:
    """The images that wait for one variant's engine; made by `Scheduler.add`.

    Args:
        name: The variant's.
        engine: What computes them.
        cancelled: Counts those whose callers leave.
        max_batch_size: Images in a batch, at most.
        clock: Tells loop time.
        crop: Side of its images, in pixels.

    Attributes:
        crop: The same.
        latency: How long its batches take on the device.
        preparation: How long they take besides: to be handed over, stacked, copied, and for the
            event loop to learn that they have ended.
        waiting: Those that wait, in their order.
        undecoded: Those that will, in the same order: they were accepted, and are being decoded.
        measured_at: When a batch ended last, in loop time.
        removed: Why it takes no more images; None while it does.
        limit: How large its batches may be.
        health: Whether it is in service.
        failures: Batches in a row of which nothing could be computed.
        failing: Whether it has failed on a grey image since it has last computed one.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        cancelled: CancelCounts | None = None,
        max_batch_size: int = 32,
        clock: Callable[[], float] = time.monotonic,
        crop: int = 224,
    ) -> None:
        self.name = name
        self.engine = engine
        self.latency = LatencyModel(engine.padded)
        self.preparation = LatencyModel()
        self.waiting: FairQueue[PendingRequest] = FairQueue()
        self.undecoded: FairQueue[Undecoded] = FairQueue()
        self.measured_at = -math.inf
        self.removed: ServingError | None = None
        self.limit = BatchLimit(max_batch_size)
        self.crop = crop
        self.health = VariantHealth(name, clock)
        self.health.watch(self._on_health)
        self.failures = 0
        self.failing = False
        self._cancelled = cancelled or CancelCounts()

    def unhealthy(self) -> VariantUnhealthy:
        """Return what requests are told while the variant is out of service."""
        return VariantUnhealthy(f"variant {self.name} is out of service: {self.health.problem}")

    def _on_health(self) -> None:
        if self.health.problem is not None:
            fail_pending([entry.item for entry in self.waiting], self.unhealthy)

    def ends(self, images: int, handed: float, free_at: float) -> float:
        """Return when a batch will end, in loop time.

        Args:
            images: Its size.
            handed: When it is handed over.
            free_at: When the device is free to compute it; it is prepared meanwhile.
        """
        ready = handed + self.preparation.batch_s(images)
        return max(ready, free_at) + self.latency.batch_s(images)

    @property
    def accepted(self) -> int:
        """How many images wait for a batch, or will once they are decoded."""
        return len(self.waiting) + len(self.undecoded)

    def before(self, due: float, bulk: bool = False) -> int:
        """Return how many of those go before one that is due then; see `FairQueue.before`."""
        return self.waiting.before(due, bulk) + self.undecoded.before(due, bulk)

    def at(self, position: int) -> Entry[PendingRequest] | Entry[Undecoded] | None:
        """Return which of those has a position in the order, bulk aside; None if none has.

        Decoded ones count as the first: that is the order in which images are decoded, but for the
        few that something more urgent has overtaken.
        """
        decoded = self.waiting.interactive
        if position < decoded:
            return self.waiting.at(position)
        return self.undecoded.at(position - decoded)

    def push(self, waiting: PendingRequest, flow: Hashable | None, bulk: bool) -> None:
        """Add an image; it leaves by itself if its caller gives up."""
        entry = self.waiting.push(
            waiting, waiting.arrived, deadline=waiting.deadline, flow=flow, bulk=bulk
        )

        def leave(future: asyncio.Future[Result]) -> None:
            if not future.cancelled():
                return
            if waiting.batched:
                self._cancelled.computing += 1
                return
            self._cancelled.waiting += 1
            if not entry.taken:  # else `take` has passed it over
                self.waiting.remove(entry, future.get_loop().time())

        waiting.future.add_done_callback(leave)

    def due(self) -> float | None:
        """Return when the first of those that wait is due, in loop time; None if nothing waits."""
        # On bulk's turn, something more urgent may stand behind it.
        heads = (self.waiting.peek(), self.waiting.at(0))
        return min((head.due for head in heads if head is not None), default=None)

    def oldest(self) -> float:
        """Return when the longest-waiting image arrived, in loop time."""
        return min(entry.item.arrived for entry in self.waiting)

    def size(self, limit: int, within_s: float = math.inf) -> int:
        """Return how many images a batch may hold, so that deadlines can be met under overload.

        A request that comes just after a batch has begun waits for that one, and for its own. If
        both were as long as `limit` allows, its deadline would come before; the device would end
        up with many small batches, each just in time (docs/adr/0024-goodput.md).

        Args:
            limit: Images in a batch, at most.
            within_s: From arrival to deadline of a request that joins those that wait, in seconds.
        """
        head = self.waiting.at(0) or self.waiting.peek()
        if head is not None and head.item.deadline is not None:
            within_s = min(within_s, head.item.deadline - head.item.arrived)
        return self.latency.size(limit, within_s / BATCHES_IN_TIME)

    def take(
        self, limit: int, now: float, free_at: float, margin_s: float = 0.0
    ) -> list[PendingRequest]:
        """Take the next batch, what is due first; fail what would come too late.

        A batch lasts longer the more it holds, so its first deadline bounds it. While everything
        that waits fits into one batch, the batch is closed early to meet that deadline. When more
        waits than that, the device is behind, and small batches would put it further behind: then
        the request that a full batch would make late is given up (ADR 0004), and
        so is one that it would make late if it lasts as much longer as batches do now and then.

        Args:
            limit: Images in a batch, at most.
            now: Loop time.
            free_at: When the device is free; see `ends`.
            margin_s: How much later than expected answers leave, in seconds.
        """
        batch: list[Entry[PendingRequest]] = []
        while True:
            while len(batch) < limit and (entry := self.waiting.pop(now)) is not None:
                # A caller that gave up in this very turn of the loop has not left yet.
                if not entry.item.future.done():
                    batch.append(entry)
            first = min(
                (entry for entry in batch if entry.item.deadline is not None),
                key=lambda entry: entry.item.deadline or 0.0,
                default=None,
            )
            if first is None or first.item.deadline is None or first.item.probe:
                break
            deadline = first.item.deadline + TIMER_SLACK_S
            ends = self.ends(len(batch), now, free_at)
            if ends + (margin_s if self.waiting else 0.0) <= deadline:
                break
            if not self.waiting:
                sizes = range(1, len(batch))
                fitting = bisect_right(sizes, deadline, key=lambda n: self.ends(n, now, free_at))
                if fitting:
                    for entry in batch[fitting:]:
                        self.waiting.put_back(entry)
                    batch = batch[:fitting]
                    break
            batch.remove(first)
            first.item.future.set_exception(
                deadline_error(deadline - now, ends - now, accepted=True)
            )
        for entry in batch:
            entry.item.batched = True
        return [entry.item for entry in batch]

    def in_time(
        self, images: list[PendingRequest], now: float, free_at: float
    ) -> list[PendingRequest]:
        """Return those of a failed batch that are run again; fail what would come too late.

        Args:
            images: Some have left, perhaps.
            now: Loop time.
            free_at: When the device is free; see `ends`.
        """
        left = [waiting for waiting in images if not waiting.future.done()]
        while left:
            first = min(left, key=_deadline)
            # What is computed to see how fast the device is has only its own deadline.
            ends = now if first.probe else self.ends(len(left), now, free_at)
            if ends <= _deadline(first) + TIMER_SLACK_S:
                break
            left.remove(first)
            late = deadline_error(_deadline(first) - now, ends - now, accepted=True)
            first.future.set_exception(late)
        return left


def _deadline(waiting: PendingRequest) -> float:
    return math.inf if waiting.deadline is None else waiting.deadline


def fail_pending(
    those: Iterable[PendingRequest],
    refusal: Callable[[], ServingError],
    cause: Exception | None = None,
) -> None:
    """Fail images that have no answer yet.

    Args:
        those: Images.
        refusal: Makes what a caller is told: each has a traceback of its own.
        cause: Why.
    """
    for waiting in those:
        if not waiting.future.done():
            failure = refusal()
            failure.__cause__ = cause
            waiting.future.set_exception(failure)


def deadline_error(left_s: float, needed_s: float, accepted: bool = False) -> DeadlineUnreachable:
    """Return the refusal of a request that cannot be answered in time."""
    return DeadlineUnreachable(
        f"the deadline is {max(0.0, left_s) * 1e3:.1f} ms away and the answer needs about"
        f" {needed_s * 1e3:.1f} ms; nothing was computed: allow more time or call another server",
        accepted=accepted,
    )
