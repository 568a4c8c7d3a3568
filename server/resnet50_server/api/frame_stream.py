"""One stream: its frames, and the responses to them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Generator
from typing import Any

from resnet50.v1 import inference_pb2, result_pb2
from resnet50_server.batching.result import Result
from resnet50_server.errors import (
    InvalidRequest,
    NoClassificationHead,
    ShuttingDown,
    VariantNotFound,
)
from resnet50_server.inference.admission import Permit
from resnet50_server.inference.pipeline import InferenceTask, Pipeline
from resnet50_server.rollout.router import TrafficRouter
from resnet50_server.runtime.tasks import start_task

from .call import Call, Received
from .delivery import Pending, latest, ordered
from .image_source import parse_image, transform_digest
from .status import is_server_error, to_status
from .stream_reader import Config, StreamReader
from .tasks import Task

log = logging.getLogger(__name__)

# Default of LATEST, which wants the freshest result: one frame in flight.
LATEST_WINDOW = 1


class FrameStream:
    """Computes the frames of one stream.

    Args:
        reader: Reads the frames.
        pipeline: Computes them.
        router: Watches them for traffic splits.
        task: The checked options of each frame. It is rebound when the variant is replaced.
        call: The stream's RPC.
    """

    def __init__(
        self,
        reader: StreamReader,
        pipeline: Pipeline,
        router: TrafficRouter,
        task: Task,
        call: Call,
    ) -> None:
        self._reader = reader
        self._pipeline = pipeline
        self._router = router
        self._task = task
        self._call = call
        self._last_answered: int | None = None

    async def run(self, config: Config, max_window: int, default_window: int) -> None:
        """Compute the frames and write the responses with the config's delivery.

        Args:
            config: Of the first message.
            max_window: Maximum of frames in flight.
            default_window: Frames in flight of an ORDERED stream that sets no `max_in_flight`.

        Raises:
            ServingError: The client broke the protocol, or reading was stopped.
        """
        delivery = config.delivery or inference_pb2.DELIVERY_ORDERED
        if delivery not in inference_pb2.Delivery.values():
            raise InvalidRequest(
                "config.delivery",
                f"is {delivery}, must be one of {', '.join(inference_pb2.Delivery.keys()[1:])}",
            )
        frames, write = self._reader, self._call.grpc.write
        self._task.variant.add_stream(self._reader.stop)
        try:
            if delivery == inference_pb2.DELIVERY_ORDERED:
                window = min(config.max_in_flight or default_window, max_window)
                await ordered(frames, self._start, write, window)
            else:
                window = min(config.max_in_flight or LATEST_WINDOW, max_window)
                await latest(frames, self._start, self._drop, write, window)
        except ShuttingDown as error:
            answered = "no frame was answered"
            if self._last_answered is not None:
                answered = f"frame {self._last_answered} was the last one answered"
            raise type(error)(
                error.reason, f"{answered}: send those after it to another server"
            ) from error
        finally:
            self._task.variant.remove_stream(self._reader.stop)

    async def _start(self, received: Received) -> Pending[Any]:
        """Start to compute a frame once it is admitted."""
        frame, size = received
        started, frame_id, call = time.perf_counter(), frame.frame_id, self._call
        permit: Permit | None = None
        if self._task.variant.replaced_by is not None or self._is_for_requested(frame):
            try:
                self._rebind(frame)
            except (InvalidRequest, NoClassificationHead, VariantNotFound) as error:
                # The options do not suit the new variant.
                return _RefusedFrame(self, frame_id, error)
        task, admission = self._task, self._pipeline.admission
        task.variant.acquire()
        try:
            # Before the image is taken out of its message, which copies it.
            permit = admission.try_acquire(call.caller.name, size, bulk=call.bulk)
            if permit is None:
                permit = await admission.acquire(call.caller.name, size, bulk=call.bulk)
            source = parse_image(frame.image, self._pipeline.limits)
            inference = self._router.instrument(task.inference, call, source)
            infer = self._pipeline.infer(source, inference, call)
        except BaseException as error:
            task.variant.release()
            if permit is not None:
                permit.release()
            # Ends the stream: the client can send the frame to another server.
            if isinstance(error, ShuttingDown) or not isinstance(error, Exception):
                raise
            return _RefusedFrame(self, frame_id, error)
        computing = start_task(infer, f"frame {frame_id}")
        return _FrameInFlight(self, task, inference, frame_id, started, permit, computing)

    def _is_for_requested(self, frame: inference_pb2.Frame) -> bool:
        """Return whether a frame was preprocessed, and not for the candidate that computes it."""
        variant = self._task.variant.spec
        if variant.name == self._call.asked:
            return False
        digest = transform_digest(frame.image)
        return bool(digest) and digest != variant.transform.digest

    def _rebind(self, frame: inference_pb2.Frame) -> None:
        """Switch to the variant that has replaced this one; frames in flight stay with theirs.

        If the frame was preprocessed for the requested variant, switch from the candidate to that
        one, which computes the rest of the stream.
        """
        task = self._task.rebind()
        if self._is_for_requested(frame):
            task = self._task.rebind(self._router.requested_variant(self._call))
            self._call.variant = task.variant.spec.name
        self._task.variant.remove_stream(self._reader.stop)
        task.variant.add_stream(self._reader.stop)
        self._task = task

    def result_response(
        self, frame_id: int, task: Task, inference: InferenceTask, result: Result, started: float
    ) -> Any:
        """Return the response to a frame that was computed."""
        self._last_answered = frame_id
        image = self._pipeline.record(inference, self._call, result, started)
        return task.frame_response(frame_id, result, image)

    def error_response(self, frame_id: int, error: Exception) -> Any:
        """Return the response to a frame that failed."""
        self._last_answered = frame_id
        call = self._call
        if is_server_error(error):
            log.error("frame %d of stream %s failed", frame_id, call.request_id, exc_info=error)
        self._pipeline.events.image_refused(call, error)
        status = to_status(error, call.request_id)
        return self._task.FrameResponse(frame_id=frame_id, error=status)

    def _drop(self, received: Received, newer: Received) -> Any:
        frame_id = self._last_answered = received.message.frame_id
        self._pipeline.events.frame_dropped(self._call)
        dropped = result_pb2.Dropped(replaced_by_frame_id=newer.message.frame_id)
        return self._task.FrameResponse(frame_id=frame_id, dropped=dropped)


class _RefusedFrame:
    """A frame that is not computed; its response is made when those before it have been sent.

    Args:
        stream: Makes the response.
        frame_id: The frame's.
        error: Why.
    """

    __slots__ = ("_error", "_frame_id", "_stream")

    def __init__(self, stream: FrameStream, frame_id: int, error: Exception) -> None:
        self._stream = stream
        self._frame_id = frame_id
        self._error = error

    def __await__(self) -> Generator[Any, None, Any]:
        yield from ()
        return self._stream.error_response(self._frame_id, self._error)

    def cancel(self) -> None:
        """Do nothing: it waits nowhere."""


class _FrameInFlight:
    """A frame that is being computed; its response is made when it is awaited, once.

    Its permit is released as soon as it is computed, whether or not the client reads the response.

    Args:
        stream: Makes the response.
        task: The checked options.
        inference: The outputs that the pipeline computes.
        frame_id: The frame's.
        started: When it was read, on the clock of `time.perf_counter`.
        permit: From admission control.
        computing: Computes the result.
    """

    __slots__ = ("_computing", "_frame_id", "_inference", "_permit", "_started", "_stream", "_task")

    def __init__(
        self,
        stream: FrameStream,
        task: Task,
        inference: InferenceTask,
        frame_id: int,
        started: float,
        permit: Permit,
        computing: asyncio.Future[Result],
    ) -> None:
        self._stream = stream
        self._task = task
        self._inference = inference
        self._frame_id = frame_id
        self._started = started
        self._permit = permit
        self._computing = computing
        computing.add_done_callback(self._release)

    def __await__(self) -> Generator[Any, None, Any]:
        try:
            result = yield from self._computing.__await__()
            return self._stream.result_response(
                self._frame_id, self._task, self._inference, result, self._started
            )
        except ShuttingDown:
            raise  # ends the stream, as in `FrameStream._start`
        except Exception as error:
            return self._stream.error_response(self._frame_id, error)

    def cancel(self) -> None:
        """Remove the frame from the queue that it waits in."""
        self._computing.cancel()

    def _release(self, computed: asyncio.Future[Any]) -> None:
        self._permit.release()
        self._task.variant.release()
        if not computed.cancelled():
            computed.exception()  # marks it as retrieved, or asyncio would log it
