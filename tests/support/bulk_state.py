"""The state of a bulk call whose images are numbers, without a network."""

from __future__ import annotations

from resnet50_client import (
    RetryPolicy,
)
from resnet50_client._batch_sizes import MAX_BATCH_IMAGES
from resnet50_client._batches import (
    LINGER_S,
    Batches,
)
from resnet50_client._bulk_images import BulkLimits


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Run:
    """A run whose images are numbers, with a clock of its own."""

    def __init__(self, *, timeout_s: float = 30.0, ordered: bool = True, **limits) -> None:
        self.clock = Clock()
        retry = limits.pop("retry", RetryPolicy())
        self.batches: Batches[int] = Batches(
            BulkLimits(timeout_s, retry, ordered, **limits), self.clock
        )
        self.read = 0

    def add(self, count: int = 1, size: int = 100) -> None:
        for _ in range(count):
            self.batches.begin_read()
            self.batches.add(self.read, None, self.read, bytes(size))
            self.read += 1

    def end(self) -> None:
        self.batches.begin_read()
        self.batches.end()

    def calls(self) -> list:
        return list(iter(self.batches.next_call, None))

    def answer(self, call) -> None:
        self.batches.answered(call, [image.index for image in call.images])

    def taken(self) -> list:
        return list(iter(self.batches.take, None))

    def widen(self, images: int = 4 * MAX_BATCH_IMAGES) -> None:
        """Answer images, slow enough and fast enough, until so many may be in flight."""
        while self.batches.window < images:
            self.add(self.batches.window)
            for call in self.calls():
                self.answer(call)
        self.later(LINGER_S)
        while calls := self.calls():
            for call in calls:
                self.answer(call)
        self.taken()

    def later(self, seconds: float) -> None:
        self.clock.now += seconds


def indices(call) -> list[int]:
    return [image.index for image in call.images]


def outcomes(run: Run) -> dict[int, object]:
    return {one.index: one.error or one.result for one in run.taken()}
