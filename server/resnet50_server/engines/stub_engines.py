"""Engines without weights, to measure the cost of serving or to simulate a device."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from resnet50_server.variants.spec import Activation

from .base import BatchOutput

EMBEDDING_DIMENSION = 2048


class NullEngine:
    """Returns a constant result at once: the probability of category i falls with i.

    It measures the cost of everything but the network.

    Args:
        categories: Number of the variant's categories.
        activation: The variant's.
    """

    sizes: tuple[int, ...] = ()

    def __init__(self, categories: int, activation: Activation = "softmax") -> None:
        powers = np.exp(-np.arange(categories, dtype=np.float64))
        total = powers.sum() if activation == "softmax" else 1.0 + powers
        self._probabilities = (powers / total).astype(np.float32)
        self._indices = np.arange(categories, dtype=np.int64)
        for constant in (self._probabilities, self._indices):
            constant.flags.writeable = False

    def run(
        self, images: list[NDArray[np.uint8]], top_k: int, with_embeddings: bool
    ) -> BatchOutput:
        """Return the constant result for each image; see `Engine.run`."""
        return self._answer(time.perf_counter(), len(images), top_k, with_embeddings)

    def _answer(self, started: float, count: int, top_k: int, with_embeddings: bool) -> BatchOutput:
        """Return the result of a batch that was begun at a time of `time.perf_counter`."""
        embeddings = None
        if with_embeddings:
            embeddings = np.ones((count, EMBEDDING_DIMENSION), dtype=np.float32)
        shape = count, top_k
        return BatchOutput(  # views; `broadcast_to` would take longer than all the rest
            indices=np.ndarray(shape, np.int64, self._indices, strides=(0, 8)),
            probabilities=np.ndarray(shape, np.float32, self._probabilities, strides=(0, 4)),
            embeddings=embeddings,
            compute_s=time.perf_counter() - started,
        )

    def padded(self, images: int) -> int:
        """Return `images`, without padding."""
        return images

    def close(self) -> None:
        """Do nothing: there is nothing to free."""


class TimedEngine(NullEngine):
    """Simulates a device: like the null engine, but sleeps α + β·b for a batch of b images.

    Args:
        categories: Number of the variant's categories.
        alpha_ms: Time per batch, in milliseconds.
        beta_ms: Time per image, in milliseconds.
        activation: The variant's.
    """

    def __init__(
        self, categories: int, alpha_ms: float, beta_ms: float, activation: Activation = "softmax"
    ) -> None:
        super().__init__(categories, activation)
        self._alpha_s = alpha_ms / 1000.0
        self._beta_s = beta_ms / 1000.0

    def run(
        self, images: list[NDArray[np.uint8]], top_k: int, with_embeddings: bool
    ) -> BatchOutput:
        """Sleep α + β·b, then return the constant result; see `Engine.run`."""
        started = time.perf_counter()
        time.sleep(self._alpha_s + self._beta_s * len(images))
        return self._answer(started, len(images), top_k, with_embeddings)
