"""A device and its engine in virtual time: what a batch takes is known exactly."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from resnet50_server.context import RequestContext
from resnet50_server.engines.base import BatchOutput
from resnet50_server.runtime.worker_threads import WorkerThreads

if TYPE_CHECKING:
    Threads = WorkerThreads  # of which they have what a scheduler uses
else:
    Threads = object


def image(number: int) -> NDArray[np.uint8]:
    return np.full((3, 4, 4), number, dtype=np.uint8)


def context(*, within: float | None = None, **fields: Any) -> RequestContext:
    """Return the context of a request whose result is due `within` seconds."""
    if within is not None:
        fields["deadline"] = asyncio.get_running_loop().time() + within
    return RequestContext("Classify", "", (), **fields)


class FakeEngine:
    """Answers each image with its own first pixel.

    A batch lasts `alpha + beta * n + gamma * n**2` virtual seconds. Before that it
    prepares for `prepare_alpha + prepare_beta * n`, beside the device.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 0.0,
        prepare_alpha: float = 0.0,
        prepare_beta: float = 0.0,
        gamma: float = 0.0,
    ) -> None:
        self.alpha, self.beta, self.gamma = alpha, beta, gamma
        self.prepare_alpha, self.prepare_beta = prepare_alpha, prepare_beta
        self.sizes: tuple[int, ...] = ()
        self.batches: list[list[int]] = []
        self.error: BaseException | None = None
        self.without_answer: int | None = None

    def run(
        self, images: list[NDArray[np.uint8]], top_k: int, with_embeddings: bool
    ) -> BatchOutput:
        numbers = [int(pixels[0, 0, 0]) for pixels in images]
        self.batches.append(numbers)
        if self.error is not None:
            raise self.error
        indices = np.array([[number] * top_k for number in numbers], dtype=np.int64)
        probabilities = np.full((len(numbers), top_k), 0.5, dtype=np.float32)
        probabilities[[number == self.without_answer for number in numbers]] = np.nan
        embeddings = np.array([[number] for number in numbers], dtype=np.float32)
        embeddings[[number == self.without_answer for number in numbers]] = np.inf
        duration_s = self.duration_s(len(numbers))
        return BatchOutput(
            indices, probabilities, embeddings if with_embeddings else None, duration_s
        )

    def duration_s(self, images: int) -> float:
        return self.alpha + self.beta * images + self.gamma * images**2

    def padded(self, images: int) -> int:
        return images

    def close(self) -> None:
        pass


class VirtualThreads(Threads):
    """Computes a batch at once, and delivers it when a device with `workers` lanes would.

    Attributes:
        spans: When each batch was computed, in virtual seconds, in order of their submission.
    """

    def __init__(self, workers: int = 1) -> None:
        self._free = [0.0] * workers
        self.spans: list[tuple[float, float]] = []

    def submit_callback(self, call: Any, done: Any) -> None:
        engine, (images, *_) = call.func.__self__, call.args
        loop = asyncio.get_running_loop()
        ready = loop.time() + engine.prepare_alpha + engine.prepare_beta * len(images)
        lane = self._free.index(min(self._free))
        start = max(ready, self._free[lane])
        end = self._free[lane] = start + engine.duration_s(len(images))
        self.spans.append((start, end))
        result, failure = None, None
        try:
            result = call()
        except BaseException as error:
            failure = error
        loop.call_at(end, done, result, failure)


class VirtualDecoders(Threads):
    """Threads of a decode pool, each of which takes `decode_s` virtual seconds for a call."""

    def __init__(self, count: int, decode_s: float) -> None:
        self._free = [0.0] * count
        self._decode_s = decode_s

    def submit_callback(self, call: Any, done: Any) -> None:
        loop = asyncio.get_running_loop()
        lane = self._free.index(min(self._free))
        end = self._free[lane] = max(loop.time(), self._free[lane]) + self._decode_s
        loop.call_at(end, done, call(), None)
