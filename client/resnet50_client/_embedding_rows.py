"""Rows of an `EmbeddingBatch`, as their results come."""

from __future__ import annotations

from collections.abc import Sized

import numpy as np
from numpy.typing import NDArray

from ._bulk_images import Outcome
from ._types.embedding_batch import EmbeddingBatch
from ._types.results import Embedding
from .errors import EmbeddingSpaceError

# Of every ResNet50; the width of a matrix without any vector.
DIMENSION = 2048


class EmbeddingRows:
    """The rows of a matrix, in any order.

    Args:
        images: The images; if their number is known, the matrix is not copied as it grows.
        l2_normalized: Whether the vectors have length 1.
    """

    def __init__(self, images: object, l2_normalized: bool) -> None:
        self._expected = len(images) if isinstance(images, Sized) else 0
        self._l2_normalized = l2_normalized
        self._rows: NDArray[np.float32] | None = None
        self._errors: dict[int, Exception] = {}
        self._first: Embedding | None = None
        self._count = 0

    def add(self, outcome: Outcome[Embedding]) -> None:
        """Add the embedding of an image, or its error.

        Raises:
            EmbeddingSpaceError: It is of another space than the others.
        """
        self._count = max(self._count, outcome.index + 1)
        if outcome.result is None:
            assert outcome.error is not None  # one of the two is set
            self._errors[outcome.index] = outcome.error
            return
        found = outcome.result
        if self._first is None:
            self._first = found
        elif self._first.space != found.space:
            raise EmbeddingSpaceError(
                f"image {outcome.index} was embedded in the space {found.space}, others in"
                f" {self._first.space}: the variant was replaced during the call, or the servers"
                " have different weights, so the vectors are not comparable; embed all images again"
            )
        self._rows_for(outcome.index, len(found.vector))[outcome.index] = found.vector

    def batch(self) -> EmbeddingBatch:
        """Return the matrix, once all outcomes are added."""
        first = self._first
        rows = self._rows_for(self._count - 1, DIMENSION if first is None else len(first.vector))
        if len(rows) > self._count:
            rows = rows[: self._count].copy()
        return EmbeddingBatch(
            vectors=rows,
            errors=dict(sorted(self._errors.items())),
            variant=None if first is None else first.variant,
            space=None if first is None else first.space,
            l2_normalized=self._l2_normalized,
        )

    def _rows_for(self, index: int, dimension: int) -> NDArray[np.float32]:
        """Return the rows, at least to this index; those without a vector are NaN."""
        if self._rows is None:
            size = max(self._expected, index + 1)
            self._rows = np.full((size, dimension), np.nan, dtype=np.float32)
        elif index >= len(self._rows):
            size = max(2 * len(self._rows), index + 1)
            grown = np.full((size, dimension), np.nan, dtype=np.float32)
            grown[: len(self._rows)] = self._rows
            self._rows = grown
        return self._rows
