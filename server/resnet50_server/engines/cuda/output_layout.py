"""Layout of a batch's outputs in one buffer, so that one copy transfers them to the host."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .forward import Outputs

# CUDA's own allocations have this alignment, at which copies and kernels are fastest.
ALIGNMENT = 256


@dataclass(frozen=True)
class OutputLayout:
    """Outputs of one bucket, part after part; rarely requested ones come last.

    Attributes:
        rows: Size of the bucket.
        top_k: Number of top categories.
        dimension: Length of an embedding.
        categories: Number of categories.
    """

    rows: int
    top_k: int
    dimension: int
    categories: int

    def prefix_bytes(self, with_embeddings: bool, with_probabilities: bool) -> int:
        """Return the length of the prefix that has the requested outputs, in bytes.

        Args:
            with_embeddings: Whether it includes embeddings.
            with_probabilities: Whether it includes all probabilities, which come after embeddings.
        """
        ends = self._ends()
        return ends[3] if with_probabilities else ends[2] if with_embeddings else ends[1]

    @property
    def nbytes(self) -> int:
        """Size of all outputs in bytes."""
        return self._ends()[-1]

    def tensor_views(self, flat: Tensor) -> Outputs:
        """Return the parts within `flat`: uint8 [at least nbytes], on any device."""
        starts = (0, *self._ends()[:-1])
        parts = [
            flat[start : start + width * self.rows * dtype.itemsize]
            .view(dtype)
            .view(self.rows, width)
            for start, (dtype, width) in zip(starts, self._parts(), strict=True)
        ]
        return Outputs(*parts)

    def copy_out(
        self, flat: Tensor, count: int, top_k: int, with_embeddings: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32] | None]:
        """Copy the outputs of the first `count` images out of `flat`.

        Args:
            flat: uint8 [at least `prefix_bytes`], on the CPU.
            count: Number of images; the other rows are padding.
            top_k: Number of requested categories; above the layout's, all probabilities are sorted
                here.
            with_embeddings: Whether embeddings are requested.

        Returns:
            Indices int64 [count, top_k], probabilities float32 [count, top_k], embeddings float32
            [count, dimension] or None; none of them shares memory with `flat`.
        """
        outputs = self.tensor_views(flat)
        if top_k > self.top_k:
            top, indices = torch.topk(outputs.probabilities[:count], top_k, dim=1)
        else:
            top, indices = outputs.top[:count, :top_k], outputs.indices[:count, :top_k]
        vectors = outputs.embeddings[:count].numpy().copy() if with_embeddings else None
        return indices.numpy().copy(), top.numpy().copy(), vectors

    def _parts(self) -> tuple[tuple[torch.dtype, int], ...]:
        """Return each part's dtype and width, in the order of `Outputs`."""
        return (
            (torch.int64, self.top_k),
            (torch.float32, self.top_k),
            (torch.float32, self.dimension),
            (torch.float32, self.categories),
        )

    def _ends(self) -> tuple[int, ...]:
        """Return the end of each part, with alignment, in bytes."""
        ends, end = [], 0
        for dtype, width in self._parts():
            end += -(-self.rows * width * dtype.itemsize // ALIGNMENT) * ALIGNMENT
            ends.append(end)
        return tuple(ends)
