"""Unary calls about variants and traffic; imported when they are needed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from resnet50.v1 import variant_pb2

from . import _variant_codec
from ._arguments import check_name
from ._codec import message
from ._types.traffic import TrafficReport
from ._types.variants import LoadResult, SetDefaultResult, Variant
from ._unary import SingleCall, full_name

Result = TypeVar("Result")


def list_variants_call() -> SingleCall[list[Variant]]:
    """Return the call of `list_variants`."""
    return _variants(
        "ListVariants",
        variant_pb2.ListVariantsRequest(),
        lambda reply: [_variant_codec.variant(one) for one in reply.variants],
    )


def get_variant_call(name: str | None) -> SingleCall[Variant]:
    """Return the call of `get_variant`."""
    check_name("name", name)
    request = message(variant_pb2.GetVariantRequest, "", name=name)
    return _variants("GetVariant", request, lambda reply: _variant_codec.variant(reply.variant))


def load_variant_call(name: str, replace: bool) -> SingleCall[LoadResult]:
    """Return the call of `load_variant`."""
    request = message(variant_pb2.LoadVariantRequest, "", name=name, replace=replace)
    return _variants("LoadVariant", request, _variant_codec.load_result)


def unload_variant_call(name: str) -> SingleCall[Variant]:
    """Return the call of `unload_variant`."""
    request = message(variant_pb2.UnloadVariantRequest, "", name=name)
    return _variants("UnloadVariant", request, lambda reply: _variant_codec.variant(reply.variant))


def set_default_variant_call(name: str) -> SingleCall[SetDefaultResult]:
    """Return the call of `set_default_variant`."""
    request = message(variant_pb2.SetDefaultVariantRequest, "", name=name)
    return _variants("SetDefaultVariant", request, _variant_codec.set_default_result)


def set_traffic_split_call(
    variant: str,
    candidate: str,
    canary_percent: float,
    shadow_percent: float,
    canary_embeddings: bool,
) -> SingleCall[TrafficReport]:
    """Return the call of `set_traffic_split`."""
    split = message(
        variant_pb2.TrafficSplit,
        "split.",
        variant=variant,
        candidate=candidate,
        canary_percent=canary_percent,
        shadow_percent=shadow_percent,
        canary_embeddings=canary_embeddings,
    )
    request = variant_pb2.SetTrafficSplitRequest(split=split)
    return _variants(
        "SetTrafficSplit", request, lambda reply: _variant_codec.traffic_report(reply.report)
    )


def list_traffic_splits_call() -> SingleCall[list[TrafficReport]]:
    """Return the call of `list_traffic_splits`."""
    return _variants(
        "ListTrafficSplits",
        variant_pb2.ListTrafficSplitsRequest(),
        lambda reply: [_variant_codec.traffic_report(one) for one in reply.reports],
    )


def delete_traffic_split_call(variant: str) -> SingleCall[TrafficReport]:
    """Return the call of `delete_traffic_split`."""
    request = message(variant_pb2.DeleteTrafficSplitRequest, "", variant=variant)
    return _variants(
        "DeleteTrafficSplit", request, lambda reply: _variant_codec.traffic_report(reply.report)
    )


def _variants(method: str, request: Any, read: Callable[[Any], Result]) -> SingleCall[Result]:
    return SingleCall(
        full_name(method),
        lambda stubs: functools.partial(getattr(stubs.variants, method), request),
        request.ByteSize,
        read,
        repeatable=method.startswith(("List", "Get")),
    )
