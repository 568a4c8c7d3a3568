"""Embeddings of several images as one matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .record import Record, as_array
from .results import VariantRef


@dataclass(frozen=True, eq=False)
class EmbeddingBatch(Record):
    """Embeddings of images, in their order.

    Attributes:
        vectors: float32 [N, 2048]; rows of images that failed are NaN. `numpy.asarray(batch)`
            returns it, too.
        errors: The errors of images that failed, by their position.
        variant: The weights that computed the vectors; None if all images failed.
        space: Name of the embedding space; None if all images failed.
        l2_normalized: True if the vectors have length 1.
    """

    vectors: NDArray[np.float32]
    errors: dict[int, Exception]
    variant: VariantRef | None
    space: str | None
    l2_normalized: bool

    @property
    def succeeded(self) -> NDArray[np.bool_]:
        """Mask, bool [N]: True for images that have a vector."""
        mask = np.ones(len(self.vectors), dtype=np.bool_)
        mask[list(self.errors)] = False
        return mask

    def __len__(self) -> int:
        return len(self.vectors)

    def __array__(self, dtype: object = None, copy: bool | None = None) -> NDArray[np.floating]:
        return as_array(self.vectors, dtype, copy)

    def __repr__(self) -> str:
        count, dimension = self.vectors.shape
        failed = f", {len(self.errors)} failed" if self.errors else ""
        return f"EmbeddingBatch(float32 [{count}, {dimension}]{failed}, space {self.space})"
