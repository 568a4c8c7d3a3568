"""One stream: its config, its frames, and their answers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from resnet50.v1 import inference_pb2, result_pb2
from resnet50_server.batching.result import Result
from resnet50_server.context import RequestContext
from resnet50_server.errors import InvalidRequest, ServingError, ShuttingDown, Stalled
from resnet50_server.inference.admission import Permit
from resnet50_server.inference.pipeline import InferenceTask, Pipeline
from resnet50_server.rollout.router import Traffic
from resnet50_server.runtime.tasks import start_task

from .delivery import Pending, latest, ordered
from .guard import EOF
from .image_source import parse_image
from .status import is_server_error, to_status
from .tasks import Task, timing

log = logging.getLogger(__name__)

Part: TypeAlias = inference_pb2.ClassifyStreamRequest | inference_pb2.EmbedStreamRequest
Config: TypeAlias = inference_pb2.ClassifyStreamConfig | inference_pb2.EmbedStreamConfig


class _Numbered(Protocol):
    """The answer to a frame, of either kind."""

    frame_id: int


Reply = TypeVar("Reply", bound=_Numbered)

# LATEST wants the freshest answer: one frame inside at a time, unless the caller asks for more.
LATEST_WINDOW = 1


class StreamReader:
    """The messages of one stream, in their order: config once, then frames.

    Args:
        read: Waits for the next one; `EOF` after the last.
        idle_timeout_s: How long the sender may be silent, in seconds; 0 for ever.
    """

    def __init__(self, read: Callable[[], Awaitable[Any]], idle_timeout_s: float) -> None:
        self._read = read
        self._idle_timeout_s = idle_timeout_s
        self._reading: asyncio.Task[Any] | None = None
        self._stopped: ServingError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._silent_since = 0.0

    async def config(self) -> Config:
        """Return what the first message must hold.

        Raises:
            InvalidRequest: It holds something else, or there is none.
            ServingError: Why reading was stopped.
        """
        part = await self._next()
        if part is None or part.WhichOneof("part") != "config":
            raise InvalidRequest(
                "config", "is missing: the first message of a stream holds its config"
            )
        config: Config = part.config
        return config

    async def frames(self) -> AsyncIterator[inference_pb2.Frame]:
        """Give the frames that follow.

        Raises:
            InvalidRequest: A message holds no frame, or a frame's id is not above the one before.
            ServingError: Why reading was stopped.
        """
        last = -1
        while (part := await self._next()) is not None:
            if part.WhichOneof("part") != "frame":
                raise InvalidRequest(
                    "config" if part.HasField("config") else "frame",
                    "after the first message, a stream holds frames only",
                )
            frame = part.frame
            if frame.frame_id <= last:
                raise InvalidRequest(
                    "frame.frame_id",
                    f"is {frame.frame_id} after {last}; each frame's id must be above the one"
                    " before",
                )
            last = frame.frame_id
            yield frame

    def stop(self, reason: ServingError) -> None:
        """Read no more; whoever waits for the next message gets `reason`."""
        self._stopped = reason
        if self._reading is not None:
            self._reading.cancel()

    def close(self) -> None:
        """Let go of the timer."""
        if self._timer is not None:
            self._timer.cancel()

    async def _next(self) -> Part | None:
        """Return the next message; None after the last."""
        if self._stopped is not None:
            raise self._stopped
        self._reading = asyncio.current_task()
        self._watch()
        try:
            part = await self._read()
        except asyncio.CancelledError:
            if self._stopped is not None:
                raise self._stopped from None
            raise
        finally:
            self._reading = None
        return None if part is EOF else part

    def _watch(self) -> None:
        """Start to count the sender's silence; one timer a stream, whatever its frame rate."""
        loop = asyncio.get_running_loop()
        self._silent_since = loop.time()
        if self._idle_timeout_s and self._timer is None:
            self._timer = loop.call_later(self._idle_timeout_s, self._check_silence)

    def _check_silence(self) -> None:
        loop = asyncio.get_running_loop()
        left_s = self._silent_since + self._idle_timeout_s - loop.time()
        if self._reading is None:  # it is the server that is busy
            left_s = self._idle_timeout_s
        if left_s <= 0:
            self.stop(
                Stalled(
                    f"no frame came for {self._idle_timeout_s:g} s (stream_idle_timeout_s); open a"
                    " new stream when there are frames"
                )
            )
        else:
            self._timer = loop.call_later(left_s, self._check_silence)


class FrameStream(Generic[Reply]):
    """Answers the frames of one stream.

    Args:
        messages: What the caller sends.
        pipeline: Computes.
        traffic: Learns of each frame.
        reply: Makes the message that answers a frame, from its fields.
        outcome: The field of it that holds a frame's answer.
        question: What the caller wants to know of each frame. It follows where the variant is
            replaced.
        call: The stream's RPC.
    """

    def __init__(
        self,
        messages: StreamReader,
        pipeline: Pipeline,
        traffic: Traffic,
        reply: Callable[..., Reply],
        outcome: str,
        question: Task,
        call: RequestContext,
    ) -> None:
        self._messages = messages
        self._pipeline = pipeline
        self._traffic = traffic
        self._reply = reply
        self._outcome = outcome
        self._question = question
        self._call = call

    async def replies(
        self, config: Config, max_window: int, default_window: int
    ) -> AsyncGenerator[Reply, None]:
        """Give the answers as the config's delivery wants them.

        Args:
            config: The first message's.
            max_window: Frames inside at once, at most.
            default_window: The same for an ORDERED stream that does not say.

        Raises:
            ServingError: What the caller sent breaks the contract, or reading was stopped.
        """
        delivery = config.delivery or inference_pb2.DELIVERY_ORDERED
        if delivery not in inference_pb2.Delivery.values():
            raise InvalidRequest(
                "config.delivery",
                f"is {delivery}, must be one of {', '.join(inference_pb2.Delivery.keys()[1:])}",
            )
        frames = self._messages.frames()

        if delivery == inference_pb2.DELIVERY_ORDERED:
            window = min(config.max_in_flight or default_window, max_window)
            answers = ordered(frames, self._start, window)
        else:
            window = min(config.max_in_flight or LATEST_WINDOW, max_window)
            answers = latest(frames, self._start, self._drop, window)
        answered = "no frame was answered"
        self._question.variant.add_stream(self._messages.stop)
        try:
            async with aclosing(answers):
                async for reply in answers:
                    yield reply
                    answered = f"frame {reply.frame_id} was the last one answered"
        except ShuttingDown as error:
            raise type(error)(
                error.what, f"{answered}: send those after it to another server"
            ) from error
        finally:
            self._question.variant.remove_stream(self._messages.stop)

    async def _start(self, frame: inference_pb2.Frame) -> Pending[Reply]:
        """Begin to compute a frame as soon as there is room for it."""
        started, frame_id = time.perf_counter(), frame.frame_id
        permit: Permit | None = None
        call = self._call
        if self._question.variant.replaced_by is not None:
            try:
                self._follow()
            except InvalidRequest as error:  # the options do not suit the new weights
                return self._refused(frame_id, error)
        question = self._question
        question.variant.acquire()
        try:
            # Before the image is taken out of its message, which copies it.
            permit = await self._pipeline.admission.acquire(
                call.caller.name, frame.image.ByteSize(), bulk=call.bulk
            )
            source = parse_image(frame.image, self._pipeline.limits)
            task = self._traffic.watch(question.task, call, source)
        except BaseException as error:
            question.variant.release()
            if permit is not None:
                permit.release()
            # What ends the stream: the frame has its chance at another server.
            if isinstance(error, ShuttingDown) or not isinstance(error, Exception):
                raise
            return self._refused(frame_id, error)
        inside = _Inside(self, question, task, frame_id, started, permit)
        result = start_task(self._pipeline.infer(source, task, call), f"frame {frame_id}")
        return _Computed(inside, result)

    def _follow(self) -> None:
        """Ask what has taken the variant's place; frames that are inside stay with the old one."""
        question = self._question.latest()
        self._question.variant.remove_stream(self._messages.stop)
        question.variant.add_stream(self._messages.stop)
        self._question = question

    def _refused(self, frame_id: int, error: Exception) -> Pending[Reply]:
        refused: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        refused.set_result(self.error_to(frame_id, error))
        return refused

    def reply_to(self, inside: _Inside[Reply], result: Result) -> Reply:
        """Return the message that answers a frame which was computed."""
        question, task = inside.question, inside.task
        image = self._pipeline.record(task, self._call, result, inside.started)
        return self._reply(
            frame_id=inside.frame_id,
            variant=question.reference,
            timing=timing(image),
            **{self._outcome: question.answer(result)},
        )

    def error_to(self, frame_id: int, error: Exception) -> Reply:
        """Return the message that answers a frame which cannot be computed."""
        call = self._call
        if is_server_error(error):
            log.error("frame %d of stream %s failed", frame_id, call.request_id, exc_info=error)
        self._pipeline.events.frame_refused(call, error)
        return self._reply(frame_id=frame_id, error=to_status(error, call.request_id))

    def _drop(self, frame: inference_pb2.Frame, newer: inference_pb2.Frame) -> Reply:
        self._pipeline.events.frame_dropped(self._call)
        dropped = result_pb2.Dropped(replaced_by_frame_id=newer.frame_id)
        return self._reply(frame_id=frame.frame_id, dropped=dropped)


@dataclass(eq=False, slots=True)
class _Inside(Generic[Reply]):
    """A frame that is inside.

    Attributes:
        stream: Makes its reply.
        question: What is asked of it.
        task: The same for the pipeline.
        frame_id: The frame's.
        started: When it was taken, on the clock of `time.perf_counter`.
        permit: Its permit.
    """

    stream: FrameStream[Reply]
    question: Task
    task: InferenceTask
    frame_id: int
    started: float
    permit: Permit


class _Computed(Generic[Reply]):
    """A frame that is being computed; its reply is made by whoever awaits it, once.

    Args:
        inside: The frame. Its permit is released as soon as it is computed, whether or not the
            caller takes the answer.
        computing: Gives the result.
    """

    __slots__ = ("_computing", "_inside")

    def __init__(self, inside: _Inside[Reply], computing: asyncio.Future[Result]) -> None:
        self._inside = inside
        self._computing = computing
        computing.add_done_callback(self._leave)

    def __await__(self) -> Generator[Any, None, Reply]:
        stream = self._inside.stream
        try:
            result = yield from self._computing.__await__()
            return stream.reply_to(self._inside, result)
        except ShuttingDown:
            raise  # ends the stream, as in `_start`
        except Exception as error:
            return stream.error_to(self._inside.frame_id, error)

    def cancel(self) -> None:
        """Take the frame out of whatever queue it waits in."""
        self._computing.cancel()

    def _leave(self, computed: asyncio.Future[Any]) -> None:
        self._inside.permit.release()
        self._inside.question.variant.release()
        if not computed.cancelled():
            computed.exception()  # so that asyncio does not miss whoever should have looked at it
