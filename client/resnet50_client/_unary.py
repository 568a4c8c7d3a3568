"""Unary calls, independent of channel and I/O."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from resnet50.v1 import inference_pb2, variant_pb2

from . import _codec, _health
from ._arrays import RawPixels
from ._preprocessed import ImageContent, PreprocessedPixels
from ._status import error_of_status
from ._stubs import Stubs
from ._types.results import Classification, Embedding
from .errors import Resnet50Error, ServerError
from .images import ImageInput, content_bytes, put_image, put_layout, read_image

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


@dataclass(frozen=True, eq=False, repr=False)
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
        source: The image as it was passed to the client; None for other calls.
    """

    method: str
    start: Callable[[Stubs], Callable[..., Any]]
    length: Callable[[], int]
    read: Callable[[Any], Result]
    repeatable: bool = True
    source: Any = None

    def future(self, stubs: Stubs, **options: Any) -> Any:
        """Start an attempt over a blocking channel without waiting; return gRPC's future.

        Args:
            stubs: The stubs.
            **options: Options of the attempt, such as `timeout`.
        """
        attempt = cast("functools.partial[Any]", self.start(stubs))
        return attempt.func.future(*attempt.args, **options)  # type: ignore[attr-defined]

    def result(self, reply: Any, request_id: str | None = None) -> Result:
        """Convert the response to a result.

        Args:
            reply: The response.
            request_id: ID of the request, for the results of images.

        Raises:
            ServerError: The response cannot be decoded.
        """
        if reply is None:  # grpc.aio's result for undecodable bytes
            raise ServerError(f"the server's response to {self.method} cannot be decoded")
        return _codec.with_origin(self.read(reply), self.source, request_id)


def classify_call(
    image: ImageInput, pixel_format: str | None, options: inference_pb2.ClassifyOptions
) -> SingleCall[Classification]:
    """Read the image, which may block, and return the call: an upload if it is large.

    Raises:
        InvalidImageError: The image is invalid.
        TypeError: The image's type is not supported.
        OSError: The image's file cannot be read.
    """
    return classify_content_call(_content(image, pixel_format), options, image)


def classify_content_call(
    content: ImageContent, options: inference_pb2.ClassifyOptions, image: ImageInput
) -> SingleCall[Classification]:
    """Return the call for the content of an image, which was read."""
    if not is_large(content):
        request = inference_pb2.ClassifyRequest(options=options)
        put_image(request.image, content)
        return _inference("Classify", request, _codec.classification, image)
    first = inference_pb2.ClassifyUploadOptions(options=options)
    part = inference_pb2.ClassifyUploadRequest
    return _upload("ClassifyUpload", part, first, content, _codec.classification, image)


def embed_call(
    image: ImageInput, pixel_format: str | None, options: inference_pb2.EmbedOptions
) -> SingleCall[Embedding]:
    """Read the image and return the call; as `classify_call`."""
    return embed_content_call(_content(image, pixel_format), options, image)


def embed_content_call(
    content: ImageContent, options: inference_pb2.EmbedOptions, image: ImageInput
) -> SingleCall[Embedding]:
    """Return the call for the content of an image, which was read."""
    if not is_large(content):
        request = inference_pb2.EmbedRequest(options=options)
        put_image(request.image, content)
        return _inference("Embed", request, _codec.embedding, image)
    first = inference_pb2.EmbedUploadOptions(options=options)
    part = inference_pb2.EmbedUploadRequest
    return _upload("EmbedUpload", part, first, content, _codec.embedding, image)


def batch_call(
    request: Any, contents: Iterable[ImageContent], read: Callable[[Any, Any], Result]
) -> SingleCall[list[Result | Resnet50Error]]:
    """Return the call of several images, whose results are in their order.

    Args:
        request: Request with the options, of ClassifyBatch or EmbedBatch; the images are added.
        contents: The images.
        read: Converts the result of one image, given the variant.
    """
    for content in contents:
        put_image(request.images.add(), content)

    def read_result(result: Any, variant: Any) -> Result | Resnet50Error:
        if result.WhichOneof("outcome") == "error":
            return error_of_status(result.error)
        try:
            return read(result, variant)
        except ServerError as error:
            return error

    return _inference(
        type(request).__name__.removesuffix("Request"),
        request,
        lambda reply: [read_result(result, reply.variant) for result in reply.results],
        None,
    )


def health_call(
    service: str, wait_for_ready: bool | None = None
) -> SingleCall[_health.HealthStatus]:
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
        lambda status: status,
    )


def full_name(method: str) -> str:
    """Return a method's full name, with its service."""
    return _FULL_NAMES[method]


def is_large(content: ImageContent) -> bool:
    """Return True for an image that is sent in chunks."""
    return len(content_bytes(content)) > UPLOAD_ABOVE_BYTES


def _content(image: ImageInput, pixel_format: str | None) -> ImageContent:
    try:
        return read_image(image, pixel_format)
    except Resnet50Error as error:
        error._set_context(source=image)
        raise


def _inference(
    method: str, request: Any, read: Callable[[Any], Result], source: ImageInput | None
) -> SingleCall[Result]:
    return SingleCall(
        full_name(method),
        lambda stubs: functools.partial(getattr(stubs.inference, method), request),
        request.ByteSize,
        read,
        source=source,
    )


def _upload(
    method: str,
    part: Callable[..., Any],
    options: Any,
    content: ImageContent,
    read: Callable[[Any], Result],
    source: ImageInput,
) -> SingleCall[Result]:
    import hashlib  # loads OpenSSL, which few programs need

    if isinstance(content, RawPixels):
        put_layout(options.raw, content)
    elif isinstance(content, PreprocessedPixels):
        options.transform_digest = content.transform_digest
    sent = content_bytes(content)
    options.sha256 = hashlib.sha256(sent).digest()

    def parts() -> Iterator[Any]:
        yield part(options=options)
        for at in range(0, len(sent), CHUNK_BYTES):
            yield part(chunk=sent[at : at + CHUNK_BYTES])

    def start(stubs: Stubs) -> Callable[..., Any]:
        return functools.partial(getattr(stubs.inference, method), parts())

    return SingleCall(
        full_name(method),
        start,
        lambda: part(options=options).ByteSize() + _length_of_chunks(len(sent)),
        read,
        source=source,
    )


def _length_of_chunks(length: int) -> int:
    """Return the size of the messages of an upload in bytes, without building them."""
    whole, rest = divmod(length, CHUNK_BYTES)
    return sum(
        # A field's tag takes one byte, its length 7 bits a byte.
        count * (1 + (chunk.bit_length() + 6) // 7 + chunk)
        for count, chunk in ((whole, CHUNK_BYTES), (1 if rest else 0, rest))
    )
