"""Conversion of arguments to requests, and of responses to results; no I/O."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np

from resnet50.v1 import inference_pb2, result_pb2, variant_pb2

from ._arguments import check_background, check_choice, check_count, check_name, check_probability
from ._frames import DELIVERIES, Delivery, StreamKind
from ._types.results import CacheUse, Category, Classification, Embedding, Timing, VariantRef
from ._types.traffic import Comparison, TrafficReport, TrafficShare, TrafficSplit
from ._types.variants import (
    Activation,
    BatchLatency,
    Loading,
    LoadingStage,
    LoadResult,
    PublishedAccuracy,
    Quantization,
    SetDefaultResult,
    Transform,
    Variant,
    VariantState,
)
from .errors import InvalidRequestError, ServerError

Message = TypeVar("Message")
Result = TypeVar("Result")

_TYPES = {
    "float32": result_pb2.EMBEDDING_TYPE_FLOAT32,
    "float16": result_pb2.EMBEDDING_TYPE_FLOAT16,
}
_DTYPES: dict[result_pb2.EmbeddingType.ValueType, np.dtype[np.floating]] = {
    result_pb2.EMBEDDING_TYPE_FLOAT32: np.dtype("<f4"),
    result_pb2.EMBEDDING_TYPE_FLOAT16: np.dtype("<f2"),
}
_CACHE_USES: dict[result_pb2.CacheUse.ValueType, CacheUse] = {
    result_pb2.CACHE_USE_HIT: "hit",
    result_pb2.CACHE_USE_SHARED: "shared",
}


def classify_options(
    variant: str | None,
    top_k: int | None,
    min_probability: float | None,
    include_embedding: bool,
    background: str | None,
) -> inference_pb2.ClassifyOptions:
    """Check the options of `classify`.

    Raises:
        InvalidRequestError: One is invalid.
    """
    check_name("options.variant", variant)
    if top_k is not None:
        rule = "1 or more, or None for 5, or all if the variant has fewer"
        check_count("options.top_k", top_k, 1, rule)
    if min_probability is not None:
        check_probability("options.min_probability", min_probability)
    check_background(background)
    return message(
        inference_pb2.ClassifyOptions,
        "options.",
        variant=variant,
        top_k=top_k,
        min_probability=min_probability,
        include_embedding=include_embedding,
        background=background,
    )


def embed_options(
    variant: str | None, l2_normalize: bool, dtype: str, background: str | None
) -> inference_pb2.EmbedOptions:
    """Check the options of `embed`.

    Raises:
        InvalidRequestError: One is invalid.
    """
    check_name("options.variant", variant)
    check_choice("dtype", dtype, _TYPES, "options.type")
    check_background(background)
    return message(
        inference_pb2.EmbedOptions,
        "options.",
        variant=variant,
        l2_normalize=l2_normalize,
        type=_TYPES[dtype],
        background=background,
    )


def message(kind: Callable[..., Message], path: str, /, **fields: Any) -> Message:
    """Build a message from arguments.

    Args:
        kind: Class of the message.
        path: Prefix of field names in errors, e.g. "options.".
        fields: Values of the fields.

    Raises:
        InvalidRequestError: A value has the wrong type; the message names the field.
    """
    try:
        return kind(**fields)
    except (TypeError, ValueError) as failure:  # UnicodeEncodeError is a ValueError
        for name, value in fields.items():
            try:
                kind(**{name: value})
            except (TypeError, ValueError) as error:
                raise InvalidRequestError(
                    f"{path}{name}: {value!r} is invalid: {error}",
                    field=f"{path}{name}",
                ) from error
        raise InvalidRequestError(f"{path}{failure}", field=path.rstrip(".")) from failure


def classify_stream(
    delivery: Delivery,
    variant: str | None,
    top_k: int | None,
    min_probability: float | None,
    include_embedding: bool,
    background: str | None,
    pixel_format: str | None,
    window: int,
) -> StreamKind[Classification]:
    """Describe a stream of `classify_stream`."""
    options = classify_options(variant, top_k, min_probability, include_embedding, background)
    config = _config(inference_pb2.ClassifyStreamConfig, options, delivery, window)
    return StreamKind(
        "ClassifyStream",
        inference_pb2.ClassifyStreamRequest,
        config,
        classification,
        delivery,
        pixel_format,
    )


def embed_stream(
    delivery: Delivery,
    variant: str | None,
    l2_normalize: bool,
    dtype: str,
    background: str | None,
    pixel_format: str | None,
    window: int,
) -> StreamKind[Embedding]:
    """Describe a stream of `embed_stream`."""
    options = embed_options(variant, l2_normalize, dtype, background)
    config = _config(inference_pb2.EmbedStreamConfig, options, delivery, window)
    return StreamKind(
        "EmbedStream", inference_pb2.EmbedStreamRequest, config, embedding, delivery, pixel_format
    )


def _config(kind: Callable[..., Message], options: Any, delivery: Delivery, window: int) -> Message:
    """Build a stream's configuration, its first request."""
    check_choice("delivery", delivery, DELIVERIES, "config.delivery")
    check_count("window", window, 1, "1 or more")
    max_in_flight = window if delivery == "ordered" else 0
    return kind(options=options, delivery=DELIVERIES[delivery], max_in_flight=max_in_flight)


def classification(
    reply: inference_pb2.ClassifyResponse
    | inference_pb2.ClassifyStreamResponse
    | inference_pb2.ClassifyBatchResult,
    variant_of_batch: result_pb2.VariantRef | None = None,
) -> Classification:
    """Convert the response of `classify`, or of a frame, or of an image of a batch.

    Args:
        reply: The response.
        variant_of_batch: The variant of a batch; None if the response names its own.

    Raises:
        ServerError: It has no classification, or invalid numbers.
    """
    if not reply.HasField("classification"):
        raise ServerError("the server's response has no classification")
    variant, timing = _variant_of(reply, variant_of_batch), _timing(reply.timing)
    found, warnings = reply.classification, _warnings(reply)
    return Classification(
        categories=tuple(
            Category(category.index, category.label, _probability(category))
            for category in found.categories
        ),
        embedding=_embedding(found.embedding, variant, timing, warnings)
        if found.HasField("embedding")
        else None,
        variant=variant,
        timing=timing,
        warnings=warnings,
    )


def _probability(category: result_pb2.Category) -> float:
    # Rounding may give slightly more than 1; the comparison is False for NaN.
    if not 0.0 <= category.probability <= 1.0 + 1e-3:
        raise ServerError(
            f"the server returned a probability of {category.probability} for category"
            f" {category.index}"
        )
    return category.probability


def embedding(
    reply: inference_pb2.EmbedResponse
    | inference_pb2.EmbedStreamResponse
    | inference_pb2.EmbedBatchResult,
    variant_of_batch: result_pb2.VariantRef | None = None,
) -> Embedding:
    """Convert the response of `embed`, or of a frame, or of an image of a batch.

    Args:
        reply: The response.
        variant_of_batch: The variant of a batch; None if the response names its own.

    Raises:
        ServerError: The vector's type is unknown to this release, or its numbers are invalid.
    """
    return _embedding(
        reply.embedding,
        _variant_of(reply, variant_of_batch),
        _timing(reply.timing),
        _warnings(reply),
    )


def _variant_of(reply: Any, variant_of_batch: result_pb2.VariantRef | None) -> VariantRef:
    return _variant_ref(reply.variant if variant_of_batch is None else variant_of_batch)


def with_origin(result: Result, source: Any, request_id: str | None) -> Result:
    """Set the image and the request ID of an image's result; return other results as they are."""
    if isinstance(result, (Classification, Embedding)):
        inner = getattr(result, "embedding", None)
        for one in (result, inner) if inner is not None else (result,):
            # The classes are frozen for users, who do not have this result yet.
            object.__setattr__(one, "source", source)
            object.__setattr__(one, "request_id", request_id)
    return result


def _transform(message: variant_pb2.Transform) -> Transform:
    """Convert preprocessing; older servers leave out what their variants do not have."""
    size = message.input_size
    square = (message.crop, message.crop)
    return Transform(
        resize=message.resize or None,
        crop=message.crop or None,
        mean=tuple(message.mean),
        std=tuple(message.std),
        interpolation=message.interpolation,
        background=message.background or "none",
        resize_to=(
            (message.resize_to.height, message.resize_to.width)
            if message.HasField("resize_to")
            else None
        ),
        resize_longer_side=message.resize_longer_side or None,
        pad_to_square=message.pad_to_square,
        fill=tuple(message.fill) or (0, 0, 0),
        input_size=(size.height, size.width) if message.HasField("input_size") else square,
        antialias=message.antialias if message.HasField("antialias") else True,
        channel_order=message.channel_order or "RGB",
        input_range=tuple(message.input_range) or (0, 1),
        digest=message.digest or None,
        exact_jpeg_pixels=message.exact_jpeg_pixels or None,
    )


def variant(message: variant_pb2.Variant) -> Variant:
    """Convert a variant."""
    accuracy, quantization = message.published_accuracy, message.quantization
    # Servers of earlier releases do not state it.
    activation = message.activation or variant_pb2.ACTIVATION_SOFTMAX
    return Variant(
        name=message.name,
        aliases=tuple(message.aliases),
        state=cast("VariantState", _name(variant_pb2.VariantState, message.state)),
        server_default=message.server_default,
        trained=message.trained,
        digest=message.digest or None,
        parameter_count=message.parameter_count,
        embedding_dimension=message.embedding_dimension,
        embedding_space=message.embedding_space,
        category_count=message.category_count,
        categories=tuple(message.categories),
        transform=_transform(message.transform),
        published_accuracy=PublishedAccuracy(
            accuracy.dataset,
            accuracy.acc_at_1,
            accuracy.acc_at_5 if accuracy.HasField("acc_at_5") else None,
        )
        if message.HasField("published_accuracy")
        else None,
        precision=message.precision,
        device=message.device,
        engine=message.engine,
        description=message.description,
        quantization=Quantization(
            quantization.calibration_images,
            quantization.compared_images,
            quantization.top_1_agreement,
            quantization.embedding_cosine,
        )
        if message.HasField("quantization")
        else None,
        latency=BatchLatency(message.latency.alpha_ms, message.latency.beta_ms)
        if message.HasField("latency")
        else None,
        loading=Loading(
            cast("LoadingStage", _name(variant_pb2.LoadingStage, message.loading.stage)),
            message.loading.elapsed_s,
        )
        if message.HasField("loading")
        else None,
        last_failure=message.last_failure or None,
        memory_bytes=message.memory_bytes,
        requests=message.requests,
        problem=message.problem or None,
        activation=cast("Activation", _name(variant_pb2.Activation, activation)),
        thresholds=tuple(message.thresholds),
    )


def load_result(reply: variant_pb2.LoadVariantResponse) -> LoadResult:
    """Convert the response of `load_variant`."""
    return LoadResult(variant(reply.variant), reply.replaced_digest or None, tuple(reply.evicted))


def set_default_result(reply: variant_pb2.SetDefaultVariantResponse) -> SetDefaultResult:
    """Convert the response of `set_default_variant`."""
    return SetDefaultResult(variant(reply.variant), reply.previous)


def traffic_report(message: variant_pb2.TrafficReport) -> TrafficReport:
    """Convert a traffic report."""
    split, comparison = message.split, message.comparison
    return TrafficReport(
        TrafficSplit(
            split.variant,
            split.candidate,
            split.canary_percent,
            split.shadow_percent,
            split.canary_embeddings,
        ),
        message.variant_digest,
        message.candidate_digest,
        message.elapsed_s,
        _share(message.variant_answers),
        _share(message.candidate_answers),
        Comparison(
            comparison.images,
            comparison.top_1_agreement,
            comparison.embedding_cosine,
            comparison.min_embedding_cosine,
            comparison.variant_compute_ms,
            comparison.candidate_compute_ms,
        )
        if message.HasField("comparison")
        else None,
        message.skipped,
        message.failed,
        message.ended or None,
    )


def _share(message: variant_pb2.TrafficShare) -> TrafficShare:
    return TrafficShare(message.answered, message.failed, message.p50_ms, message.p99_ms)


def _name(kind: Any, value: int) -> str:
    """Return the short name of an enum value: VARIANT_STATE_READY is "ready".

    A value of a newer server is "unknown".
    """
    if value not in kind.values():
        return "unknown"
    prefix = kind.Name(0).removesuffix("UNSPECIFIED")
    return str(kind.Name(value)).removeprefix(prefix).lower()


def _variant_ref(message: result_pb2.VariantRef) -> VariantRef:
    return VariantRef(message.name, message.digest)


def _timing(message: result_pb2.Timing) -> Timing:
    return Timing(
        decode_ms=message.decode_us / 1e3,
        queue_ms=message.queue_us / 1e3,
        compute_ms=message.compute_us / 1e3,
        total_ms=message.total_us / 1e3,
        batch_size=message.batch_size,
        cache=_CACHE_USES.get(message.cache),
    )


def _warnings(
    reply: inference_pb2.ClassifyResponse
    | inference_pb2.ClassifyStreamResponse
    | inference_pb2.ClassifyBatchResult
    | inference_pb2.EmbedResponse
    | inference_pb2.EmbedStreamResponse
    | inference_pb2.EmbedBatchResult,
) -> tuple[str, ...]:
    return tuple(_name(result_pb2.ImageWarning, value) for value in reply.image_warnings)


def _embedding(
    message: result_pb2.Embedding,
    variant: VariantRef,
    timing: Timing,
    warnings: tuple[str, ...],
) -> Embedding:
    dtype = _DTYPES.get(message.type)
    if dtype is None or not 0 < len(message.values) == dtype.itemsize * message.dimension:
        raise ServerError(
            f"the server sent an embedding of type {message.type}, {message.dimension} numbers in"
            f" {len(message.values)} bytes, which this release of the SDK cannot read; update it"
        )
    vector = np.frombuffer(message.values, dtype=dtype).copy()  # writable
    if not np.isfinite(vector).all():
        raise ServerError("the server sent an embedding with numbers that are not finite")
    return Embedding(
        vector=vector,
        space=message.space,
        l2_normalized=message.l2_normalized,
        variant=variant,
        timing=timing,
        warnings=warnings,
    )
