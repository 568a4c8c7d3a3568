"""Results about variants: plain immutable values, without protobuf or gRPC."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from .record import Record

VariantState: TypeAlias = Literal["loading", "ready", "unhealthy", "draining", "failed", "unknown"]
"""State of a variant; see `Variant.state`."""
LoadingStage: TypeAlias = Literal[
    "waiting", "reading", "evicting", "building", "warming_up", "verifying", "unknown"
]
"""Stage of a load; see `Loading.stage`."""
Activation: TypeAlias = Literal["softmax", "sigmoid", "none", "unknown"]
"""Function from outputs to probabilities; see `Variant.activation`."""


@dataclass(frozen=True)
class Transform(Record):
    """A variant's preprocessing; the server applies it.

    The steps are, as far as a variant has them: pad to a square, resize, central crop, reorder the
    channels, scale, normalize.

    Attributes:
        resize: Length of the shorter side after resizing, in pixels; None if it is not what is
            resized.
        crop: Side length of the centre crop, the network's input, in pixels; None if the input is
            not square.
        mean: Subtracted from each channel after scaling, in the order of `channel_order`.
        std: Divides each channel after that, in the same order.
        interpolation: "bilinear", "bicubic", "nearest", "nearest-exact", "lanczos", "hamming" or
            "box".
        background: Background of transparent pixels, "#rrggbb", or "none": alpha is dropped.
        resize_to: Exact height and width after resizing; None if the aspect ratio is kept.
        resize_longer_side: Length of the longer side after resizing, in pixels; None if it is not
            what is resized.
        pad_to_square: Whether the image is padded to a square before it is resized.
        fill: Red, green and blue of padding, 0 to 255.
        input_size: Height and width of the network's input, and of the crop that makes it.
        antialias: Whether "bilinear" and "bicubic" are antialiased.
        channel_order: "RGB" or "BGR".
        input_range: The values of black and white after scaling: 0 and 1, or 0 and 255.
        digest: SHA-256 of the steps up to the crop, 64 hex digits, which a preprocessed image
            carries. None from servers that take no such images.
        exact_jpeg_pixels: JPEGs of more pixels are decoded at a fraction of their size; None if
            the server does not state it.
    """

    resize: int | None
    crop: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    background: str = "none"
    resize_to: tuple[int, int] | None = None
    resize_longer_side: int | None = None
    pad_to_square: bool = False
    fill: tuple[int, ...] = (0, 0, 0)
    input_size: tuple[int, int] = (0, 0)
    antialias: bool = True
    channel_order: str = "RGB"
    input_range: tuple[int, ...] = (0, 1)
    digest: str | None = None
    exact_jpeg_pixels: int | None = None


@dataclass(frozen=True)
class PublishedAccuracy(Record):
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
class Quantization(Record):
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
class BatchLatency(Record):
    """Latency model of a variant's batches: `alpha_ms` + `beta_ms` x b for b images.

    Attributes:
        alpha_ms: Fixed time of a batch in milliseconds.
        beta_ms: Time per image in milliseconds.
    """

    alpha_ms: float
    beta_ms: float


@dataclass(frozen=True)
class Loading(Record):
    """Progress of a load.

    Attributes:
        stage: In order: "waiting" for other loads; "reading" and checking the weights, after a
            download if needed; "evicting" other variants, if memory is needed; "building" the
            engine; "warming_up"; "verifying" its result for a fixed image. "unknown": a stage of a
            newer server.
        elapsed_s: Seconds since the load started.
    """

    stage: LoadingStage
    elapsed_s: float


@dataclass(frozen=True)
class Variant(Record):
    """A variant of the server: one set of ResNet50 weights.

    Attributes:
        name: Name in requests.
        aliases: Other names, e.g. "DEFAULT".
        state: "loading", "ready", "unhealthy" (loaded, but out of service), "draining" or "failed"
            (the load failed). During a replacement two variants have the same name: the new one,
            and the old one, which is draining. "unknown": a state of a newer server.
        server_default: True if it serves requests that name no variant.
        trained: False for random weights, whose results are meaningless.
        digest: SHA-256 of the weights, 64 hex digits; None while loading.
        parameter_count: Number of parameters.
        embedding_dimension: Length of its embeddings.
        embedding_space: Name of its embedding space; see `Embedding.space`.
        category_count: Number of categories; 0 without a classification head.
        categories: Names of the categories by index; empty in `list_variants`, filled in
            `get_variant`.
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
        last_failure: Error of the last load under this name; None if it succeeded.
        memory_bytes: Estimated memory.
        requests: Requests and frames in flight now, those in its queue included.
        problem: Reason why it is out of service; None unless the state is "unhealthy".
        activation: From outputs to probabilities: "softmax"; "sigmoid" if several categories may
            apply, each with a probability of its own; "none" without a classification head, for
            embeddings only.
        thresholds: With "sigmoid", the least probability of each category in an answer without
            `min_probability`; empty for none, and in `list_variants`.
    """

    name: str
    aliases: tuple[str, ...]
    state: VariantState
    server_default: bool
    trained: bool
    digest: str | None
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
    last_failure: str | None
    memory_bytes: int
    requests: int
    problem: str | None = None
    activation: Activation = "softmax"
    thresholds: tuple[float, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class LoadResult(Record):
    """Result of `load_variant`.

    Attributes:
        variant: The loaded variant.
        replaced_digest: Digest of the weights that it replaces, which still complete their requests
            in flight; None if there were none.
        evicted: Names of the variants evicted for its memory.
    """

    variant: Variant
    replaced_digest: str | None
    evicted: tuple[str, ...]


@dataclass(frozen=True)
class SetDefaultResult(Record):
    """Result of `set_default_variant`.

    Attributes:
        variant: The new default variant.
        previous: Name of the previous one.
    """

    variant: Variant
    previous: str
