"""Classify and embed: single images, uploads in chunks, streams of frames."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, NamedTuple

from resnet50.v1 import image_pb2, inference_pb2, inference_pb2_grpc
from resnet50_server.batching.result import Result
from resnet50_server.context import CURRENT_REQUEST, Permit, RequestContext
from resnet50_server.errors import ShuttingDown
from resnet50_server.images.source import size_bytes
from resnet50_server.inference.pipeline import InferenceTask, Pipeline
from resnet50_server.lifecycle.loaded_variant import LoadedVariant
from resnet50_server.lifecycle.registry import VariantRegistry
from resnet50_server.rollout.router import Traffic

from .frame_stream import FrameStream, Reply, StreamReader
from .guard import Context
from .image_source import parse_image
from .tasks import ClassifyTask, EmbedTask, Task, timing
from .upload import Part as UploadPart
from .upload import Upload


@dataclass(frozen=True)
class StreamLimits:
    """How much one caller may keep waiting or inside.

    Attributes:
        upload_idle_timeout_s: Silence within an upload, in seconds.
        upload_timeout_s: An upload in all, in seconds.
        stream_idle_timeout_s: Silence within a stream, in seconds; 0 for ever.
        max_frames_in_flight: Frames of one stream inside at once.
        frames_in_flight: The same for an ordered stream that does not say.
    """

    upload_idle_timeout_s: float
    upload_timeout_s: float
    stream_idle_timeout_s: float
    max_frames_in_flight: int
    frames_in_flight: int


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """`InferenceService` of the contract.

    Args:
        variants: Those that can answer.
        pipeline: Computes images.
        patience: With uploads and streams.
        traffic: Says which variant answers, and learns of it.
    """

    def __init__(
        self, variants: VariantRegistry, pipeline: Pipeline, limits: StreamLimits, traffic: Traffic
    ) -> None:
        self._variants = variants
        self._pipeline = pipeline
        self._limits = limits
        self._traffic = traffic
        self._streams: set[StreamReader] = set()

    def drain(self) -> None:
        """Take no more images; streams end once the frames that are inside have been answered."""
        self._pipeline.admission.drain()
        self._traffic.close()
        for messages in self._streams:
            messages.stop(ShuttingDown())

    @property
    def idle(self) -> bool:
        """Whether no image and no stream is inside."""
        return not self._pipeline.admission.requests and not self._streams

    async def Classify(
        self, request: inference_pb2.ClassifyRequest, context: Context
    ) -> inference_pb2.ClassifyResponse:
        """Classify one image; see the contract."""
        variant = self._find(request.options.variant, request.options.include_embedding)
        question = ClassifyTask(request.options, variant)
        told = await self._answer(request.image, question, context)
        return inference_pb2.ClassifyResponse(classification=told.answer, **told.about)

    async def Embed(
        self, request: inference_pb2.EmbedRequest, context: Context
    ) -> inference_pb2.EmbedResponse:
        """Embed one image; see the contract."""
        variant = self._find(request.options.variant, with_embedding=True)
        question = EmbedTask(request.options, variant)
        told = await self._answer(request.image, question, context)
        return inference_pb2.EmbedResponse(embedding=told.answer, **told.about)

    async def ClassifyUpload(
        self, request_iterator: AsyncIterator[inference_pb2.ClassifyUploadRequest], context: Context
    ) -> inference_pb2.ClassifyResponse:
        """Classify one image that arrives in chunks; see the contract."""
        told = await self._answer_upload(request_iterator, ClassifyTask, context)
        return inference_pb2.ClassifyResponse(classification=told.answer, **told.about)

    async def EmbedUpload(
        self, request_iterator: AsyncIterator[inference_pb2.EmbedUploadRequest], context: Context
    ) -> inference_pb2.EmbedResponse:
        """Embed one image that arrives in chunks; see the contract."""
        told = await self._answer_upload(request_iterator, EmbedTask, context)
        return inference_pb2.EmbedResponse(embedding=told.answer, **told.about)

    def ClassifyStream(
        self, request_iterator: AsyncIterator[inference_pb2.ClassifyStreamRequest], context: Context
    ) -> AsyncGenerator[inference_pb2.ClassifyStreamResponse, None]:
        """Classify frames; see the contract."""
        reply = inference_pb2.ClassifyStreamResponse
        return self._stream(context, ClassifyTask, reply, "classification")

    def EmbedStream(
        self, request_iterator: AsyncIterator[inference_pb2.EmbedStreamRequest], context: Context
    ) -> AsyncGenerator[inference_pb2.EmbedStreamResponse, None]:
        """Embed frames; see the contract."""
        reply = inference_pb2.EmbedStreamResponse
        return self._stream(context, EmbedTask, reply, "embedding")

    def _find(self, name: str, with_embedding: bool) -> LoadedVariant:
        """Return the variant that answers a call, by what the call says."""
        call = CURRENT_REQUEST.get()
        variant = self._traffic.route(
            call, self._variants.find(name), with_embedding=with_embedding
        )
        call.variant = variant.spec.name
        variant.require_health()
        return variant

    async def _answer(self, image: image_pb2.Image, question: Task, context: Context) -> _Told:
        started, call = time.perf_counter(), CURRENT_REQUEST.get()
        with question.variant.in_use():
            source = parse_image(image, self._pipeline.limits)
            _permit(call).add_bytes(size_bytes(source))
            call.deadline = _deadline(context)
            task = self._traffic.watch(question.task, call, source)
            result = await self._pipeline.infer(source, task, call)
        return self._told(question, task, call, result, started)

    def _upload(self, parts: AsyncIterator[UploadPart]) -> Upload:
        limits = self._limits
        return Upload(parts, self._pipeline, limits.upload_idle_timeout_s, limits.upload_timeout_s)

    async def _answer_upload(
        self,
        parts: AsyncIterator[UploadPart],
        task_type: Callable[[Any, LoadedVariant], Task],
        context: Context,
    ) -> _Told:
        started, call = time.perf_counter(), CURRENT_REQUEST.get()
        with self._pipeline.admission.upload(call.caller.name):
            upload = self._upload(parts)
            options = (await upload.options()).options
            variant = self._find(options.variant, _with_embedding(options))
            question = task_type(options, variant)
            call.deadline = _deadline(context)
            with question.variant.receiving():
                image = await upload.image(question.variant.spec.transform, call)
        # The variant may have been replaced while the image arrived.
        question = question.latest()
        question.variant.require_health()
        with question.variant.in_use():
            task = self._traffic.watch(question.task, call, image)
            result = await self._pipeline.infer(image, task, call)
        return self._told(question, task, call, result, started)

    def _told(
        self,
        question: Task,
        task: InferenceTask,
        call: RequestContext,
        result: Result,
        started: float,
    ) -> _Told:
        image = self._pipeline.record(task, call, result, started)
        about = {"variant": question.reference, "timing": timing(image)}
        return _Told(question.answer(result), about)

    async def _stream(
        self,
        context: Context,
        task_type: Callable[[Any, LoadedVariant], Task],
        reply: Callable[..., Reply],
        outcome: str,
    ) -> AsyncGenerator[Reply, None]:
        call = CURRENT_REQUEST.get()
        messages = StreamReader(context.read, self._limits.stream_idle_timeout_s)
        self._streams.add(messages)
        try:
            config = await messages.config()
            options = config.options
            question = task_type(options, self._find(options.variant, _with_embedding(options)))
            call.deadline, call.stream = _deadline(context), messages
            stream = FrameStream(
                messages, self._pipeline, self._traffic, reply, outcome, question, call
            )
            replies = stream.replies(
                config,
                self._limits.max_frames_in_flight,
                self._limits.frames_in_flight,
            )
            async with aclosing(replies):
                async for one in replies:
                    yield one
        finally:
            self._streams.discard(messages)
            messages.close()


class _Told(NamedTuple):
    """An answer, and what else its reply says."""

    answer: Any
    about: dict[str, Any]


def _with_embedding(
    options: inference_pb2.ClassifyOptions | inference_pb2.EmbedOptions,
) -> bool:
    if isinstance(options, inference_pb2.EmbedOptions):
        return True
    return options.include_embedding


def _deadline(context: Context) -> float | None:
    """Return a call's deadline in loop time; None if it has none."""
    remaining_s = context.time_remaining()
    # gRPC reports a call without a deadline as None, or as a time beyond any calendar.
    if remaining_s is None or remaining_s > 1e8:
        return None
    return asyncio.get_running_loop().time() + remaining_s


def _permit(call: RequestContext) -> Permit:
    assert call.permit is not None  # set by the guard
    return call.permit
