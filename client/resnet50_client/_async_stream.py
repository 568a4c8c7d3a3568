"""A stream of the asyncio client: background tasks send and receive, the caller's task iterates."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
)
from contextlib import aclosing
from typing import Any, Generic, TypeVar

import grpc

from . import _sources
from ._aio_status import keep_status
from ._channels import Channels
from ._config import Connection, Metadata
from ._frames import FrameAnswer, StreamKind, StreamLimits
from ._pending_frames import PendingFrames
from ._retries import Resumption
from ._stubs import Stubs
from .errors import Resnet50Error, ServerError, ended_by_peer
from .images import ImageInput, is_quickly_read
from .observers import Observation

Result = TypeVar("Result")
Answers = list[FrameAnswer[Result]]


class _Attempt:
    """One call of a stream.

    Attributes:
        replies: Received responses that are not processed yet.
        ended: True after the last response.
        failure: The gRPC error; None if the server ended the stream with OK.
        silence: Description of an idle timeout; None if there was none.
        stubs: Kept so that the channel stays open during the call.
    """

    def __init__(self, stubs: Stubs) -> None:
        self.stubs = stubs
        self.replies: collections.deque[Any] = collections.deque()
        self.ended = False
        self.failure: grpc.RpcError | None = None
        self.silence: str | None = None


class AsyncStream(Generic[Result]):
    """Sends frames and yields answers; resumes at another server if one becomes unreachable.

    Args:
        open_channels: Returns the client's channels.
        connection: The client's connection options.
        observation: Notifies observers.
        kind: RPC, configuration and format of the stream.
        images: Read one at a time as the window allows, a blocking iterable in a thread; closed at
            the end.
        limits: Limits of pending frames.
    """

    def __init__(
        self,
        open_channels: Callable[[], Awaitable[Channels]],
        connection: Connection,
        observation: Observation,
        kind: StreamKind[Result],
        images: Iterable[ImageInput] | AsyncIterable[ImageInput],
        limits: StreamLimits,
    ) -> None:
        self._open_channels = open_channels
        self._connection = connection
        self._observation = observation
        self._kind = kind
        self._source = _sources.AsyncSource(images)
        self._resumption = Resumption(connection.retry, limits.resume_s)
        self._pending: PendingFrames[Result] = PendingFrames(kind, limits)
        # Cleared by each task just before it waits, so that no change is missed.
        self._changed = asyncio.Event()
        self._attempt: _Attempt | None = None  # the only one that may send
        self._reading: asyncio.Task[None] | None = None
        self._exhausted = False
        self._failure: BaseException | None = None

    async def answers(self) -> AsyncGenerator[FrameAnswer[Result], None]:
        """Yield the answers; closing the generator cancels the call."""
        channels = await self._open_channels()
        with self._observation:
            async with aclosing(self._answers(channels)) as answers:
                async for answer in answers:
                    self._observation.frame_answered(answer)
                    yield answer

    async def _answers(self, channels: Channels) -> AsyncGenerator[FrameAnswer[Result], None]:
        try:
            while not self._finished:
                attempt = _Attempt(channels.stubs())
                # The whole timeout, since resume_s may be 0.
                metadata = await self._connection.metadata_async(
                    self._observation.metadata, self._connection.timeout_s
                )
                call = self._open(attempt, channels, metadata)
                receiving = asyncio.create_task(self._receive(attempt, call))
                try:
                    while (answers := await self._wait(attempt)) is not None:
                        for answer in answers:
                            yield answer
                    if channels.closing.is_set():
                        raise self._connection.closed() from attempt.failure
                    error, broke = self._end_of(attempt)
                finally:
                    # Let the sending task end: gRPC leaves it waiting if the server ended the
                    # call, until it is garbage-collected with a warning.
                    self._attempt = None
                    self._changed.set()
                    call.cancel()
                    await asyncio.wait([receiving])
                if error is None:
                    break
                channels.failed(error)
                can_resume = self._pending.refuse_too_long(error)
                pause_s = 0.0 if can_resume else self._resumption.pause_s(error, broke)
                if pause_s is None:
                    raise self._pending.unanswered(error) from attempt.failure
                self._observation.retried(error, pause_s)
                for answer in self._pending.restart(broke):
                    yield answer
                until = time.monotonic() + pause_s
                while (left_s := until - time.monotonic()) > 0:
                    for answer in self._pending.expire():
                        yield answer
                    if self._finished:
                        break
                    wait_s = self._pending.wait_s()
                    pause_s = left_s if wait_s is None else min(left_s, wait_s)
                    with contextlib.suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(channels.closing.wait(), pause_s)
                        raise self._connection.closed()
            if self._failure is not None:
                raise self._failure
        finally:
            if self._reading is not None:
                self._reading.cancel()
                await asyncio.wait([self._reading])
            await self._source.close()

    def _open(self, attempt: _Attempt, channels: Channels, metadata: Metadata) -> Any:
        """Begin a call."""
        self._attempt = attempt
        self._observation.attempt()
        method = getattr(attempt.stubs.inference, self._kind.method)
        try:
            return keep_status(method(self._requests(attempt), metadata=metadata))
        except grpc.aio.UsageError as misuse:  # raised by gRPC if the channel is closed
            if not channels.closing.is_set():
                raise
            raise self._connection.closed() from misuse

    async def _receive(self, attempt: _Attempt, call: Any) -> None:
        """Receive responses, at most as many as pending frames; runs in a task."""
        try:
            async for reply in call:
                attempt.replies.append(reply)
                self._changed.set()
        except grpc.RpcError as error:
            attempt.failure = error
        except asyncio.CancelledError:
            pass  # the call was cancelled, by this stream or because its channel was closed
        finally:
            attempt.ended = True
            self._changed.set()

    async def _wait(self, attempt: _Attempt) -> Answers[Result] | None:
        """Wait for answers; return None if the attempt has ended."""
        while True:
            if attempt.replies:
                reply = attempt.replies.popleft()
                if reply is None:  # grpc.aio's result for undecodable bytes
                    raise ServerError("the server's response to a frame cannot be decoded")
                answer = self._pending.answer(reply)
                self._resumption.progress()
                self._changed.set()
                if answer is not None:
                    return [answer]
            elif late := self._pending.expire():
                self._changed.set()
                return late
            elif attempt.ended:
                return None
            elif (silence := self._pending.silence()) is not None:
                attempt.silence = silence
                return None
            else:
                self._changed.clear()
                wait_s = self._pending.wait_s()
                if wait_s is None:
                    await self._changed.wait()
                    continue
                timer = asyncio.get_running_loop().call_later(wait_s, self._changed.set)
                await self._changed.wait()
                timer.cancel()

    def _end_of(self, attempt: _Attempt) -> tuple[Resnet50Error | None, bool]:
        """Return an attempt's error (None at the end), and whether its connection broke."""
        if attempt.silence is not None:
            return self._connection.unavailable(attempt.silence), False
        if attempt.failure is not None:
            broke = self._pending.in_flight and not ended_by_peer(attempt.failure)
            return self._connection.error_of(attempt.failure), broke
        if self._finished:
            return None, False
        return self._connection.unavailable("the server ended the stream too early, with OK"), False

    @property
    def _finished(self) -> bool:
        return self._exhausted and not self._pending

    async def _requests(self, attempt: _Attempt) -> AsyncIterator[Any]:
        """Yield an attempt's requests; runs in gRPC's task."""
        yield self._kind.request(config=self._kind.config)
        while self._attempt is attempt:
            first = not self._pending.in_flight
            request = self._pending.next_request()
            if request is not None:
                if first:  # the idle timeout starts now
                    self._changed.set()
                self._observation.sent(request)
                yield request
            elif self._exhausted and not self._pending.unsent:
                return
            elif self._exhausted or not self._pending.has_room:
                self._changed.clear()
                await self._changed.wait()
            else:
                # A separate task, so that an image is not lost if the attempt ends during the read.
                if self._reading is None:
                    self._reading = asyncio.create_task(self._read_image())
                self._changed.clear()
                await self._changed.wait()

    async def _read_image(self) -> None:
        """Read one image from the source."""
        try:
            image = await self._source.read()
            if image is _sources.END:
                self._exhausted = True
            elif is_quickly_read(image):
                self._pending.add(self._pending.read(image))
            else:
                self._pending.add(await asyncio.to_thread(self._pending.read, image))
        except Exception as error:  # of the source; re-raised by `answers`
            self._exhausted, self._failure = True, error
        finally:
            self._reading = None
            self._changed.set()
