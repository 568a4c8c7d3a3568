"""Calls with one answer, ready to be made over any channel."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from resnet50.v1 import image_pb2, inference_pb2, variant_pb2

from . import health, messages
from .results import Classification, Embedding, LoadedVariant, NewDefault, Variant
from .splits import TrafficReport
from .stubs import Stubs

# gRPC's default limit of a message; proxies keep to it too. Larger files travel in chunks.
UPLOAD_ABOVE_BYTES = 4 * 2**20 - 64 * 1024
CHUNK_BYTES = 256 * 1024

Result = TypeVar("Result")
_FULL_NAMES = {
    method.name: f"{service.full_name}/{method.name}"
    for file in (inference_pb2.DESCRIPTOR, variant_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
    for method in service.methods
}


@dataclass(frozen=True)
class SingleCall(Generic[Result]):
    """A call with one answer, which is still to be made.

    Attributes:
        method: Its full name, e.g. "resnet50.v1.InferenceService/Classify".
        start: Returns what makes it over the stubs of a channel, anew for each attempt.
        length: Returns the length of its messages, in bytes.
        read: Makes a result out of the reply.
        of_upload: Whether it sends an image in chunks.
    """

    method: str
    start: Callable[[Stubs], Callable[..., Any]]
    length: Callable[[], int]
    read: Callable[[Any], Result]
    of_upload: bool = False


def classify_call(request: inference_pb2.ClassifyRequest) -> SingleCall[Classification]:
    """Return the call: an upload if the image is large."""
    if not _is_large(request.image):
        return _inference("Classify", request, messages.classification)
    options = inference_pb2.ClassifyUploadOptions(options=request.options)
    part = inference_pb2.ClassifyUploadRequest
    return _upload("ClassifyUpload", part, options, request.image, messages.classification)


def embed_call(request: inference_pb2.EmbedRequest) -> SingleCall[Embedding]:
    """Return the call: an upload if the image is large."""
    if not _is_large(request.image):
        return _inference("Embed", request, messages.embedding)
    options = inference_pb2.EmbedUploadOptions(options=request.options)
    part = inference_pb2.EmbedUploadRequest
    return _upload("EmbedUpload", part, options, request.image, messages.embedding)


def variants_call() -> SingleCall[list[Variant]]:
    """Return the call of `variants`."""
    return _variants(
        "ListVariants",
        variant_pb2.ListVariantsRequest(),
        lambda reply: [messages.variant(one) for one in reply.variants],
    )


def variant_call(name: str) -> SingleCall[Variant]:
    """Return the call of `variant`."""
    request = variant_pb2.GetVariantRequest(name=name)
    return _variants("GetVariant", request, lambda reply: messages.variant(reply.variant))


def load_variant_call(name: str, replace: bool) -> SingleCall[LoadedVariant]:
    """Return the call of `load_variant`."""
    request = variant_pb2.LoadVariantRequest(name=name, replace=replace)
    return _variants("LoadVariant", request, messages.loaded_variant)


def unload_variant_call(name: str) -> SingleCall[Variant]:
    """Return the call of `unload_variant`."""
    request = variant_pb2.UnloadVariantRequest(name=name)
    return _variants("UnloadVariant", request, lambda reply: messages.variant(reply.variant))


def set_default_variant_call(name: str) -> SingleCall[NewDefault]:
    """Return the call of `set_default_variant`."""
    request = variant_pb2.SetDefaultVariantRequest(name=name)
    return _variants("SetDefaultVariant", request, messages.new_default)


def set_traffic_split_call(
    variant: str, candidate: str, canary_percent: float, shadow_percent: float
) -> SingleCall[TrafficReport]:
    """Return the call of `set_traffic_split`."""
    split = variant_pb2.TrafficSplit(
        variant=variant,
        candidate=candidate,
        canary_percent=canary_percent,
        shadow_percent=shadow_percent,
    )
    request = variant_pb2.SetTrafficSplitRequest(split=split)
    return _variants(
        "SetTrafficSplit", request, lambda reply: messages.traffic_report(reply.report)
    )


def list_traffic_splits_call() -> SingleCall[list[TrafficReport]]:
    """Return the call of `list_traffic_splits`."""
    return _variants(
        "ListTrafficSplits",
        variant_pb2.ListTrafficSplitsRequest(),
        lambda reply: [messages.traffic_report(one) for one in reply.reports],
    )


def delete_traffic_split_call(variant: str) -> SingleCall[TrafficReport]:
    """Return the call of `delete_traffic_split`."""
    request = variant_pb2.DeleteTrafficSplitRequest(variant=variant)
    return _variants(
        "DeleteTrafficSplit", request, lambda reply: messages.traffic_report(reply.report)
    )


def health_call(service: str) -> SingleCall[str]:
    """Return the call of `health`."""
    return SingleCall(
        health.CHECK[1:],
        lambda stubs: functools.partial(stubs.check, service),
        lambda: len(health.check_request(service)),
        str,
    )


def full_name(method: str) -> str:
    """Return a method's name with that of its service before it."""
    return _FULL_NAMES[method]


def _is_large(image: image_pb2.Image) -> bool:
    return image.HasField("encoded") and image.ByteSize() > UPLOAD_ABOVE_BYTES


def _inference(method: str, request: Any, read: Callable[[Any], Result]) -> SingleCall[Result]:
    return SingleCall(
        full_name(method),
        lambda stubs: functools.partial(getattr(stubs.inference, method), request),
        request.ByteSize,
        read,
    )


def _variants(method: str, request: Any, read: Callable[[Any], Result]) -> SingleCall[Result]:
    return SingleCall(
        full_name(method),
        lambda stubs: functools.partial(getattr(stubs.variants, method), request),
        request.ByteSize,
        read,
    )


def _upload(
    method: str,
    part: Callable[..., Any],
    options: Any,
    image: image_pb2.Image,
    read: Callable[[Any], Result],
) -> SingleCall[Result]:
    content = image.encoded
    options.sha256 = hashlib.sha256(content).digest()

    def parts() -> Iterator[Any]:
        yield part(options=options)
        for at in range(0, len(content), CHUNK_BYTES):
            yield part(chunk=content[at : at + CHUNK_BYTES])

    def start(stubs: Stubs) -> Callable[..., Any]:
        return functools.partial(getattr(stubs.inference, method), parts())

    return SingleCall(
        full_name(method),
        start,
        lambda: sum(one.ByteSize() for one in parts()),
        read,
        of_upload=True,
    )
