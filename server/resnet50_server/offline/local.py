"""Embeddings and classifications computed on this machine, as a bulk run takes them."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet50_bulk.checkpoint import ImageResult
from resnet50_bulk.provenance import CATEGORIES, Provenance
from resnet50_bulk.run import Outcome
from resnet50_bulk.source import ImageContent
from resnet50_server.batching.result import Result, unit_length
from resnet50_server.variants.spec import EMBEDDING_DIMENSION

from .worker import ImageWorker

DEFAULT_TOP_K = 5


class LocalCall:
    """Computes the results of a bulk run in this process.

    Args:
        worker: Computes the images; closed with this.
        provenance: Provenance of the results.
        top_k: Number of categories in each result; 0 for an embedding.

    Attributes:
        provenance: Provenance of the results.
        labels: Names of the variant's categories.
    """

    def __init__(self, worker: ImageWorker, provenance: Provenance, top_k: int = 0) -> None:
        self.provenance = provenance
        self.labels: Sequence[str] = worker.variant.spec.categories
        self._worker = worker
        self._top_k = top_k

    def close(self) -> None:
        """Free the engines and end the threads."""
        self._worker.close()

    def __call__(
        self, images: Iterable[tuple[str, ImageContent]]
    ) -> Generator[tuple[str, Outcome], None, None]:
        """Yield the names and results of images, in the order in which they are computed.

        Raises:
            WorkerFailed: The device is lost, or the variant does not compute any more.
        """
        found = self._worker.run(images, top_k=self._top_k, with_embedding=not self._top_k)
        for name, outcome in found:
            if isinstance(outcome, Exception):
                yield name, outcome
            else:
                yield name, ImageResult(self._vector(outcome), self.provenance)

    def _vector(self, result: Result) -> NDArray[Any]:
        if not self._top_k:
            assert result.embedding is not None  # asked for
            normalized = self.provenance.l2_normalized
            return unit_length(result.embedding) if normalized else result.embedding
        categories = np.empty(self._top_k, self.provenance.row_dtype)
        categories["index"], categories["probability"] = result.indices, result.probabilities
        return categories


class LocalEmbedder(LocalCall):
    """Computes embeddings.

    Args:
        variant: See `ImageWorker`.
        l2_normalize: Scale vectors to length 1.
        background: Background of transparent pixels; None for the variant's.
        **options: See `ImageWorker`.

    Raises:
        ValueError: A setting or the background is wrong.
        WorkerFailed: The variant cannot be loaded.
    """

    def __init__(
        self,
        variant: str | None = None,
        *,
        l2_normalize: bool = False,
        background: str | None = None,
        **options: Any,
    ) -> None:
        worker = ImageWorker(variant, background=background, **options)
        loaded = worker.variant
        provenance = Provenance(
            *(loaded.spec.name, loaded.built.digest, loaded.space, EMBEDDING_DIMENSION),
            l2_normalized=l2_normalize,
            background=background or "",
            transform=loaded.spec.transform.digest,
        )
        super().__init__(worker, provenance)


class LocalClassifier(LocalCall):
    """Computes classifications.

    Args:
        variant: See `ImageWorker`.
        top_k: Number of categories per image; None for 5, or all if the variant has fewer.
        background: Background of transparent pixels; None for the variant's.
        **options: See `ImageWorker`.

    Raises:
        ValueError: A setting or the background is wrong, or the variant has fewer categories.
        WorkerFailed: The variant cannot be loaded.
    """

    def __init__(
        self,
        variant: str | None = None,
        *,
        top_k: int | None = None,
        background: str | None = None,
        **options: Any,
    ) -> None:
        worker = ImageWorker(variant, background=background, **options)
        try:
            loaded = worker.variant
            top_k = checked_top_k(top_k, loaded.spec.name, len(loaded.spec.categories))
        except ValueError:
            worker.close()
            raise
        provenance = Provenance(
            *(loaded.spec.name, loaded.built.digest, loaded.space, top_k, False),
            background=background or "",
            dtype=CATEGORIES,
            transform=loaded.spec.transform.digest,
        )
        super().__init__(worker, provenance, top_k)


def checked_top_k(top_k: int | None, name: str, categories: int) -> int:
    """Return the number of categories per image.

    Args:
        top_k: The number; None for 5, or all if the variant has fewer.
        name: Name of the variant.
        categories: Number of its categories.

    Raises:
        ValueError: The variant has fewer.
    """
    if not categories:
        raise ValueError(
            f"variant: {name} has no classification head: compute its embeddings, or name a variant"
            " with categories"
        )
    if top_k is None:
        return min(DEFAULT_TOP_K, categories)
    if not 1 <= top_k <= categories:
        raise ValueError(f"top_k: is {top_k}, must be 1 to {categories}, the categories of {name}")
    return top_k
