"""Unary calls, independent of channel and I/O."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeGuard, TypeVar

from resnet50.v1 import inference_pb2, variant_pb2

from . import _codec, _health
from ._arguments import check_name
from ._stubs import Stubs
from ._types.results import Classification, Embedding, LoadedVariant, NewDefault, Variant
from ._types.traffic import TrafficReport
from .errors import ServerError
from .images import ImageInput, RawPixels, put_image, read_image

# Below gRPC's default message limit, which proxies have, too. Larger files are sent in chunks.
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
    """A unary call to make.

    Attributes:
        method: Full name, e.g. "resnet50.v1.InferenceService/Classify".
        start: Returns a callable for one attempt, given the stubs of a channel.
        length: Returns the size of its messages in bytes.
        read: Converts the response to a result.
        repeatable: True if it can be retried after a server may have received it. False for
            changes of variants: another server could receive the retry, while the first one
            completes the change.
    """

    method: str
    start: Callable[[Stubs], Callable[..., Any]]
    length: Callable[[], int]
    read: Callable[[Any], Result]
    repeatable: bool = True

    def result(self, reply: Any) -> Result:
        """Convert the response to a result.

        Raises:
            ServerError: The response cannot be decoded.
        """
        if reply is None:  # grpc.aio's result for undecodable bytes
            raise ServerError(f"the server's response to {self.method} cannot be decoded")
        return self.read(reply)


def classify_call(
    image: ImageInput, pixel_format: str | None, options: inference_pb2.ClassifyOptions
) -> SingleCall[Classification]:
    """Read the image, which may block, and return the call: an upload if it is large.

    Raises:
        InvalidImageError: The image is invalid.
        TypeError: The image's type is not supported.
        OSError: The image's file cannot be read.
    """
    content = read_image(image, pixel_format)
    if not _is_large(content):
        request = inference_pb2.ClassifyRequest(options=options)
        put_image(request.image, content)
        return _inference("Classify", request, _codec.classification)
    first = inference_pb2.ClassifyUploadOptions(options=options)
    part = inference_pb2.ClassifyUploadRequest
    return _upload("ClassifyUpload", part, first, content, _codec.classification)


def embed_call(
    image: ImageInput, pixel_format: str | None, options: inference_pb2.EmbedOptions
) -> SingleCall[Embedding]:
    """Read the image and return the call; as `classify_call`."""
    content = read_image(image, pixel_format)
    if not _is_large(content):
        request = inference_pb2.EmbedRequest(options=options)
        put_image(request.image, content)
        return _inference("Embed", request, _codec.embedding)
    first = inference_pb2.EmbedUploadOptions(options=options)
    part = inference_pb2.EmbedUploadRequest
    return _upload("EmbedUpload", part, first, content, _codec.embedding)


def list_variants_call() -> SingleCall[list[Variant]]:
    """Return the call of `list_variants`."""
    return _variants(
        "ListVariants",
        variant_pb2.ListVariantsRequest(),
        lambda reply: [_codec.variant(one) for one in reply.variants],
    )


def get_variant_call(name: str | None) -> SingleCall[Variant]:
    """Return the call of `get_variant`."""
    check_name("name", name)
    request = _codec.message(variant_pb2.GetVariantRequest, "", name=name)
    return _variants("GetVariant", request, lambda reply: _codec.variant(reply.variant))


def load_variant_call(name: str, replace: bool) -> SingleCall[LoadedVariant]:
    """Return the call of `load_variant`."""
    request = _codec.message(variant_pb2.LoadVariantRequest, "", name=name, replace=replace)
    return _variants("LoadVariant", request, _codec.loaded_variant)


def unload_variant_call(name: str) -> SingleCall[Variant]:
    """Return the call of `unload_variant`."""
    request = _codec.message(variant_pb2.UnloadVariantRequest, "", name=name)
    return _variants("UnloadVariant", request, lambda reply: _codec.variant(reply.variant))


def set_default_variant_call(name: str) -> SingleCall[NewDefault]:
    """Return the call of `set_default_variant`."""
    request = _codec.message(variant_pb2.SetDefaultVariantRequest, "", name=name)
    return _variants("SetDefaultVariant", request, _codec.new_default)


def set_traffic_split_call(
    variant: str,
    candidate: str,
    canary_percent: float,
    shadow_percent: float,
    canary_embeddings: bool,
) -> SingleCall[TrafficReport]:
    """Return the call of `set_traffic_split`."""
    split = _codec.message(
        variant_pb2.TrafficSplit,
        "split.",
        variant=variant,
        candidate=candidate,
        canary_percent=canary_percent,
        shadow_percent=shadow_percent,
        canary_embeddings=canary_embeddings,
    )
    request = variant_pb2.SetTrafficSplitRequest(split=split)
    return _variants("SetTrafficSplit", request, lambda reply: _codec.traffic_report(reply.report))


def list_traffic_splits_call() -> SingleCall[list[TrafficReport]]:
    """Return the call of `list_traffic_splits`."""
    return _variants(
        "ListTrafficSplits",
        variant_pb2.ListTrafficSplitsRequest(),
        lambda reply: [_codec.traffic_report(one) for one in reply.reports],
    )


def delete_traffic_split_call(variant: str) -> SingleCall[TrafficReport]:
    """Return the call of `delete_traffic_split`."""
    request = _codec.message(variant_pb2.DeleteTrafficSplitRequest, "", variant=variant)
    return _variants(
        "DeleteTrafficSplit", request, lambda reply: _codec.traffic_report(reply.report)
    )


def health_call(service: str, wait_for_ready: bool | None = None) -> SingleCall[str]:
    """Return the call of `health`.

    Args:
        service: Full name of the service; "" for the server.
        wait_for_ready: Whether to wait for a connection; None for the client's.

    Raises:
        InvalidRequestError: The name is not a string.
    """
    length = len(_health.check_request(service))
    return SingleCall(
        _health.CHECK[1:],
        lambda stubs: functools.partial(stubs.check, service, wait_for_ready=wait_for_ready),
        lambda: length,
        str,
    )


def full_name(method: str) -> str:
    """Return a method's full name, with its service."""
    return _FULL_NAMES[method]


def _is_large(content: bytes | RawPixels) -> TypeGuard[bytes]:
    return isinstance(content, bytes) and len(content) > UPLOAD_ABOVE_BYTES


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
        repeatable=method.startswith(("List", "Get")),
    )


def _upload(
    method: str,
    part: Callable[..., Any],
    options: Any,
    content: bytes,
    read: Callable[[Any], Result],
) -> SingleCall[Result]:
    import hashlib  # loads OpenSSL, which few programs need

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
        lambda: part(options=options).ByteSize() + _length_of_chunks(len(content)),
        read,
    )


def _length_of_chunks(length: int) -> int:
    """Return the size of the messages of an upload in bytes, without building them."""
    whole, rest = divmod(length, CHUNK_BYTES)
    return sum(
        # A field's tag takes one byte, its length 7 bits a byte.
        count * (1 + (chunk.bit_length() + 6) // 7 + chunk)
        for count, chunk in ((whole, CHUNK_BYTES), (1 if rest else 0, rest))
    )
