"""Conversion of responses about variants and traffic to results; imported when it is needed."""

from __future__ import annotations

from typing import cast

from resnet50.v1 import variant_pb2

from ._codec import enum_name
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


def transform_of(message: variant_pb2.Transform) -> Transform:
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
        state=cast("VariantState", enum_name(variant_pb2.VariantState, message.state)),
        server_default=message.server_default,
        trained=message.trained,
        digest=message.digest or None,
        parameter_count=message.parameter_count,
        embedding_dimension=message.embedding_dimension,
        embedding_space=message.embedding_space,
        category_count=message.category_count,
        categories=tuple(message.categories),
        transform=transform_of(message.transform),
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
            cast("LoadingStage", enum_name(variant_pb2.LoadingStage, message.loading.stage)),
            message.loading.elapsed_s,
        )
        if message.HasField("loading")
        else None,
        last_failure=message.last_failure or None,
        memory_bytes=message.memory_bytes,
        requests=message.requests,
        problem=message.problem or None,
        activation=cast("Activation", enum_name(variant_pb2.Activation, activation)),
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
