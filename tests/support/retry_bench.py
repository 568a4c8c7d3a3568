"""A scheduler whose engine fails as a test says, in virtual time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from typing import Any

from resnet50_server.batching.batch import BatchPolicy
from resnet50_server.batching.scheduler import Scheduler
from resnet50_server.engines.base import BatchOutput
from resnet50_server.errors import EngineFailed
from resnet50_server.events import BatchEvent, ServerEvents
from tests.support.virtual_device import FakeEngine, VirtualThreads, context, image

SELF_TEST = 128  # the value of its pixels


class FaultyEngine(FakeEngine):
    """Fails the next runs, or all, and on batches larger than there is memory for.

    Attributes:
        failures: How many runs from now on fail.
        memory: Images that fit.
        broken: Whether every run fails.
    """

    def __init__(self, alpha: float = 1.0, **options: float) -> None:
        super().__init__(alpha, **options)
        self.failures = 0
        self.memory = math.inf
        self.broken = False

    def run(self, images: Any, top_k: int, with_embeddings: bool) -> BatchOutput:
        output = super().run(images, top_k, with_embeddings)
        if len(images) > self.memory:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to")
        if self.broken or self.failures:
            self.failures = max(0, self.failures - 1)
            raise ValueError("what the engine says")
        return output


class Seen(ServerEvents):
    """Keeps the batches that have ended."""

    def __init__(self) -> None:
        self.batches: list[BatchEvent] = []

    def batch_ended(self, batch: BatchEvent) -> None:
        self.batches.append(batch)


class Bench:
    """A scheduler with one variant."""

    def __init__(
        self, size: int = 32, workers: int = 1, prefetch: int = 0, **engine: float
    ) -> None:
        self.seen, self.engine, self.fatal = Seen(), FaultyEngine(**engine), []
        self.scheduler = Scheduler(
            BatchPolicy(max_batch_size=size),
            VirtualThreads(workers),
            self.fatal.append,
            workers,
            prefetch,
            self.seen,
            "cpu",
        )
        self.queue = self.scheduler.add("v", self.engine)

    def submit(self, number: int, within: float | None = None) -> asyncio.Future[Any]:
        """Submit the image of a number."""
        return self.scheduler.submit(
            self.queue,
            image(number),
            top_k=1,
            with_embedding=False,
            context=context(within=within),
        )

    async def outcomes(self, numbers: Iterable[int]) -> dict[int, object]:
        """Return what each of some images got, given together: its number, or the error's kind."""
        calls = {number: self.submit(number) for number in numbers}
        await asyncio.wait(calls.values())
        return {
            number: type(call.exception()) if call.exception() else int(call.result().indices[0])
            for number, call in calls.items()
        }

    async def recover(self) -> None:
        """Compute a self-test of the variant and put it into service, as `lifecycle` does."""
        await self.scheduler.submit(
            self.queue,
            image(1),
            top_k=1,
            with_embedding=True,
            context=context(shadow=True, bulk=True),
        )
        self.queue.health.recover()


def answered(numbers: Iterable[int]) -> dict[int, object]:
    """Return the outcomes of images that are all answered."""
    return {number: number for number in numbers}


def failed(numbers: Iterable[int]) -> dict[int, object]:
    """Return the outcomes of images that all fail."""
    return {number: EngineFailed for number in numbers}
