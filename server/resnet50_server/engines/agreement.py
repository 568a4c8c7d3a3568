"""How close one engine's answers come to another's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .base import Engine, Images

BATCH = 8


@dataclass(frozen=True)
class Agreement:
    """How close int8 comes to fp32, on images that did not calibrate it.

    Attributes:
        calibration_images: How many set the ranges.
        compared_images: How many were compared.
        top_1: Share of them whose first category is the same, 0 to 1.
        cosine: Mean cosine of their embeddings with the fp32 ones.
    """

    calibration_images: int
    compared_images: int
    top_1: float
    cosine: float


def compare(int8: Engine, fp32: Engine, calibration_images: int, held_out: Images) -> Agreement:
    """Compare two engines of the same weights.

    Args:
        int8: The one that is judged.
        fp32: The one that is right.
        calibration_images: How many images made `int8`.
        held_out: At least one other image, uint8 [crop, crop, 3].
    """
    same, cosines = 0, []
    for batch in batches(held_out, BATCH):
        one, two = int8.run(batch, 1, True), fp32.run(batch, 1, True)
        same += int((one.indices[:, 0] == two.indices[:, 0]).sum())
        assert one.embeddings is not None and two.embeddings is not None  # asked for
        lengths = np.linalg.norm(one.embeddings, axis=1) * np.linalg.norm(two.embeddings, axis=1)
        products = (one.embeddings * two.embeddings).sum(axis=1)
        cosines.extend(products / np.maximum(lengths, 1e-12))
    count = len(held_out)
    return Agreement(calibration_images, count, same / count, float(np.mean(cosines)))


def batches(images: Images, size: int) -> Iterator[Images]:
    """Give `size` images at a time; the last ones may be fewer."""
    return (images[start : start + size] for start in range(0, len(images), size))
