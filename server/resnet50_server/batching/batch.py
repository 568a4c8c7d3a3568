"""A batch on the engine, and the results of its images."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from resnet50_server.engines.base import BatchOutput
from resnet50_server.errors import EngineFailed
from resnet50_server.events import BatchEvent

from .queue import PendingRequest, VariantQueue
from .result import Result


@dataclass(frozen=True)
class BatchPolicy:
    """How batches form.

    Attributes:
        max_batch_size: Maximum number of images in a batch.
        max_queue_delay_ms: How long a free engine waits for a batch to fill; 0: not at all.
        max_queue_size: Maximum number of images that wait per variant.
        max_queue_wait_s: Maximum expected wait of a request without a deadline, in seconds; those
            with a deadline are judged by that.
    """

    max_batch_size: int = 32
    max_queue_delay_ms: float = 0.0
    max_queue_size: int = 512
    max_queue_wait_s: float = 30.0


@dataclass(eq=False, slots=True)
class InFlightBatch:
    """A batch that was submitted to the engine.

    Attributes:
        queue: The queue of its variant.
        requests: Its images.
        attempts: How many attempts to compute it have failed.
        is_self_test: Whether it is a self-test of its variant, see `failed_batches`.
        dispatched_at: When it was submitted, in loop time.
        device_free_at: When the device is free for it, in loop time.
        device_was_idle: Whether the device was free at once, so that the time of its preparation
            can be measured.
        expected_end: When it is expected to end, in loop time.
        ran_s: How long the device has computed it, in seconds, as `HangDetector` counts.
    """

    queue: VariantQueue
    requests: list[PendingRequest]
    attempts: int
    is_self_test: bool
    dispatched_at: float
    device_free_at: float
    device_was_idle: bool
    expected_end: float = 0.0
    ran_s: float = 0.0

    def __post_init__(self) -> None:
        self.on_device_free(self.device_free_at)

    def __len__(self) -> int:
        return len(self.requests)

    @property
    def starts_at(self) -> float:
        """When the device began, or will begin, to compute it, in loop time."""
        return max(self.dispatched_at, self.device_free_at)

    def on_device_free(self, at: float) -> None:
        """Correct the estimates, because the device is free for this batch at that loop time."""
        self.device_free_at = at
        size = len(self.requests)
        self.expected_end = self.queue.estimate_finish(size, self.dispatched_at, at)

    def engine_call(self) -> Callable[[], BatchOutput]:
        """Return the call that computes it."""
        images, top_k, with_embedding = [], 0, False
        for request in self.requests:
            images.append(request.image)
            top_k = max(top_k, request.top_k)
            with_embedding = with_embedding or request.with_embedding
        return partial(self.queue.engine.run, images, top_k, with_embedding)

    def to_event(self, output: BatchOutput | None, now: float, device: str) -> BatchEvent:
        """Return the event of a batch that has just left the engine.

        Args:
            output: The engine's output; None if it raised.
            now: Loop time.
            device: Name of the device.
        """
        ended = time.perf_counter()
        return BatchEvent(
            self.queue.name,
            len(self.requests),
            0.0 if output is None else output.compute_s,
            ended,
            [request.context for request in self.requests],
            failed=False,
            started=ended - max(0.0, now - self.starts_at),
            device=device,
        )

    def update_estimates(self, output: BatchOutput, now: float) -> None:
        """Learn how long batches of the variant take, from one that was computed until `now`."""
        queue, size = self.queue, len(self.requests)
        queue.latency.observe(size, output.compute_s)
        if self.device_was_idle:
            preparation_s = now - self.dispatched_at - output.compute_s
            queue.preparation.observe(size, max(0.0, preparation_s))
        queue.measured_at = now

    def resolve(self, output: BatchOutput, event: BatchEvent) -> None:
        """Give each request its result; those with NaN or Inf in it fail."""
        finite = _finite(output)
        event.non_finite = finite.count(False)
        judged = failed = 0
        for position, request in enumerate(self.requests):
            if not request.context.shadow:
                # Clients get no result of a shadow, so it says nothing about the variant's health.
                judged += 1
                failed += not finite[position]
            if request.future.done():
                continue
            if finite[position]:
                request.future.set_result(self._result(output, position, event))
            else:
                request.future.set_exception(EngineFailed("the model produced NaN or Inf"))
        self.queue.health.record(judged, failed)

    def _result(self, output: BatchOutput, position: int, event: BatchEvent) -> Result:
        request = self.requests[position]
        embedding = None
        if request.with_embedding:
            assert output.embeddings is not None  # this request asked for it
            embedding = output.embeddings[position]
        return Result(
            indices=output.indices[position, : request.top_k],
            probabilities=output.probabilities[position, : request.top_k],
            embedding=embedding,
            queue_s=max(0.0, self.starts_at - request.arrived),
            compute_s=output.compute_s,
            batch_size=event.size,
            batch=event,
        )


def _finite(output: BatchOutput) -> list[bool]:
    """Return for each image of a batch whether its output is finite."""
    # By ufuncs alone: the methods of arrays are wrapped in Python.
    finite = np.logical_and.reduce(np.isfinite(output.probabilities), axis=1)
    if output.embeddings is not None:
        finite = finite & np.logical_and.reduce(np.isfinite(output.embeddings), axis=1)
    listed: list[bool] = finite.tolist()
    return listed
