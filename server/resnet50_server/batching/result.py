"""The result of one image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resnet50_server.events import BatchEvent, CacheUse
from resnet50_server.images.source import ImageWarning


@dataclass(eq=False, slots=True)
class Result:
    """The result for one image, and where its time went. Its arrays are read-only.

    Attributes:
        indices: int64 [k], categories by falling probability; k is the `top_k` of the request.
        probabilities: float32 [k].
        embedding: float32 [D]; None if the request did not ask for it.
        queue_s: From submission to the start of the batch, in seconds.
        compute_s: The batch on the engine, in seconds.
        batch_size: Images in the batch.
        batch: The batch, for observers.
        cache: Whether the result comes from the response cache or from another request.
        decode_s: Decoding with the wait for a thread, in seconds; set by the pipeline.
        decoded: When decoding ended, on the clock of `time.perf_counter`; set by the pipeline. 0 if
            nothing had to be decoded.
        warnings: Of the image; set by the pipeline.
    """

    indices: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    embedding: NDArray[np.float32] | None
    queue_s: float
    compute_s: float
    batch_size: int
    batch: BatchEvent | None = None
    cache: CacheUse = "none"
    decode_s: float = 0.0
    decoded: float = 0.0
    warnings: tuple[ImageWarning, ...] = ()


def unit_length(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale a vector, float32 [D], to length 1; a zero vector stays one: it has no direction."""
    scaled: NDArray[np.float32] = vector / max(float(np.linalg.norm(vector)), 1e-12)
    return scaled
