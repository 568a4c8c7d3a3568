"""Protocol of engines, which compute batches."""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Images: TypeAlias = list[NDArray[np.uint8]]
"""Decoded images: uint8 [height, width, 3] each, RGB, of one size; some are read-only views."""


class BatchOutput(NamedTuple):
    """Output of an engine for a batch of N images.

    Attributes:
        indices: int64 [N, k], categories by falling probability; k = 0 if none are requested.
        probabilities: float32 [N, k], by the variant's activation: softmax over all categories, or
            sigmoid of each.
        embeddings: float32 [N, D], output of the global average pool; None if not requested.
        compute_s: Duration in seconds, measured by the engine, since the event loop is notified
            late under load.
    """

    indices: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    embeddings: NDArray[np.float32] | None
    compute_s: float


class Engine(Protocol):
    """One variant, ready to compute on one device.

    `run` blocks, and is called from the engine threads of the device's scheduler only: from one at
    a time, unless the device has several (`Devices`).

    Attributes:
        sizes: Batch sizes with a prepared program each; empty if one program computes all sizes.
    """

    sizes: tuple[int, ...]

    def run(
        self, images: list[NDArray[np.uint8]], top_k: int, with_embeddings: bool
    ) -> BatchOutput:
        """Compute a batch.

        Args:
            images: N arrays uint8 [height, width, 3], RGB, of the network's input size. Their
                memory may be that of a message: read-only, and with gaps between rows.
            top_k: Number of categories to return per image; 0 for none.
            with_embeddings: Whether to return embeddings.
        """
        ...

    def padded(self, images: int) -> int:
        """Return the padded size of a batch: the smallest prepared size that fits `images`."""
        ...

    def close(self) -> None:
        """Free the engine's memory; no `run` is in progress or follows.

        May block, for example while another engine is built, so not for an engine thread.
        """
        ...
