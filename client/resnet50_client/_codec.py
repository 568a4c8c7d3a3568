"""Conversion of arguments to requests, and of responses to results; no I/O."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from resnet50.v1 import inference_pb2, result_pb2

from ._arguments import check_background, check_choice, check_count, check_name, check_probability
from ._frames import DELIVERIES, Delivery, StreamKind
from ._types.results import CacheUse, Category, Classification, Embedding, Timing, VariantRef
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


def enum_name(kind: Any, value: int) -> str:
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
    return tuple(enum_name(result_pb2.ImageWarning, value) for value in reply.image_warnings)


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
