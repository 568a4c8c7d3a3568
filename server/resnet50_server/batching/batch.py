"""A batch on its way through the device, and what each of its images gets of the output."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from resnet50_server.engines.base import BatchOutput
from resnet50_server.errors import EngineFailed
from resnet50_server.events import BatchEvent

from .queue import PendingRequest, VariantQueue
from .result import Result
from .retry import Rescue


@dataclass(frozen=True)
class BatchPolicy:
    """How batches form.

    Attributes:
        max_batch_size: Images in one batch, at most.
        max_queue_delay_ms: How long a free engine waits for a batch to fill; 0 takes what is there.
        max_queue_size: Images that may wait per variant; one more is refused.
        max_queue_wait_s: How long a request without a deadline may have to wait, in seconds; it is
            refused if the queue takes longer. Those with a deadline are judged by that.
    """

    max_batch_size: int = 32
    max_queue_delay_ms: float = 0.0
    max_queue_size: int = 512
    max_queue_wait_s: float = 30.0


@dataclass(eq=False, slots=True)
class InFlightBatch:
    """A batch that was handed to the device.

    Attributes:
        queue: Whose.
        entries: Its images.
        handed: When, in loop time.
        free_at: When the device was, or will be, free for it.
        ends: When it will have ended, as far as is known.
        alone: Whether the device was free for it at once, so that its preparation shows.
        rescue: What it is a part of, if it is run again.
        ran_s: How long the device has had it, in seconds, as the watchdog counts.
    """

    queue: VariantQueue
    entries: list[PendingRequest]
    handed: float
    free_at: float
    ends: float
    alone: bool
    rescue: Rescue | None = None
    ran_s: float = 0.0

    @property
    def starts(self) -> float:
        """When the device began, or begins, with it, in loop time."""
        return max(self.handed, self.free_at)


def seen(running: InFlightBatch, output: BatchOutput | None, now: float, device: str) -> BatchEvent:
    """Return a batch that has left the engine just now, as observers see it.

    Args:
        running: The batch.
        output: The engine's, if it has one.
        now: Loop time.
        device: That computed it.
    """
    ended = time.perf_counter()
    return BatchEvent(
        running.queue.name,
        len(running.entries),
        0.0 if output is None else output.compute_s,
        ended,
        [waiting.context for waiting in running.entries],
        failed=False,
        started=ended - max(0.0, now - running.starts),
        device=device,
    )


def answer(running: InFlightBatch, output: BatchOutput, batch: BatchEvent) -> None:
    """Give each image of a batch what it asked for, if that is made of numbers."""
    numbers = _finite(output)
    # Nobody is failed by what a candidate makes of a shadow.
    asked = [number for number, one in zip(numbers, running.entries, strict=True) if not one.shadow]
    running.queue.health.observe(len(asked), asked.count(False))
    batch.non_finite = numbers.count(False)
    for position, waiting in enumerate(running.entries):
        if waiting.future.done():
            continue
        if not numbers[position]:
            waiting.future.set_exception(EngineFailed("the network's answer is not a number"))
        else:
            waiting.future.set_result(_result(output, position, running, batch))


def _finite(output: BatchOutput) -> list[bool]:
    """Return for each image of a batch whether its answer is made of numbers."""
    numbers = np.asarray(np.isfinite(output.probabilities).all(axis=1))
    if output.embeddings is not None:
        numbers = numbers & np.isfinite(output.embeddings).all(axis=1)
    listed: list[bool] = numbers.tolist()
    return listed


def _result(
    output: BatchOutput, position: int, running: InFlightBatch, batch: BatchEvent
) -> Result:
    waiting = running.entries[position]
    embedding = None
    if waiting.with_embedding:
        assert output.embeddings is not None  # asked for by this request
        embedding = output.embeddings[position]
    return Result(
        indices=output.indices[position, : waiting.top_k],
        probabilities=output.probabilities[position, : waiting.top_k],
        embedding=embedding,
        queue_s=max(0.0, running.starts - waiting.arrived),
        compute_s=output.compute_s,
        batch_size=batch.size,
        batch=batch,
    )
