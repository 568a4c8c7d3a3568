"""A device and its engine in virtual time: what a batch takes is known exactly."""

from __future__ import annotations

import asyncio

import numpy as np

from resnet50_server.context import RequestContext
from resnet50_server.engines.base import BatchOutput


def image(number: int) -> np.ndarray:
    return np.full((3, 4, 4), number, dtype=np.uint8)


def context(*, within: float | None = None, **fields) -> RequestContext:
    """Return the context of a request whose result is due `within` seconds."""
    if within is not None:
        fields["deadline"] = asyncio.get_running_loop().time() + within
    return RequestContext("Classify", "", (), **fields)


class FakeEngine:
    """Answers each image with its own first pixel; lasts `alpha + beta * n` virtual seconds.

    Before that it prepares for `prepare_alpha + prepare_beta * n`, beside the device.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 0.0,
        prepare_alpha: float = 0.0,
        prepare_beta: float = 0.0,
    ) -> None:
        self.alpha, self.beta = alpha, beta
        self.prepare_alpha, self.prepare_beta = prepare_alpha, prepare_beta
        self.batches: list[list[int]] = []
        self.error: BaseException | None = None
        self.without_answer: int | None = None

    def run(self, images, top_k, with_embeddings) -> BatchOutput:
        numbers = [int(pixels[0, 0, 0]) for pixels in images]
        self.batches.append(numbers)
        if self.error is not None:
            raise self.error
        indices = np.array([[number] * top_k for number in numbers], dtype=np.int64)
        probabilities = np.full((len(numbers), top_k), 0.5, dtype=np.float32)
        probabilities[[number == self.without_answer for number in numbers]] = np.nan
        embeddings = np.array([[number] for number in numbers], dtype=np.float32)
        embeddings[[number == self.without_answer for number in numbers]] = np.inf
        duration = self.alpha + self.beta * len(numbers)
        return BatchOutput(
            indices, probabilities, embeddings if with_embeddings else None, duration
        )

    def padded(self, images: int) -> int:
        return images

    def close(self) -> None:
        pass


class VirtualThreads:
    """Computes a batch at once, and delivers it when a device with `workers` lanes would.

    Attributes:
        spans: When each batch was computed, in virtual seconds, in order of their submission.
    """

    def __init__(self, workers: int = 1) -> None:
        self._free = [0.0] * workers
        self.spans: list[tuple[float, float]] = []

    def submit_callback(self, call, done) -> None:
        engine, (images, *_) = call.func.__self__, call.args
        loop = asyncio.get_running_loop()
        ready = loop.time() + engine.prepare_alpha + engine.prepare_beta * len(images)
        lane = self._free.index(min(self._free))
        start = max(ready, self._free[lane])
        end = self._free[lane] = start + engine.alpha + engine.beta * len(images)
        self.spans.append((start, end))
        try:
            outcome = call(), None
        except BaseException as error:
            outcome = None, error
        loop.call_at(end, done, *outcome)


class VirtualDecoders:
    """Threads of a decode pool, each of which takes `decode_s` virtual seconds for a call."""

    def __init__(self, count: int, decode_s: float) -> None:
        self._free = [0.0] * count
        self._decode_s = decode_s

    def submit_callback(self, call, done) -> None:
        loop = asyncio.get_running_loop()
        lane = self._free.index(min(self._free))
        end = self._free[lane] = max(loop.time(), self._free[lane]) + self._decode_s
        loop.call_at(end, done, call(), None)
