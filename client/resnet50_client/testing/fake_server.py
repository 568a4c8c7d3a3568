"""A gRPC server with the project's contract and scripted answers."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, NoReturn

import grpc
import numpy as np
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from resnet50.v1 import (
    image_pb2,
    inference_pb2,
    inference_pb2_grpc,
    result_pb2,
    variant_pb2,
    variant_pb2_grpc,
)

from .. import _health
from .._arrays import RawPixels
from .._preprocessed import ImageContent, PreprocessedPixels
from .._status import DETAILS_KEY, ERRORS, REASONS, REQUEST_ID_KEY
from ..errors import (
    InvalidImageError,
    InvalidRequestError,
    OverloadedError,
    PermissionDeniedError,
    Resnet50Error,
    ServerError,
    VariantNotFoundError,
)
from .script import Answer, Received, Script

DEFAULT_CATEGORIES = ("tabby", "golden retriever", "goldfish", "daisy", "espresso", "sports car")
DEFAULT_TOP_K = 5
_CODES = {kind: code for code, kind in reversed(ERRORS.items())}


class FakeServer:
    """A server on a free port of 127.0.0.1 that answers without weights; a context manager.

    It speaks the whole contract of inference (single calls, uploads, batches, streams), lists one
    variant and is healthy. Each image gets the next scripted answer. Without one, probabilities and
    embedding are derived from the image's bytes: equal bytes get equal answers. Images are not
    decoded, so any bytes will do.

    Args:
        variant: Name of the only variant, which is also the default.
        categories: Its categories.
        dimension: Length of its embeddings.

    Attributes:
        address: "127.0.0.1:PORT", for `Client` and `AsyncClient`.
        received: The images so far, in order of arrival.
        delay_s: Seconds that each answer takes.
        serving: Whether health checks report SERVING.
    """

    def __init__(
        self,
        *,
        variant: str = "IMAGENET1K_V2",
        categories: Sequence[str] = DEFAULT_CATEGORIES,
        dimension: int = 2048,
    ) -> None:
        self.received: list[Received] = []
        self.delay_s = 0.0
        self.serving = True
        self._variant = variant
        self._digest = hashlib.sha256(variant.encode()).hexdigest()
        self._script = Script(categories, dimension)
        self._stopping = threading.Event()
        self._server = grpc.server(ThreadPoolExecutor(16, thread_name_prefix="fake server"))
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(_Inference(self), self._server)
        variants = _Variants(self)  # the others are UNIMPLEMENTED
        variant_pb2_grpc.add_VariantServiceServicer_to_server(variants, self._server)
        self._server.add_generic_rpc_handlers((_Health(self),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def script(self, *answers: Answer) -> None:
        """Append answers, each for one image.

        Args:
            answers: A dict of probabilities by category; an embedding, float [dimension]; or an
                error of `resnet50_client`, which the client raises: the code, the message, and
                the fields of the error are sent as the real server sends them.

        Raises:
            ValueError: A category is unknown, a probability is not 0 to 1, or a vector has another
                length.
            TypeError: An answer is of no known type.
        """
        self._script.add(answers)

    def stop(self) -> None:
        """End calls in flight, and stop listening."""
        self._stopping.set()
        self._server.stop(None).wait()

    def __enter__(self) -> FakeServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def answer(self, method: str, options: Any, image: image_pb2.Image, context: Any) -> Any:
        """Record an image, and return its Classification or Embedding message; may be overridden.

        Args:
            method: Name of the RPC.
            options: Its options.
            image: The image.
            context: The call.

        Raises:
            Resnet50Error: A scripted error, or the options are wrong.
        """
        content = _content_of(image)
        fields = {field.name: value for field, value in options.ListFields()}
        metadata = dict(context.invocation_metadata())
        self.received.append(Received(method, fields, content, metadata))
        self._stopping.wait(self.delay_s)
        if options.variant not in ("", "DEFAULT", self._variant):
            raise VariantNotFoundError(
                f"options.variant: {options.variant!r} is not loaded", served=(self._variant,)
            )
        probabilities, vector = self._script.next(content)
        if isinstance(options, inference_pb2.EmbedOptions):
            return self._embedding(vector, options)
        found = result_pb2.Classification()
        for index in np.argsort(-probabilities, kind="stable")[: options.top_k or DEFAULT_TOP_K]:
            if probabilities[index] >= options.min_probability:
                found.categories.add(
                    index=int(index),
                    label=self._script.categories[index],
                    probability=float(probabilities[index]),
                )
        if options.include_embedding:
            found.embedding.CopyFrom(self._embedding(vector, inference_pb2.EmbedOptions()))
        return found

    def _common(self) -> dict[str, Any]:
        """Return the fields that all responses about an image have."""
        return {
            "variant": result_pb2.VariantRef(name=self._variant, digest=self._digest),
            "timing": result_pb2.Timing(batch_size=1),
        }

    def _description(self) -> variant_pb2.Variant:
        """Return the description of the variant."""
        return variant_pb2.Variant(
            name=self._variant,
            aliases=["DEFAULT"],
            state=variant_pb2.VARIANT_STATE_READY,
            server_default=True,
            trained=False,
            digest=self._digest,
            embedding_dimension=self._script.dimension,
            embedding_space=f"{self._variant}@{self._digest[:12]}",
            category_count=len(self._script.categories),
            categories=self._script.categories,
            transform=variant_pb2.Transform(
                resize=232,
                crop=224,
                mean=[0.0] * 3,
                std=[1.0] * 3,
                interpolation="bilinear",
                digest=hashlib.sha256(b"resize 232, crop 224").hexdigest(),
            ),
            precision="fp32",
            device="cpu",
            engine="fake",
            description="A fake server of resnet50_client.testing; no weights.",
        )

    def _embedding(self, vector: Any, options: inference_pb2.EmbedOptions) -> result_pb2.Embedding:
        if options.l2_normalize:
            vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
        half = options.type == result_pb2.EMBEDDING_TYPE_FLOAT16
        return result_pb2.Embedding(
            values=vector.astype("<f2" if half else "<f4").tobytes(),
            type=result_pb2.EMBEDDING_TYPE_FLOAT16 if half else result_pb2.EMBEDDING_TYPE_FLOAT32,
            dimension=len(vector),
            space=f"{self._variant}@{self._digest[:12]}",
            l2_normalized=options.l2_normalize,
        )


class _Inference(inference_pb2_grpc.InferenceServiceServicer):
    def __init__(self, server: FakeServer) -> None:
        self._server = server

    def Classify(self, request: Any, context: Any) -> Any:
        return self._single("Classify", request.options, request.image, context)

    def Embed(self, request: Any, context: Any) -> Any:
        return self._single("Embed", request.options, request.image, context)

    def ClassifyUpload(self, requests: Iterator[Any], context: Any) -> Any:
        return self._upload("Classify", requests, context)

    def EmbedUpload(self, requests: Iterator[Any], context: Any) -> Any:
        return self._upload("Embed", requests, context)

    def ClassifyBatch(self, request: Any, context: Any) -> Any:
        return self._batch("Classify", request, context)

    def EmbedBatch(self, request: Any, context: Any) -> Any:
        return self._batch("Embed", request, context)

    def ClassifyStream(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        return self._stream("Classify", requests, context)

    def EmbedStream(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        return self._stream("Embed", requests, context)

    def _single(
        self, kind: str, options: Any, image: image_pb2.Image, context: Any, suffix: str = ""
    ) -> Any:
        try:
            result = self._server.answer(kind + suffix, options, image, context)
        except Resnet50Error as error:
            _abort(context, error)
        fields = {_FIELDS[kind]: result, **self._server._common()}
        return getattr(inference_pb2, f"{kind}Response")(**fields)

    def _upload(self, kind: str, requests: Iterator[Any], context: Any) -> Any:
        first = next(requests).options
        content = b"".join(request.chunk for request in requests)
        image = image_pb2.Image(encoded=content)
        if first.HasField("raw"):
            image.raw.CopyFrom(first.raw)
            image.raw.pixels = content
        elif first.transform_digest:
            image.preprocessed.pixels = content
            image.preprocessed.transform_digest = first.transform_digest
        return self._single(kind, first.options, image, context, "Upload")

    def _batch(self, kind: str, request: Any, context: Any) -> Any:
        common = self._server._common()
        response = getattr(inference_pb2, f"{kind}BatchResponse")(variant=common["variant"])
        for image in request.images:
            outcome = response.results.add()
            try:
                result = self._server.answer(f"{kind}Batch", request.options, image, context)
            except Resnet50Error as error:
                outcome.error.CopyFrom(_status(error))
            else:
                getattr(outcome, _FIELDS[kind]).CopyFrom(result)
                outcome.timing.CopyFrom(common["timing"])
        return response

    def _stream(self, kind: str, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        options = next(requests).config.options
        response = getattr(inference_pb2, f"{kind}StreamResponse")
        for request in requests:
            frame = request.frame
            try:
                result = self._server.answer(f"{kind}Stream", options, frame.image, context)
            except Resnet50Error as error:
                yield response(frame_id=frame.frame_id, error=_status(error))
            else:
                fields = {_FIELDS[kind]: result, **self._server._common()}
                yield response(frame_id=frame.frame_id, **fields)


class _Variants(variant_pb2_grpc.VariantServiceServicer):
    def __init__(self, server: FakeServer) -> None:
        self._server = server

    def ListVariants(self, request: Any, context: Any) -> Any:
        return variant_pb2.ListVariantsResponse(variants=[self._server._description()])

    def GetVariant(self, request: Any, context: Any) -> Any:
        variant = self._server._description()
        if request.name not in ("", *variant.aliases, variant.name):
            served = (variant.name, *variant.aliases)
            error = VariantNotFoundError(f"name: {request.name!r} is not loaded", served=served)
            _abort(context, error)
        return variant_pb2.GetVariantResponse(variant=variant)


class _Health(grpc.GenericRpcHandler):
    def __init__(self, server: FakeServer) -> None:
        self._server = server

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        if details.method != _health.CHECK:
            return None
        return grpc.unary_unary_rpc_method_handler(
            lambda _, context: _health.response(
                "SERVING" if self._server.serving else "NOT_SERVING"
            )
        )


_FIELDS = {"Classify": "classification", "Embed": "embedding"}


def _content_of(image: image_pb2.Image) -> ImageContent:
    """Return the image of a message.

    Raises:
        InvalidImageError: It has none, like the frame that a client sends for an unreadable image.
    """
    kind = image.WhichOneof("source")
    if kind is None:
        raise InvalidImageError(
            "image: is empty; set image.encoded, image.raw or image.preprocessed", field="image"
        )
    if kind == "encoded":
        return image.encoded
    if kind == "preprocessed":
        made = image.preprocessed
        return PreprocessedPixels(made.pixels, made.transform_digest)
    raw = image.raw
    name = image_pb2.PixelFormat.Name(raw.pixel_format).removeprefix("PIXEL_FORMAT_")
    matrix = image_pb2.ColorMatrix.Name(raw.color_matrix).removeprefix("COLOR_MATRIX_")
    levels = image_pb2.ColorRange.Name(raw.color_range).removeprefix("COLOR_RANGE_").lower()
    return RawPixels(
        raw.width,
        raw.height,
        name,
        raw.pixels,
        color_matrix=matrix if raw.color_matrix else None,
        color_range=levels if raw.color_range else None,
    )


def _status(error: Resnet50Error) -> status_pb2.Status:
    """Return an error as the server's status, with its google.rpc details."""
    kind = next((one for one in type(error).__mro__ if one in _CODES), ServerError)
    code = _CODES[kind]
    status = status_pb2.Status(code=code.value[0], message=error.message)
    details: list[Message] = [
        error_details_pb2.RequestInfo(request_id=error.request_id or "fake-request")
    ]
    if isinstance(error, InvalidRequestError):
        # The client tells errors of images by the field.
        field = error.field or ("image" if isinstance(error, InvalidImageError) else None)
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=field, description=error.message
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, OverloadedError) and error.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        details.append(retry)
    if isinstance(error, PermissionDeniedError):
        scope = {} if error.scope is None else {"scope": error.scope}
        details.append(error_details_pb2.ErrorInfo(reason="SCOPE_MISSING", metadata=scope))
    for reason in (one for one, known in REASONS.items() if isinstance(error, known)):
        served = ", ".join(getattr(error, "served", ()))
        metadata = {"served": served} if served else {}
        details.append(error_details_pb2.ErrorInfo(reason=reason, metadata=metadata))
    for detail in details:
        status.details.add().Pack(detail)
    return status


def _abort(context: Any, error: Resnet50Error) -> NoReturn:
    status = _status(error)
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    context.set_trailing_metadata(
        (
            (DETAILS_KEY, status.SerializeToString()),
            (REQUEST_ID_KEY, error.request_id or "fake-request"),
        )
    )
    context.abort(code, status.message)
    raise AssertionError  # `abort` raises
