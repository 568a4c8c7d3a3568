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
class VariantRef:
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
class Category:
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
class Embedding:
    """Embedding of an image.

    Attributes:
        vector: float32 [2048], or float16 if requested; read-only. `numpy.asarray(embedding)`
            returns it, too.
        space: Name of the embedding space; only vectors of the same space are comparable.
        l2_normalized: True if the vector has length 1.
        variant: The weights that computed it.
        timing: Times of the request in the server.
        warnings: Facts that the vector does not tell about the image: "truncated" if its data
            ended early and the server accepts that.
    """

    vector: NDArray[np.floating]
    space: str
    l2_normalized: bool
    variant: VariantRef
    timing: Timing
    warnings: tuple[str, ...] = ()

    def cosine(self, other: Embedding) -> float:
        """Return the cosine similarity with another embedding, -1 to 1.

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
    """Classification of an image. Iterates over its categories, most probable first.

    Attributes:
        categories: Categories, limited by `top_k`, and by `min_probability` or the thresholds of
            the variant. Those of a variant with the activation "sigmoid" do not exclude each other.
        embedding: The image's embedding, if `include_embedding` was set.
        variant: The weights that computed it.
        timing: Times of the request in the server.
        warnings: Facts that the categories do not tell about the image: "truncated" if its data
            ended early and the server accepts that.
    """

    categories: tuple[Category, ...]
    embedding: Embedding | None
    variant: VariantRef
    timing: Timing
    warnings: tuple[str, ...] = ()

    @property
    def top(self) -> Category:
        """The most probable category.

        Raises:
            IndexError: No category reached `min_probability`, or its threshold.
        """
        if not self.categories:
            raise IndexError("no category reached min_probability, or its threshold")
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

    The steps are, as far as a variant has them: pad to a square, resize, central crop, reorder the
    channels, scale, normalise.

    Attributes:
        resize: Length of the shorter side after resizing, in pixels; 0 if it is not what is
            resized.
        crop: Side length of the centre crop, the network's input, in pixels; 0 if the input is not
            square.
        mean: Subtracted from each channel after scaling, in the order of `channel_order`.
        std: Divides each channel after that, in the same order.
        interpolation: "bilinear", "bicubic", "nearest", "nearest-exact", "lanczos", "hamming" or
            "box".
        background: Background of transparent pixels, "#rrggbb", or "none": alpha is dropped.
        resize_to: Exact height and width after resizing; None if the aspect ratio is kept.
        resize_longer_side: Length of the longer side after resizing, in pixels; 0 if it is not what
            is resized.
        pad_to_square: Whether the image is padded to a square before it is resized.
        fill: Red, green and blue of padding, 0 to 255.
        input_size: Height and width of the network's input, and of the crop that makes it.
        antialias: Whether "bilinear" and "bicubic" are antialiased.
        channel_order: "RGB" or "BGR".
        input_range: The values of black and white after scaling: 0 and 1, or 0 and 255.
    """

    resize: int
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    background: str = "none"
    resize_to: tuple[int, int] | None = None
    resize_longer_side: int = 0
    pad_to_square: bool = False
    fill: tuple[int, ...] = (0, 0, 0)
    input_size: tuple[int, int] = (0, 0)
    antialias: bool = True
    channel_order: str = "RGB"
    input_range: tuple[int, ...] = (0, 1)


@dataclass(frozen=True)
class PublishedAccuracy:
    """Accuracy on a data set, as published, in percent.

    Attributes:
        dataset: Name of the data set, e.g. "ImageNet-1K".
        acc_at_1: Top-1 accuracy.
        acc_at_5: Top-5 accuracy; None if unknown.
    """

    dataset: str
    acc_at_1: float
    acc_at_5: float | None


@dataclass(frozen=True)
class Quantization:
    """Agreement of int8 weights, quantized by the server, with the original float weights.

    Attributes:
        calibration_images: Number of images that calibrated the ranges of activations.
        compared_images: Number of other images that were compared.
        top_1_agreement: Fraction of those with the same top category, 0 to 1.
        embedding_cosine: Mean cosine similarity of their embeddings, -1 to 1.
    """

    calibration_images: int
    compared_images: int
    top_1_agreement: float
    embedding_cosine: float


@dataclass(frozen=True)
class BatchLatency:
    """Latency model of a variant's batches: `alpha_ms` + `beta_ms` x b for b images.

    Attributes:
        alpha_ms: Fixed time of a batch in milliseconds.
        beta_ms: Time per image in milliseconds.
    """

    alpha_ms: float
    beta_ms: float


@dataclass(frozen=True)
class Loading:
    """Progress of a load.

    Attributes:
        stage: In order: "waiting" for other loads; "reading" and checking the weights, after a
            download if needed; "evicting" other variants, if memory is needed; "building" the
            engine; "warming_up"; "verifying" its result for a fixed image.
        elapsed_s: Seconds since the load started.
    """

    stage: str
    elapsed_s: float


@dataclass(frozen=True)
class Variant:
    """A variant of the server: one set of ResNet50 weights.

    Attributes:
        name: Name in requests.
        aliases: Other names, e.g. "DEFAULT".
        state: "loading", "ready", "unhealthy" (loaded, but out of service), "draining" or "failed"
            (the load failed). During a replacement two variants have the same name: the new one,
            and the old one, which is draining.
        server_default: True if it serves requests that name no variant.
        trained: False for random weights, whose results are meaningless.
        digest: SHA-256 of the weights, 64 hex digits; "" while loading.
        parameter_count: Number of parameters.
        embedding_dimension: Length of its embeddings.
        embedding_space: Name of its embedding space; see `Embedding.space`.
        category_count: Number of categories; 0 without a classification head.
        categories: Names of the categories by index; empty in `variants()`, filled in
            `get_variant(name)`.
        transform: Preprocessing.
        published_accuracy: Published accuracy, if any.
        precision: "fp32", "fp16", "bf16" or "int8".
        device: "cpu" or "cuda:0".
        engine: "cuda-graphs", "torch", "onnxruntime", "openvino", "null" or "timed".
        description: Description in a sentence or two.
        quantization: Agreement with the float weights, if the server quantized it.
        latency: Learned latency model; None while loading.
        loading: Progress of a load under this name; if the state is "ready", of a replacement.
            None without a load.
        last_failure: Error of the last load under this name; "" if it succeeded.
        memory_bytes: Estimated memory.
        requests: Requests and frames in its queue or in inference.
        problem: Reason why it is out of service; "" unless the state is "unhealthy".
        activation: From outputs to probabilities: "softmax"; "sigmoid" if several categories may
            apply, each with a probability of its own; "none" without a classification head, for
            embeddings only.
        thresholds: With "sigmoid", the least probability of each category in an answer without
            `min_probability`; empty for none, and in `variants()`.
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
    activation: str = "softmax"
    thresholds: tuple[float, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class LoadedVariant:
    """Result of `load_variant`.

    Attributes:
        variant: The loaded variant.
        replaced_digest: Digest of the weights that it replaces, which still complete their requests
            in flight; "" if there were none.
        evicted: Names of the variants evicted for its memory.
    """

    variant: Variant
    replaced_digest: str
    evicted: tuple[str, ...]


@dataclass(frozen=True)
class NewDefault:
    """Result of `set_default_variant`.

    Attributes:
        variant: The new default variant.
        previous: Name of the previous one.
    """

    variant: Variant
    previous: str
