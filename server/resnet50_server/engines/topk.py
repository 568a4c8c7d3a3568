"""Top-k categories, for runtimes that return the probabilities of all."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def top_k_of(
    probabilities: NDArray[np.float32], top_k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the `top_k` most probable categories of each image, by falling probability.

    Args:
        probabilities: float32 [N, categories].
        top_k: 0 to categories.

    Returns:
        Their indices, int64 [N, top_k], and probabilities, float32 [N, top_k].
    """
    count, categories = probabilities.shape
    if not top_k:
        return np.empty((count, 0), dtype=np.int64), np.empty((count, 0), dtype=np.float32)
    # Sorting all categories would take most of the time.
    first = np.argpartition(probabilities, categories - top_k, axis=1)[:, categories - top_k :]
    values = np.take_along_axis(probabilities, first, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    return (
        np.take_along_axis(first, order, axis=1).astype(np.int64, copy=False),
        np.take_along_axis(values, order, axis=1),
    )
