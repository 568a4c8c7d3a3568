"""How the answers to a batch lie in one run of bytes, so that one copy brings them home."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .forward import Answers

# What CUDA's own allocations are aligned to: copies and kernels are fastest from there.
ALIGNMENT = 256


@dataclass(frozen=True)
class AnswerLayout:
    """The answers to one bucket, part after part, rarely wanted ones last.

    Attributes:
        rows: The bucket.
        top_k: How many categories are sorted out.
        dimension: Of an embedding.
        categories: How many there are.
    """

    rows: int
    top_k: int
    dimension: int
    categories: int

    def bytes_of(self, with_embeddings: bool, with_probabilities: bool) -> int:
        """Return how many of the first bytes hold what is wanted.

        Args:
            with_embeddings: Whether embeddings are.
            with_probabilities: Whether all probabilities are, which includes embeddings.
        """
        ends = self._ends()
        return ends[3] if with_probabilities else ends[2] if with_embeddings else ends[1]

    @property
    def nbytes(self) -> int:
        """How many bytes hold everything."""
        return self._ends()[-1]

    def views(self, flat: Tensor) -> Answers:
        """Return the parts within `flat`: uint8 [at least nbytes], on any device."""
        starts = (0, *self._ends()[:-1])
        parts = [
            flat[start : start + width * self.rows * dtype.itemsize]
            .view(dtype)
            .view(self.rows, width)
            for start, (dtype, width) in zip(starts, self._parts(), strict=True)
        ]
        return Answers(*parts)

    def read(
        self, flat: Tensor, count: int, top_k: int, with_embeddings: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32] | None]:
        """Copy the answers to the first `count` images out of `flat`.

        Args:
            flat: uint8 [at least what `bytes_of` says], on the CPU.
            count: How many rows were images; the others are padding and mean nothing.
            top_k: How many categories are wanted; if more than were sorted out, all probabilities
                are sorted here.
            with_embeddings: Whether embeddings are wanted.

        Returns:
            Indices int64 [count, top_k], probabilities float32 [count, top_k], embeddings float32
            [count, dimension] or None; none of them shares memory with `flat`.
        """
        answers = self.views(flat)
        if top_k > self.top_k:
            top, indices = torch.topk(answers.probabilities[:count], top_k, dim=1)
        else:
            top, indices = answers.top[:count, :top_k], answers.indices[:count, :top_k]
        vectors = answers.embeddings[:count].numpy().copy() if with_embeddings else None
        return indices.numpy().copy(), top.numpy().copy(), vectors

    def _parts(self) -> tuple[tuple[torch.dtype, int], ...]:
        """Return each part's dtype and width, in the order of `Answers`."""
        return (
            (torch.int64, self.top_k),
            (torch.float32, self.top_k),
            (torch.float32, self.dimension),
            (torch.float32, self.categories),
        )

    def _ends(self) -> tuple[int, ...]:
        """Return where each part ends, alignment included, in bytes."""
        ends, end = [], 0
        for dtype, width in self._parts():
            end += -(-self.rows * width * dtype.itemsize // ALIGNMENT) * ALIGNMENT
            ends.append(end)
        return tuple(ends)
