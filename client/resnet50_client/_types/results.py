"""Results about images: plain immutable values, without protobuf or gRPC."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from .record import Record, as_array, table

CacheUse: TypeAlias = Literal["hit", "shared"]
"""Use of the response cache: a hit, or shared with an identical request in flight."""
Dtype: TypeAlias = Literal["float32", "float16"]
"""Type of the numbers of an embedding."""

# Categories in the table of a notebook.
MAX_ROWS = 10


@dataclass(frozen=True)
class Timing(Record):
    """Times of a request in the server, in milliseconds.

    Attributes:
        decode_ms: Decoding and preprocessing, including the wait for a decoder thread.
        queue_ms: Wait for the batch.
        compute_ms: Inference of the batch.
        total_ms: From arrival to response, without the network.
        batch_size: Number of images in the batch.
        cache: None if it was computed for this request; "hit" for a cached result; "shared" if it
            was coalesced with an identical request in flight: decoding and inference took no time
            then, `queue_ms` is the wait for the other request, and `batch_size` is of its batch.
    """

    decode_ms: float
    queue_ms: float
    compute_ms: float
    total_ms: float
    batch_size: int
    cache: CacheUse | None = None

    def __repr__(self) -> str:
        if self.cache is not None:
            return f"Timing(total {self.total_ms:.1f} ms: cache {self.cache})"
        return (
            f"Timing(total {self.total_ms:.1f} ms: decode {self.decode_ms:.1f}, queue"
            f" {self.queue_ms:.1f}, compute {self.compute_ms:.1f}; batch of {self.batch_size})"
        )


@dataclass(frozen=True)
class VariantRef(Record):
    """The weights that computed a result.

    Attributes:
        name: Name of the variant, not an alias.
        digest: SHA-256 of the weights, 64 hex digits.
    """

    name: str
    digest: str

    def __repr__(self) -> str:
        return f"{self.name}@{self.digest[:12]}"


@dataclass(frozen=True)
class Category(Record):
    """One category with its probability.

    Attributes:
        index: Position in the variant's list of categories.
        label: Name of the category, e.g. "Irish terrier".
        probability: 0 to 1, by the variant's activation: softmax over all of its categories, or
            sigmoid of this one.
    """

    index: int
    label: str
    probability: float

    def __repr__(self) -> str:
        return f"{self.label} {self.probability:.1%}"


@dataclass(frozen=True, eq=False)
class Embedding(Record):
    """Embedding of an image.

    Attributes:
        vector: float32 [2048], or float16 if requested; writable. `numpy.asarray(embedding)`
            returns it, too.
        space: Name of the embedding space; only vectors of the same space are comparable.
        l2_normalized: True if the vector has length 1.
        variant: The weights that computed it.
        timing: Times of the request in the server.
        warnings: Warnings about the image: "truncated" if its data ended early and the server
            accepts that.
        source: The image as it was passed to the client; None for others. A pickle keeps paths
            only.
        request_id: ID of the request in the server's log; None if unknown.
    """

    vector: NDArray[np.floating]
    space: str
    l2_normalized: bool
    variant: VariantRef
    timing: Timing
    warnings: tuple[str, ...] = ()
    source: Any = field(default=None, repr=False)
    request_id: str | None = None

    def cosine(self, other: Embedding) -> float:
        """Return the cosine similarity with another embedding, -1 to 1.

        Args:
            other: The other embedding, of the same weights.

        Raises:
            ValueError: The two are of different embedding spaces, so not comparable.
        """
        if self.space != other.space:
            raise ValueError(
                f"these vectors are of different weights and cannot be compared: {self.space}"
                f" and {other.space}; embed both images with one variant"
            )
        a, b = self.vector.astype(np.float64), other.vector.astype(np.float64)
        length = float(np.linalg.norm(a) * np.linalg.norm(b))
        return float(a @ b) / length if length else 0.0

    def __array__(self, dtype: object = None, copy: bool | None = None) -> NDArray[np.floating]:
        return as_array(self.vector, dtype, copy)

    def __len__(self) -> int:
        return len(self.vector)

    def __iter__(self) -> Iterator[float]:
        return iter(self.vector.tolist())

    def __repr__(self) -> str:
        start = ", ".join(f"{value:.3f}" for value in self.vector[:3])
        unit = ", unit length" if self.l2_normalized else ""
        kind = f"{self.vector.dtype} [{len(self.vector)}]"
        return f"Embedding([{start}, …] {kind}{unit}, space {self.space}, {self.timing!r})"


@dataclass(frozen=True)
class Classification(Record, Sequence[Category]):
    """Classification of an image: a sequence of its categories, most probable first.

    `result[0]` is the most probable category. Without any, after `min_probability` or thresholds,
    it is empty, and so false like any empty sequence.

    Attributes:
        categories: Categories, limited by `top_k`, and by `min_probability` or the thresholds of
            the variant. Those of a variant with the activation "sigmoid" do not exclude each other.
        embedding: The image's embedding, if `include_embedding` was set.
        variant: The weights that computed it.
        timing: Times of the request in the server.
        warnings: Warnings about the image: "truncated" if its data ended early and the server
            accepts that.
        source: The image as it was passed to the client; None for others. A pickle keeps paths
            only.
        request_id: ID of the request in the server's log; None if unknown.
    """

    categories: tuple[Category, ...]
    embedding: Embedding | None
    variant: VariantRef
    timing: Timing
    warnings: tuple[str, ...] = ()
    source: Any = field(default=None, compare=False)
    request_id: str | None = field(default=None, compare=False)

    @property
    def top(self) -> Category:
        """The most probable category.

        Raises:
            IndexError: No category reached `min_probability`, or its threshold.
        """
        if not self.categories:
            raise IndexError("no category reached min_probability, or its threshold")
        return self.categories[0]

    @overload
    def __getitem__(self, index: int) -> Category: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Category, ...]: ...

    def __getitem__(self, index: int | slice) -> Category | tuple[Category, ...]:
        return self.categories[index]

    def __iter__(self) -> Iterator[Category]:
        return iter(self.categories)

    def __len__(self) -> int:
        return len(self.categories)

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self.categories[:5])) or "nothing"
        more = f", … {len(self.categories)} in all" if len(self.categories) > 5 else ""
        return f"Classification({shown}{more}; {self.variant!r}, {self.timing!r})"

    def _repr_html_(self) -> str:
        return table(f"{self.variant!r}, {self.timing!r}", self._rows())

    def _rows(self) -> Iterable[tuple[str, str]]:
        for category in self.categories[:MAX_ROWS]:
            yield category.label, f"{category.probability:.1%}"
        if len(self.categories) > MAX_ROWS:
            yield "…", f"{len(self.categories)} in all"
        elif not self.categories:
            yield "no category", "-"
