"""Results of calls: plain immutable values, without protobuf or gRPC."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

CacheUse: TypeAlias = Literal["hit", "shared"]


@dataclass(frozen=True)
class Timing:
    """Where the time went inside the server.

    Attributes:
        decode_ms: From bytes to the network's input, the wait for a decode thread included.
        queue_ms: From there to the start of the batch.
        compute_ms: The batch on the engine.
        total_ms: From the request's arrival to its answer; the network is not in it.
        batch_size: How many requests shared the batch.
        cache: None if it was computed for this request. "hit" if it had been computed before,
            "shared" if it was being computed for another one: decoding and computing took nothing
            then, `queue_ms` is the wait for the other one, and the batch was its.
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
class VariantRef:
    """The weights that gave an answer.

    Attributes:
        name: The variant's own name, never an alias.
        digest: SHA-256 of the weights, 64 hex digits.
    """

    name: str
    digest: str

    def __repr__(self) -> str:
        return f"{self.name}@{self.digest[:12]}"


@dataclass(frozen=True)
class Category:
    """One category with its probability.

    Attributes:
        index: Position in the variant's list of categories.
        label: Its name, e.g. "Irish terrier".
        probability: Softmax over all of the variant's categories, 0 to 1.
    """

    index: int
    label: str
    probability: float

    def __repr__(self) -> str:
        return f"{self.label} {self.probability:.1%}"


@dataclass(frozen=True, eq=False)
class Embedding:
    """One image as a vector.

    Attributes:
        vector: float32 [2048], or float16 if that was asked for. `numpy.asarray(embedding)` gives
            it too. Read-only.
        space: Names variant and weights; only vectors of one space may be compared.
        l2_normalized: Whether the vector has length 1.
        variant: The weights that gave it.
        timing: Where the time went.
    """

    vector: NDArray[np.floating]
    space: str
    l2_normalized: bool
    variant: VariantRef
    timing: Timing

    def cosine(self, other: Embedding) -> float:
        """Return the cosine similarity with another embedding, -1 to 1.

        Raises:
            ValueError: The two lie in different spaces, so the number would mean nothing.
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
        return np.array(self.vector, dtype=dtype, copy=copy)  # type: ignore[call-overload,no-any-return]

    def __len__(self) -> int:
        return len(self.vector)

    def __repr__(self) -> str:
        start = ", ".join(f"{value:.3f}" for value in self.vector[:3])
        unit = ", unit length" if self.l2_normalized else ""
        kind = f"{self.vector.dtype} [{len(self.vector)}]"
        return f"Embedding([{start}, …] {kind}{unit}, space {self.space}, {self.timing!r})"


@dataclass(frozen=True)
class Classification:
    """Categories of an image. Iterates over its categories, most probable first.

    Attributes:
        categories: As many as `top_k` and `min_probability` left.
        embedding: The image's vector, if `include_embedding` was set.
        variant: The weights that answered.
        timing: Where the time went.
    """

    categories: tuple[Category, ...]
    embedding: Embedding | None
    variant: VariantRef
    timing: Timing

    @property
    def top(self) -> Category:
        """The most probable category.

        Raises:
            IndexError: `min_probability` left none.
        """
        if not self.categories:
            raise IndexError("no category reached min_probability")
        return self.categories[0]

    def __iter__(self) -> Iterator[Category]:
        return iter(self.categories)

    def __len__(self) -> int:
        return len(self.categories)

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self.categories[:5])) or "nothing"
        more = f", … {len(self.categories)} in all" if len(self.categories) > 5 else ""
        return f"Classification({shown}{more}; {self.variant!r}, {self.timing!r})"


@dataclass(frozen=True)
class Transform:
    """A variant's preprocessing; the server applies it.

    Attributes:
        resize: Length of the shorter side after resizing, in pixels.
        crop: Side of the central square that the network sees, in pixels.
        mean: Subtracted from red, green and blue after scaling to 0..1.
        std: Divides red, green and blue after that.
        interpolation: "bilinear", "bicubic" or "nearest".
    """

    resize: int
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str


@dataclass(frozen=True)
class PublishedAccuracy:
    """Accuracy on a data set, as published, in percent.

    Attributes:
        dataset: E.g. "ImageNet-1K".
        acc_at_1: Share of images whose first category is right.
        acc_at_5: Share of images whose first five categories hold the right one; None if unknown.
    """

    dataset: str
    acc_at_1: float
    acc_at_5: float | None


@dataclass(frozen=True)
class Quantization:
    """How close int8 that the server made comes to the float weights that it was made from.

    Attributes:
        calibration_images: How many images set the ranges of the activations.
        compared_images: How many others were compared.
        top_1_agreement: Share of those whose first category is the same, 0 to 1.
        embedding_cosine: Mean cosine of their embeddings with the fp32 ones, -1 to 1.
    """

    calibration_images: int
    compared_images: int
    top_1_agreement: float
    embedding_cosine: float


@dataclass(frozen=True)
class BatchLatency:
    """How long a variant's batches take: about `alpha_ms` + `beta_ms` x b for b images.

    Attributes:
        alpha_ms: Cost of a batch, in milliseconds.
        beta_ms: Cost of an image in it, in milliseconds.
    """

    alpha_ms: float
    beta_ms: float


@dataclass(frozen=True)
class Loading:
    """How far a variant is that is being loaded.

    Attributes:
        stage: In their order: "waiting" for other variants to be loaded; "reading" and checking the
            weights, fetched first if need be; "evicting", until evicted or draining variants have
            freed their memory, skipped if there is enough; "building" the engine; "warming_up";
            "verifying" its answer to a fixed image.
        elapsed_s: For how long, all stages together, in seconds.
    """

    stage: str
    elapsed_s: float


@dataclass(frozen=True)
class Variant:
    """One set of ResNet50 weights that the server serves.

    Attributes:
        name: What requests call it.
        aliases: Other names it answers to, e.g. "DEFAULT".
        state: "loading", "ready", "unhealthy" (loaded, but out of service), "draining" or "failed"
            (could not be loaded). While one takes another's place, two have the same name: the one
            that answers, and the old one, draining.
        server_default: Whether it answers requests that name no variant.
        trained: False for weights drawn at random, whose answers mean nothing.
        digest: SHA-256 of the weights, 64 hex digits; "" while loading.
        parameter_count: How many parameters it has.
        embedding_dimension: Length of its embeddings.
        embedding_space: As `Embedding.space`.
        category_count: How many categories it tells apart.
        categories: Their names by index; empty in `variants()`, filled in `variant(name)`.
        transform: Its preprocessing.
        published_accuracy: If any is published.
        precision: "fp32", "fp16", "bf16" or "int8".
        device: "cpu" or "cuda:0".
        engine: What runs it: "cuda-graphs", "torch", "onnxruntime", "openvino", "null", "timed".
        description: What it is, in a sentence or two.
        quantization: How close its int8 comes, where the server made it of float weights.
        latency: How long its batches take, as the server has learned; None while loading.
        loading: What is being loaded under this name, in the place of weights that still answer if
            the state is "ready"; None if nothing is.
        last_failure: Why the last load under this name failed; "" if it did not.
        memory_bytes: What it takes of the server's memory for variants; an estimate.
        requests: Requests and frames that it computes or that wait for it.
        problem: Why it is out of service; "" unless the state is "unhealthy".
    """

    name: str
    aliases: tuple[str, ...]
    state: str
    server_default: bool
    trained: bool
    digest: str
    parameter_count: int
    embedding_dimension: int
    embedding_space: str
    category_count: int
    categories: tuple[str, ...] = field(repr=False)
    transform: Transform = field(repr=False)
    published_accuracy: PublishedAccuracy | None = field(repr=False)
    precision: str
    device: str
    engine: str
    description: str = field(repr=False)
    quantization: Quantization | None = field(repr=False)
    latency: BatchLatency | None
    loading: Loading | None
    last_failure: str
    memory_bytes: int
    requests: int
    problem: str = ""


@dataclass(frozen=True)
class LoadedVariant:
    """Result of `load_variant`.

    Attributes:
        variant: The variant, ready to answer.
        replaced_digest: Digest of the weights whose place it took, which still answer what they
            have taken; "" if there were none.
        evicted: Names of the variants that were unloaded to make room for it.
    """

    variant: Variant
    replaced_digest: str
    evicted: tuple[str, ...]


@dataclass(frozen=True)
class NewDefault:
    """Result of `set_default_variant`.

    Attributes:
        variant: The variant that answers requests which name none from now on.
        previous: The name of the one that did until then.
    """

    variant: Variant
    previous: str
