"""Classify and embed: single images, batches, uploads in chunks, streams of frames."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from resnet50.v1 import image_pb2, inference_pb2
from resnet50_server.errors import InvalidRequest, ShuttingDown
from resnet50_server.inference.pipeline import Pipeline
from resnet50_server.lifecycle.registry import VariantRegistry
from resnet50_server.rollout.router import TrafficRouter
from resnet50_server.settings import Settings

from .call import Call
from .frame_stream import FrameStream
from .image_batch import ImageBatch
from .image_source import parse_image, transform_digest
from .stream_reader import MessageReader, StreamReader
from .task_cache import TaskCache, TaskType
from .tasks import ClassifyTask, EmbedTask, Options, Task, wants_embedding
from .upload import Part, Upload


@dataclass(frozen=True)
class CallLimits:
    """Limits of uploads, streams and batches.

    Attributes:
        upload_idle_timeout_s: Pause between the chunks of an upload, in seconds.
        upload_timeout_s: Duration of an upload, in seconds.
        stream_idle_timeout_s: Pause between frames, in seconds; 0 for no limit.
        max_frames_in_flight: Frames of one stream in flight.
        frames_in_flight: The same for an ordered stream that sets no `max_in_flight`.
        max_images_per_call: Images of a batch call.
    """

    upload_idle_timeout_s: float
    upload_timeout_s: float
    stream_idle_timeout_s: float
    max_frames_in_flight: int
    frames_in_flight: int
    max_images_per_call: int

    @classmethod
    def of(cls, settings: Settings) -> CallLimits:
        """Return those of the settings."""
        return cls(
            upload_idle_timeout_s=settings.upload_idle_timeout_s,
            upload_timeout_s=settings.upload_timeout_s,
            stream_idle_timeout_s=settings.stream_idle_timeout_s,
            max_frames_in_flight=settings.max_frames_in_flight,
            # One batch on the device, one that fills meanwhile.
            frames_in_flight=2 * settings.max_batch_size,
            max_images_per_call=settings.max_images_per_call,
        )


class InferenceServicer:
    """`InferenceService`; its methods get a `Call` instead of gRPC's context.

    Args:
        variants: The registry.
        pipeline: Computes images.
        limits: Of uploads, streams and batches.
        router: Chooses the variant.
    """

    def __init__(
        self,
        variants: VariantRegistry,
        pipeline: Pipeline,
        limits: CallLimits,
        router: TrafficRouter,
    ) -> None:
        self._variants = variants
        self._pipeline = pipeline
        self._limits = limits
        self._router = router
        self._streams: set[MessageReader] = set()
        self._tasks = TaskCache(variants)

    def drain(self) -> None:
        """Accept no more images; streams end after their frames in flight."""
        self._pipeline.admission.drain()
        self._router.close()
        for reader in self._streams:
            reader.stop(ShuttingDown())

    @property
    def idle(self) -> bool:
        """True while no image is in flight and no stream is open."""
        return not self._pipeline.admission.requests and not self._streams

    @contextmanager
    def open_stream(self, reader: MessageReader) -> Iterator[None]:
        """Count a stream as open during the block, and stop reading it when the server drains."""
        self._streams.add(reader)
        try:
            yield
        finally:
            self._streams.discard(reader)
            reader.close()

    def Classify(
        self, request: inference_pb2.ClassifyRequest, call: Call
    ) -> Coroutine[Any, Any, inference_pb2.ClassifyResponse]:
        """Classify one image."""
        return self._unary(request.image, request.options, ClassifyTask, call)

    def Embed(
        self, request: inference_pb2.EmbedRequest, call: Call
    ) -> Coroutine[Any, Any, inference_pb2.EmbedResponse]:
        """Embed one image."""
        return self._unary(request.image, request.options, EmbedTask, call)

    def ClassifyBatch(
        self, request: inference_pb2.ClassifyBatchRequest, call: Call
    ) -> Coroutine[Any, Any, inference_pb2.ClassifyBatchResponse]:
        """Classify several images."""
        return self._batch(request, ClassifyTask, call)

    def EmbedBatch(
        self, request: inference_pb2.EmbedBatchRequest, call: Call
    ) -> Coroutine[Any, Any, inference_pb2.EmbedBatchResponse]:
        """Embed several images."""
        return self._batch(request, EmbedTask, call)

    def ClassifyUpload(
        self, parts: AsyncIterator[inference_pb2.ClassifyUploadRequest], call: Call
    ) -> Coroutine[Any, Any, inference_pb2.ClassifyResponse]:
        """Classify one image that arrives in chunks."""
        return self._upload(parts, ClassifyTask, call)

    def EmbedUpload(
        self, parts: AsyncIterator[inference_pb2.EmbedUploadRequest], call: Call
    ) -> Coroutine[Any, Any, inference_pb2.EmbedResponse]:
        """Embed one image that arrives in chunks."""
        return self._upload(parts, EmbedTask, call)

    def ClassifyStream(self, _: object, call: Call) -> Coroutine[Any, Any, None]:
        """Classify frames; writes the responses itself."""
        return self._stream(ClassifyTask, call)

    def EmbedStream(self, _: object, call: Call) -> Coroutine[Any, Any, None]:
        """Embed frames; writes the responses itself."""
        return self._stream(EmbedTask, call)

    async def _unary(
        self,
        message: image_pb2.Image,
        options: Options,
        task_type: TaskType,
        call: Call,
    ) -> Any:
        started = time.perf_counter()
        task = self._task(task_type, options, call, map(transform_digest, (message,)))
        task.variant.acquire()
        try:
            image = parse_image(message, self._pipeline.limits)
            inference = self._router.instrument(task.inference, call, image)
            result = await self._pipeline.infer(image, inference, call)
        finally:
            task.variant.release()
        return task.response(result, self._pipeline.record(inference, call, result, started))

    async def _batch(self, request: Any, task_type: TaskType, call: Call) -> Any:
        limit = self._limits.max_images_per_call
        if not 1 <= len(request.images) <= limit:
            raise InvalidRequest(
                "images",
                f"has {len(request.images)} images, a call may have 1 to {limit}"
                " (max_images_per_call); split them into several calls",
            )
        digests = map(transform_digest, request.images)
        task = self._task(task_type, request.options, call, digests)
        with task.variant.in_use():
            response = task.batch_response(len(request.images))
            outcomes = [response.results.add() for _ in request.images]
            images = zip(request.images, outcomes, strict=True)
            parse = partial(parse_image, limits=self._pipeline.limits)
            await ImageBatch(images, parse, self._pipeline, self._router, task, call).run()
            return response

    async def _upload(
        self,
        parts: AsyncIterator[Part],
        task_type: TaskType,
        call: Call,
    ) -> Any:
        started, limits = time.perf_counter(), self._limits
        with self._pipeline.admission.upload(call.caller.name):
            upload = Upload(
                parts, self._pipeline, call, limits.upload_idle_timeout_s, limits.upload_timeout_s
            )
            described = await upload.options()
            digests = (described.transform_digest,)
            task = self._task(task_type, described.options, call, digests)
            with task.variant.receiving():
                image = await upload.image(task.variant.spec.transform)
        task = task.rebind()  # the variant may have been replaced while the image arrived
        task.variant.require_health()
        with task.variant.in_use():
            inference = self._router.instrument(task.inference, call, image)
            result = await self._pipeline.infer(image, inference, call)
        return task.response(result, self._pipeline.record(inference, call, result, started))

    async def _stream(self, task_type: TaskType, call: Call) -> None:
        limits = self._limits
        call.stream = reader = StreamReader(call.grpc.read, limits.stream_idle_timeout_s)
        with self.open_stream(reader):
            config = await reader.config()
            task = self._task(task_type, config.options, call)
            stream = FrameStream(reader, self._pipeline, self._router, task, call)
            await stream.run(config, limits.max_frames_in_flight, limits.frames_in_flight)

    def _task(
        self,
        task_type: TaskType,
        options: Options,
        call: Call,
        transform_digests: Iterable[str] = (),
    ) -> Task:
        """Return the checked options of a call for the variant that computes it."""
        variant = self._router.resolve(
            call,
            self._variants.find(options.variant),
            with_embedding=wants_embedding(options),
            transform_digests=transform_digests,
        )
        return self._tasks.get(task_type, options, variant)
