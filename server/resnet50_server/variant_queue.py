"""The images that wait for one variant, and how the next batch is taken from them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .engine.protocol import Engine
from .errors import DeadlineUnreachable
from .fair_queue import Entry, FairQueue
from .latency import LatencyModel


@dataclass(frozen=True)
class Result:
    """What the engine made of one image.

    Attributes:
        indices: int64 [k], categories by falling probability; k is what was asked for.
        probabilities: float32 [k].
        embedding: float32 [D], or None if not asked for.
        queue_s: From submission to the start of the batch, in seconds.
        compute_s: The batch on the engine, in seconds.
        batch_size: How many images shared the batch.
    """

    indices: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    embedding: NDArray[np.float32] | None
    queue_s: float
    compute_s: float
    batch_size: int


@dataclass(eq=False)
class Waiting:
    """One image in a queue, until its future is done.

    Attributes:
        image: uint8 [crop, crop, 3], RGB.
        top_k: How many categories are wanted; 0 for none.
        with_embedding: Whether the embedding is wanted.
        deadline: In loop time; None for no limit.
        arrived: In loop time.
        future: Gets the result.
        probe: Whether it is computed whatever its deadline, to see how fast the device is.
    """

    image: NDArray[np.uint8]
    top_k: int
    with_embedding: bool
    deadline: float | None
    arrived: float
    future: asyncio.Future[Result]
    probe: bool = False


@dataclass(eq=False)
class VariantQueue:
    """The images that wait for one variant's engine; made by `Scheduler.add`.

    Attributes:
        name: The variant's.
        engine: What computes them.
        latency: How long its batches take.
        waiting: Those that wait, in their order.
        measured_at: When a batch ended last, in loop time.
    """

    name: str
    engine: Engine
    latency: LatencyModel = field(default_factory=LatencyModel)
    waiting: FairQueue[Waiting] = field(default_factory=FairQueue)
    measured_at: float = -math.inf

    def push(self, waiting: Waiting, flow: Hashable | None) -> None:
        """Add an image; it leaves by itself if its caller gives up."""
        entry = self.waiting.push(waiting, waiting.arrived, deadline=waiting.deadline, flow=flow)

        def leave(future: asyncio.Future[Result]) -> None:
            if future.cancelled() and not entry.taken:
                self.waiting.remove(entry, future.get_loop().time())

        waiting.future.add_done_callback(leave)

    def due(self) -> float | None:
        """Return when the first of those that wait is due, in loop time; None if nothing waits."""
        entry = self.waiting.peek()
        return None if entry is None else entry.due

    def oldest(self) -> float:
        """Return when the longest-waiting image arrived, in loop time."""
        return min(entry.item.arrived for entry in self.waiting)

    def take(self, limit: int, now: float) -> list[Waiting]:
        """Take the next batch, what is due first; fail what would come too late.

        A batch lasts longer the more it holds, so its first deadline bounds it. While everything
        that waits fits into one batch, the batch is closed early to meet that deadline. When more
        waits than that, the device is behind, and small batches would put it further behind: then
        the request that a full batch would make late is given up (docs/adr/0004-deadlines.md).
        """
        batch: list[Entry[Waiting]] = []
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
            left_s = first.item.deadline - now
            needed_s = self.latency.estimate_s(len(batch), limit)
            if needed_s <= left_s:
                break
            fitting = self.latency.images_within(left_s)
            if fitting >= 1 and not self.waiting:
                for entry in batch[fitting:]:
                    self.waiting.put_back(entry)
                batch = batch[:fitting]
                break
            batch.remove(first)
            first.item.future.set_exception(too_late(left_s, needed_s))
        return [entry.item for entry in batch]


def too_late(left_s: float, needed_s: float) -> DeadlineUnreachable:
    """Return the refusal of a request that cannot be answered in time."""
    return DeadlineUnreachable(
        f"the deadline is {max(0.0, left_s) * 1e3:.1f} ms away and the answer needs about"
        f" {needed_s * 1e3:.1f} ms; nothing was computed: allow more time or call another server"
    )
