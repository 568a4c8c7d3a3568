"""The seam between batching and computing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Images: TypeAlias = list[NDArray[np.uint8]]
"""Decoded images: uint8 [crop, crop, 3] each, RGB."""


@dataclass(frozen=True)
class BatchOutput:
    """What an engine makes of a batch of N images.

    Attributes:
        indices: int64 [N, k], categories by falling probability; k = 0 if none was asked for.
        probabilities: float32 [N, k], softmax over all categories.
        embeddings: float32 [N, D], output of the global average pool; None if not asked for.
        compute_s: How long it took, in seconds, by the engine's own clock: under load the event
            loop learns late that a batch has ended.
    """

    indices: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    embeddings: NDArray[np.float32] | None
    compute_s: float


class Engine(Protocol):
    """One variant, ready to compute on one device.

    `run` blocks, and is only called from the engine threads of the device's scheduler: from one at
    a time, unless the device has several (`Devices`).

    Attributes:
        sizes: Batch sizes that something was prepared for, each of its own; empty if one program
            computes all sizes.
    """

    sizes: tuple[int, ...]

    def run(
        self, images: list[NDArray[np.uint8]], top_k: int, with_embeddings: bool
    ) -> BatchOutput:
        """Compute a batch.

        Args:
            images: N arrays uint8 [crop, crop, 3], RGB.
            top_k: How many categories to return for each image; 0 for none.
            with_embeddings: Whether embeddings are wanted.
        """
        ...

    def padded(self, images: int) -> int:
        """Return how many images the device really computes for a batch of `images`.

        A batch takes as long as the smallest size that was prepared and holds it.
        """
        ...

    def close(self) -> None:
        """Free the device's memory; no `run` follows, and none is under way.

        May block, for example while another engine is built: not for an engine thread.
        """
        ...
