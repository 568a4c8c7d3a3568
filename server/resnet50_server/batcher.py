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
from collections.abc import Awaitable, Callable, Hashable
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .engine.protocol import BatchOutput, Engine
from .errors import EngineFailed, QueueFull, ShuttingDown
from .variant_queue import Result, VariantQueue, Waiting, too_late

log = logging.getLogger(__name__)

# One batch may fail for what is in it; so many in a row mean that the device is lost.
MAX_FAILURES = 5
# An idle device that was not measured for so long may have changed.
PROBE_AFTER_S = 1.0


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


class Scheduler:
    """Feeds one device from the queues of its variants, a batch at a time.

    Args:
        policy: How batches form.
        executor: Where engines run; one thread, so that a device has one owner.
        on_broken: Called once with the error if the device fails `MAX_FAILURES` batches in a row or
            the scheduling loop itself dies; the server then cannot answer any more and must say so.
    """

    def __init__(
        self,
        policy: BatchPolicy,
        executor: Executor,
        on_broken: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.policy = policy
        self._executor = executor
        self._on_broken = on_broken
        self._queues: dict[str, VariantQueue] = {}
        self._arrival = asyncio.Event()
        self._busy: VariantQueue | None = None
        self._busy_size = 0
        self._busy_since = 0.0
        self._running: set[asyncio.Future[Result]] = set()
        self._failures = 0
        self._closing: BaseException | None = None
        self._loop_task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to form batches, on the running loop."""
        self._loop_task = asyncio.get_running_loop().create_task(
            self._run(), name="batch-scheduler"
        )
        self._loop_task.add_done_callback(self._on_stopped)

    def add(self, name: str, engine: Engine) -> VariantQueue:
        """Give a variant its queue."""
        queue = VariantQueue(name, engine)
        self._queues[name] = queue
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
    ) -> Awaitable[Result]:
        """Queue one decoded image; cancelling what is returned takes it out again.

        Args:
            queue: The variant's queue.
            image: uint8 [crop, crop, 3], RGB.
            top_k: How many categories to return; 0 for none.
            with_embedding: Whether the embedding is wanted.
            deadline: When the answer must be there, in the loop's time; None for no limit.
            flow: What the image belongs to if it is one of many, such as a stream; however many of
                a flow wait, they delay nobody else by more than one.

        Raises:
            QueueFull: `max_queue_size` images wait already.
            DeadlineUnreachable: What waits and runs ahead takes longer than there is time.
            ShuttingDown: The scheduler has been closed.
            EngineFailed: (from the returned awaitable) the batch failed.
        """
        if self._closing is not None:
            raise ShuttingDown("the server is shutting down; call another one") from self._closing
        loop = asyncio.get_running_loop()
        now = loop.time()
        if len(queue.waiting) >= self.policy.max_queue_size:
            raise QueueFull(
                f"variant {queue.name}: max_queue_size ({self.policy.max_queue_size}) images wait",
                max(0.01, self._wait_s(queue, now)),
            )
        # What was learned may be wrong by now, and where everything is refused nothing is learned:
        # an idle device that was not measured lately takes one request, whatever is expected.
        probe = (
            self._busy is None
            and not queue.waiting
            and now - queue.measured_at > PROBE_AFTER_S
            and (deadline is None or now < deadline)
        )
        if deadline is not None and not probe:
            # Earliest deadline first: only what is due before this request runs ahead of it, which
            # is at least the running batch. Counting more would refuse what can be served.
            needed_s = self._remaining_s(now) + queue.latency.estimate_s(
                1, self.policy.max_batch_size
            )
            if now + needed_s > deadline:
                raise too_late(deadline - now, needed_s)
        future: asyncio.Future[Result] = loop.create_future()
        queue.push(Waiting(image, top_k, with_embedding, deadline, now, future, probe), flow)
        self._arrival.set()
        return future

    async def close(self) -> None:
        """Stop; whatever still waits is answered with `ShuttingDown`."""
        self._closing = self._closing or ShuttingDown("closed")
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.wait([self._loop_task])
        self._fail_all(ShuttingDown("the server stopped before it came to this request"))

    def _pending(self) -> set[asyncio.Future[Result]]:
        waiting = {
            entry.item.future
            for queue in self._queues.values()
            for entry in queue.waiting
            if not entry.item.future.done()
        }
        return waiting | {future for future in self._running if not future.done()}

    def _fail_all(self, error: Exception) -> None:
        for future in self._pending():
            future.set_exception(error)

    def _remaining_s(self, now: float) -> float:
        """Return how long the running batch will still take, in seconds."""
        if self._busy is None:
            return 0.0
        expected = self._busy.latency.estimate_s(self._busy_size, self.policy.max_batch_size)
        return max(0.0, self._busy_since + expected - now)

    def _wait_s(self, queue: VariantQueue, now: float) -> float:
        """Return how long the queue takes to empty, in seconds."""
        return self._remaining_s(now) + queue.latency.estimate_s(
            len(queue.waiting), self.policy.max_batch_size
        )

    async def _run(self) -> None:
        while True:
            queue = await self._next_queue()
            batch = queue.take(self.policy.max_batch_size, asyncio.get_running_loop().time())
            if batch:
                await self._compute(queue, batch)

    async def _next_queue(self) -> VariantQueue:
        """Wait until a batch should start; return its queue: the one with the earliest deadline."""
        loop = asyncio.get_running_loop()
        delay_s = self.policy.max_queue_delay_ms / 1000.0
        while True:
            self._arrival.clear()
            candidates = [
                (due, queue) for queue in self._queues.values() if (due := queue.due()) is not None
            ]
            if not candidates:
                await self._arrival.wait()
                continue
            if delay_s <= 0.0:
                return min(candidates, key=lambda candidate: candidate[0])[1]
            now = loop.time()
            starts = []
            for due, queue in candidates:
                # A batch is held back to fill, but never past its first deadline.
                latest = due - queue.latency.estimate_s(
                    len(queue.waiting), self.policy.max_batch_size
                )
                full = len(queue.waiting) >= self.policy.max_batch_size
                start = now if full else min(queue.oldest() + delay_s, latest)
                starts.append((start, due, queue))
            start, _, queue = min(starts, key=lambda candidate: candidate[:2])
            if start <= now:
                return queue
            timer = loop.call_at(start, self._arrival.set)
            try:
                await self._arrival.wait()
            finally:
                timer.cancel()

    async def _compute(self, queue: VariantQueue, entries: list[Waiting]) -> None:
        """Run one batch; whatever happens, each of its futures is done afterwards."""
        loop = asyncio.get_running_loop()
        images = [waiting.image for waiting in entries]
        top_k = max(waiting.top_k for waiting in entries)
        with_embeddings = any(waiting.with_embedding for waiting in entries)
        self._busy, self._busy_size, self._busy_since = queue, len(entries), loop.time()
        self._running = {waiting.future for waiting in entries}
        started = self._busy_since
        try:
            output = await loop.run_in_executor(
                self._executor, queue.engine.run, images, top_k, with_embeddings
            )
            queue.latency.observe(len(entries), output.compute_s)
            queue.measured_at, self._failures = loop.time(), 0
            finite = _finite(output)
            for position, waiting in enumerate(entries):
                if waiting.future.done():
                    continue
                if not finite[position]:
                    failure = EngineFailed("the network's answer is not a number")
                    waiting.future.set_exception(failure)
                else:
                    waiting.future.set_result(
                        _result(output, position, waiting, started, len(entries))
                    )
        except Exception as error:
            log.exception("a batch of %d failed on variant %s", len(entries), queue.name)
            self._failures += 1
            for waiting in entries:
                if not waiting.future.done():
                    failure = EngineFailed("the engine failed on this batch")
                    failure.__cause__ = error
                    waiting.future.set_exception(failure)
            if self._failures >= MAX_FAILURES:
                raise EngineFailed(f"{MAX_FAILURES} batches in a row failed") from error
        finally:
            self._busy = None
            self._running = set()
            for waiting in entries:  # only on cancellation, by `close`
                if not waiting.future.done():
                    waiting.future.set_exception(
                        ShuttingDown("the server stopped while it computed this request")
                    )

    def _on_stopped(self, task: asyncio.Task[None]) -> None:
        """Leave nobody hanging if the loop dies of a fault of ours."""
        if task.cancelled():
            return
        error = task.exception()
        assert error is not None  # the loop never returns
        log.critical("the batch scheduler died", exc_info=error)
        self._closing = error
        self._fail_all(EngineFailed("the batch scheduler died"))
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
    batch_size: int,
) -> Result:
    embedding = None
    if waiting.with_embedding:
        assert output.embeddings is not None  # asked for by this request
        embedding = output.embeddings[position]
    return Result(
        indices=output.indices[position, : waiting.top_k],
        probabilities=output.probabilities[position, : waiting.top_k],
        embedding=embedding,
        queue_s=started - waiting.arrived,
        compute_s=output.compute_s,
        batch_size=batch_size,
    )
