"""Embeddings that tell their image by the first value."""

from __future__ import annotations

import numpy as np

from resnet50_bulk.checkpoint import ImageResult
from resnet50_cli.embed.embedder import provenance_of_embedding
from resnet50_client.types import Embedding, Timing, VariantRef

DIMENSION = 2048


def embedding(
    number: int, *, variant: str = "one", digest: str = "a" * 64, l2_normalized: bool = False
) -> Embedding:
    """Return an embedding with a number as its first value and zeros after it."""
    vector = np.zeros(DIMENSION, dtype=np.float32)
    vector[0] = number
    return Embedding(
        vector=vector,
        space=f"{variant}@{digest[:12]}",
        l2_normalized=l2_normalized,
        variant=VariantRef(variant, digest),
        timing=Timing(0.0, 0.0, 0.0, 0.0, 1),
    )


def embedded(
    number: int, *, variant: str = "one", digest: str = "a" * 64, l2_normalized: bool = False
) -> ImageResult:
    """Return the same as a bulk run has it."""
    one = embedding(number, variant=variant, digest=digest, l2_normalized=l2_normalized)
    return ImageResult(one.vector, provenance_of_embedding(one))
