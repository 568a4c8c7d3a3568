"""Retries of failed batches, and the self-test that tells a failing variant from a lost device.

Images are uint8 [height, width, 3], so their content cannot make a forward pass fail: the cause is
the memory, the device or its driver. A batch that did not fit into memory is retried in smaller
ones, see `AdaptiveBatchLimit`; any other is retried once, whole, and then fails.

After `MAX_CONSECUTIVE_FAILURES` failed batches of a variant it is given a self-test: a fixed image,
as when its engine warmed up. A variant that fails it is out of service, and every other variant of
the device is tested too: if all of them fail, the device is lost.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from resnet50_server.context import RequestContext
from resnet50_server.engines.oom import is_out_of_memory
from resnet50_server.errors import DoesNotFit, EngineFailed
from resnet50_server.runtime.fatal import DeviceLost
from resnet50_server.runtime.tracebacks import clear_tracebacks

from .queue import PendingRequest, VariantQueue
from .request_errors import fail_pending

if TYPE_CHECKING:
    from .batch import InFlightBatch
    from .result import Result

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 2
MAX_CONSECUTIVE_FAILURES = 5
# For how long batches stay small after one that did not fit into memory. A few attempts in vain
# each half a minute cost nothing, and full batches are back soon after the memory is.
OOM_LIMIT_S = 30.0
# After how long clients should retry an image for which there was no memory: the process that has
# taken the memory needs some time to free it.
OOM_RETRY_AFTER_S = 5.0


class AdaptiveBatchLimit:
    """The maximum batch size of a variant; smaller for a while after running out of memory.

    Args:
        max_batch_size: The maximum at other times.
    """

    def __init__(self, max_batch_size: int) -> None:
        self._max_batch_size = self._fits = max_batch_size
        self._limited_until = -math.inf

    def current(self, now: float) -> int:
        """Return the maximum number of images of the next batch.

        Args:
            now: Loop time.
        """
        return self._fits if now < self._limited_until else self._max_batch_size

    def on_out_of_memory(self, size: int, now: float) -> bool:
        """Record that a batch of `size` images did not fit into the device's memory.

        Returns:
            Whether the size was not limited before.
        """
        is_new = now >= self._limited_until
        self._fits = max(1, min(self.current(now), size // 2))
        self._limited_until = now + OOM_LIMIT_S
        return is_new


class RetryBatch(NamedTuple):
    """Images of a failed batch, to be computed again.

    Attributes:
        queue: The queue of their variant.
        requests: The images.
        attempts: How many attempts have failed, those that did not fit into memory aside.
        is_self_test: Whether it is a self-test of the variant.
    """

    queue: VariantQueue
    requests: list[PendingRequest]
    attempts: int = 0
    is_self_test: bool = False


class RetryQueue:
    """The failed batches of one device, first in, first out; they go before everything else.

    Args:
        device: Its name.
        queues: The queues of its variants.
        on_lost: Called with the last error once all of them have failed.
    """

    def __init__(
        self,
        device: str,
        queues: Sequence[VariantQueue],
        on_lost: Callable[[DeviceLost, Exception], None],
    ) -> None:
        self._batches: deque[RetryBatch] = deque()
        self._device = device or "the device"
        self._queues = queues
        self._on_lost = on_lost
        self._in_self_test: set[VariantQueue] = set()

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[RetryBatch]:
        return iter(self._batches)

    def on_computed(self, batch: InFlightBatch) -> None:
        """Record that a batch was computed."""
        queue = batch.queue
        queue.consecutive_failures = 0
        queue.failed_self_test = False
        if batch.is_self_test:
            self._in_self_test.discard(queue)
            log.warning("variant %s passed its self-test on %s", queue.name, self._device)

    def on_failed(self, batch: InFlightBatch, error: Exception, now: float) -> bool:
        """Queue a failed batch for a retry, or fail its requests.

        Args:
            batch: The batch.
            error: The engine's error.
            now: Loop time.

        Returns:
            Whether the device had too little memory for it.
        """
        queue, size = batch.queue, len(batch)
        requests = [request for request in batch.requests if not request.future.done()]
        out_of_memory = is_out_of_memory(error)
        attempts = batch.attempts + (not out_of_memory)
        if out_of_memory:
            self._on_out_of_memory(queue, size, error, now)
        else:
            log.error(
                "a batch of %d failed on variant %s (attempt %d of %d)",
                size,
                queue.name,
                attempts,
                MAX_ATTEMPTS,
                exc_info=error,
            )
        if batch.is_self_test:
            self._on_self_test_failed(queue, error)
        elif all(request.context.shadow for request in batch.requests):
            # No client waits, and other batches tell whether the device is lost.
            fail_pending(requests, _failed, error)
        elif size > 1 if out_of_memory else attempts < MAX_ATTEMPTS:
            # The frames of the traceback keep the batch's memory.
            clear_tracebacks(error)
            self._batches.append(RetryBatch(queue, requests, attempts))
        elif out_of_memory:
            # No larger batch of the variant fits either.
            requests += self._drop(queue)
            fail_pending(requests, partial(DoesNotFit, self._device, OOM_RETRY_AFTER_S), error)
            self._count_failure(queue)
        else:
            fail_pending(requests, _failed, error)
            self._count_failure(queue)
        return out_of_memory

    def pop(self, now: float, device_free_at: float) -> RetryBatch | None:
        """Remove and return the next batch, as large as fits into memory; None if there is none.

        Cancelled requests are left out, those that would miss their deadline fail.

        Args:
            now: Loop time.
            device_free_at: When the device is free, in loop time.
        """
        while self._batches:
            batch = self._batches.popleft()
            requests = batch.queue.shed_late(batch.requests, now, device_free_at)
            if not requests:
                # Short deadlines must not hide that the variant computes nothing.
                self._count_failure(batch.queue)
                continue
            limit = batch.queue.limit.current(now)
            if len(requests) > limit:
                self._batches.appendleft(batch._replace(requests=requests[limit:]))
            return batch._replace(requests=requests[:limit])
        return None

    def _drop(self, queue: VariantQueue) -> list[PendingRequest]:
        """Remove the batches of a variant; return their requests."""
        dropped = [batch for batch in self._batches if batch.queue is queue]
        for batch in dropped:
            self._batches.remove(batch)
        return [request for batch in dropped for request in batch.requests]

    def _on_out_of_memory(
        self, queue: VariantQueue, size: int, error: Exception, now: float
    ) -> None:
        """Limit the batches of a variant; log if they were not limited already."""
        if queue.limit.on_out_of_memory(size, now):
            log.warning(
                "variant %s: %s has no memory for a batch of %d (%s: %s); it is retried in smaller"
                " batches, and for %g s no batch is larger than what fits. If this happens often,"
                " serve a smaller --max-batch-size or fewer variants",
                queue.name,
                self._device,
                size,
                type(error).__name__,
                str(error).strip().partition("\n")[0][:200],
                OOM_LIMIT_S,
            )

    def _count_failure(self, queue: VariantQueue) -> None:
        """Count a batch that failed for good, and test the variant if there were too many."""
        queue.consecutive_failures += 1
        if queue.consecutive_failures >= MAX_CONSECUTIVE_FAILURES:
            self._start_self_test(queue)

    def _start_self_test(self, queue: VariantQueue) -> None:
        """Give a variant its self-test next."""
        if queue not in self._in_self_test:
            self._in_self_test.add(queue)
            request = _self_test_request(queue.image_size)
            self._batches.appendleft(RetryBatch(queue, [request], is_self_test=True))

    def _on_self_test_failed(self, queue: VariantQueue, error: Exception) -> None:
        """Put a variant out of service, and test the other variants of the device."""
        self._in_self_test.discard(queue)
        queue.failed_self_test = True
        others = [one for one in self._queues if not one.failed_self_test]
        if not others:
            lost = f"every variant on {self._device} fails, also on its self-test; see the log"
            self._on_lost(DeviceLost(lost), error)
            return
        queue.health.fail(
            f"its engine fails on every batch on {self._device}, and on its self-test",
            "The log has the engine's errors: load the variant again (LoadVariant with replace), or"
            " restart",
        )
        fail_pending(self._drop(queue), queue.unhealthy_error, error)
        for other in others:
            self._start_self_test(other)


def _failed() -> EngineFailed:
    return EngineFailed("the engine failed on the batch of this image")


def _self_test_request(size: tuple[int, int]) -> PendingRequest:
    """Return the request of a self-test: an image of equal pixels."""
    future: asyncio.Future[Result] = asyncio.Future()
    future.add_done_callback(asyncio.Future.exception)  # or asyncio logs that it was not read
    image = np.full((*size, 3), 128, dtype=np.uint8)
    context = RequestContext("SelfTest", "", (), shadow=True)
    return PendingRequest(image, 1, False, context, 0.0, future)
