"""The tasks' side of an asyncio stream: tasks send frames and receive responses."""

from __future__ import annotations

import asyncio
import collections
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Iterable
from typing import Any, Generic, TypeVar

from resnet50.v1 import image_pb2

from . import _sources
from ._aio_status import keep_status
from ._async_calls import AsyncCalls
from ._frames import FrameAnswer, FrameError, StreamKind, StreamLimits
from ._pending_frames import PendingFrames
from ._retries import Resumption
from ._stubs import Stubs
from .errors import Resnet50Error, ServerError
from .images import AsyncImageInput, awaited, is_quickly_read
from .observers import Observation

Result = TypeVar("Result")
Value = TypeVar("Value")


class Attempt:
    """One call of a stream.

    Attributes:
        replies: Received responses that are not processed yet.
        ended: True after the last response.
        failure: The gRPC error, or one of an interceptor; None if the server ended the stream with
            OK.
        silence: Description of an idle timeout; None if there was none.
        call: The gRPC call; None before it is made.
        receiving: The task that receives responses; None before the call is made.
        stubs: Kept so that the channel stays open during the call.
    """

    def __init__(self, stubs: Stubs) -> None:
        self.stubs = stubs
        self.call: Any = None
        self.receiving: asyncio.Task[None] | None = None
        self.replies: collections.deque[Any] = collections.deque()
        self.ended = False
        self.failure: Exception | None = None
        self.silence: str | None = None


class Exchange(Generic[Result]):
    """State that a stream shares with the tasks that send its frames and receive responses.

    Args:
        calls: The client's calls, whose threads read images.
        observation: Notifies observers.
        kind: RPC, configuration and format of the stream.
        images: The frames.
        limits: Limits of pending frames.
        resumption: Records responses.

    Attributes:
        pending: The frames without an answer.
        attempt: The current attempt, the only one that may send; None between two.
        cancelled: True if the application has cancelled the stream; set by any thread.
        failure: Error of the source.
    """

    def __init__(
        self,
        calls: AsyncCalls,
        observation: Observation,
        kind: StreamKind[Result],
        images: Iterable[AsyncImageInput] | AsyncIterable[AsyncImageInput],
        limits: StreamLimits,
        resumption: Resumption,
    ) -> None:
        self._calls = calls
        self._observation = observation
        self._kind = kind
        self._resumption = resumption
        self._source = _sources.AsyncSource(images)
        # Cleared by each task just before it waits, so that no change is missed.
        self._changed = asyncio.Event()
        self.pending: PendingFrames[Result] = PendingFrames(kind, limits)
        self.attempt: Attempt | None = None
        self.cancelled = False
        self.failure: BaseException | None = None
        self._reading: asyncio.Task[None] | None = None
        self._exhausted = False

    @property
    def finished(self) -> bool:
        """True if the source is exhausted, and every frame has its answer."""
        return self._exhausted and not self.pending

    async def unless_cancelled(self, awaited: Awaitable[Value]) -> Value | None:
        """Await a value; return None if the stream is cancelled first."""
        task = asyncio.ensure_future(awaited)
        task.add_done_callback(lambda _: self._changed.set())
        try:
            while not task.done():
                if self.cancelled:
                    return None
                await self._wait(None)
            return task.result()
        finally:
            task.cancel()

    def begin(self, attempt: Attempt, method: Any, metadata: Any) -> None:
        """Start a call, and a task that receives its responses.

        Raises:
            grpc.aio.UsageError: The channel is closed.
        """
        self.attempt = attempt
        attempt.call = keep_status(method(self._requests(attempt), metadata=metadata))
        attempt.receiving = asyncio.create_task(self._receive(attempt))

    async def answers(self, attempt: Attempt) -> list[FrameAnswer[Result]] | None:
        """Wait for answers; return None if the attempt has ended, an empty list if cancelled."""
        while not self.cancelled:
            if attempt.replies:
                reply = attempt.replies.popleft()
                if reply is None:  # grpc.aio's result for undecodable bytes
                    raise ServerError("the server's response to a frame cannot be decoded")
                answer = self.pending.answer(reply)
                self._resumption.progress()
                self._changed.set()
                if answer is not None:
                    return [answer]
            elif late := self.pending.expire():
                self._changed.set()
                return late
            elif attempt.ended:
                return None
            elif (silence := self.pending.silence()) is not None:
                attempt.silence = silence
                return None
            else:
                await self._wait(self.pending.wait_s())
        return []

    async def pause(self, until: float) -> list[FrameAnswer[Result]]:
        """Wait between two attempts, until a time or a change; return errors of late frames."""
        late = self.pending.expire()
        if not late:
            left_s, wait_s = until - time.monotonic(), self.pending.wait_s()
            await self._wait(left_s if wait_s is None else min(left_s, wait_s))
        return late

    def wake(self) -> None:
        """Wake the waiting tasks: the stream was cancelled, or the client closed."""
        self._changed.set()

    async def drop_attempt(self) -> None:
        """Cancel the current attempt, if any."""
        attempt, self.attempt = self.attempt, None
        # Let the sending task end: gRPC leaves it waiting if the server ended the call, until it
        # is garbage-collected with a warning.
        self._changed.set()
        if attempt is not None and attempt.receiving is not None:
            attempt.call.cancel()
            await asyncio.wait([attempt.receiving])

    async def close(self) -> None:
        """Cancel the current attempt, and close the source."""
        try:
            await self.drop_attempt()
        finally:
            try:
                if self._reading is not None:
                    self._reading.cancel()
                    await asyncio.wait([self._reading])
            finally:
                await self._source.close()

    async def _wait(self, timeout_s: float | None) -> None:
        """Wait for a change, or a timeout."""
        self._changed.clear()
        if timeout_s is None:
            await self._changed.wait()
            return
        timer = asyncio.get_running_loop().call_later(timeout_s, self._changed.set)
        try:
            await self._changed.wait()
        finally:
            timer.cancel()

    async def _receive(self, attempt: Attempt) -> None:
        """Receive responses, at most as many as pending frames; runs in a task."""
        try:
            async for reply in attempt.call:
                attempt.replies.append(reply)
                self._changed.set()
        except Exception as error:  # raised in the task that waits for an answer
            attempt.failure = error.with_traceback(None)  # whose frames have this attempt
        except asyncio.CancelledError:
            pass  # the call was cancelled, by this stream or because its channel was closed
        finally:
            attempt.ended = True
            self._changed.set()

    async def _requests(self, attempt: Attempt) -> AsyncIterator[Any]:
        """Yield an attempt's requests; runs in gRPC's task."""
        yield self._kind.request(config=self._kind.config)
        while self.attempt is attempt:
            first = not self.pending.in_flight
            request = self.pending.next_request()
            if request is not None:
                if first:  # the idle timeout starts now
                    self._changed.set()
                self._observation.sent(request)
                yield request
            elif self._exhausted and not self.pending.unsent:
                return
            else:
                # A separate task, so that an image is not lost if the attempt ends during the read.
                if not self._exhausted and self.pending.has_room and self._reading is None:
                    self._reading = asyncio.create_task(self._read_image())
                await self._wait(None)

    async def _content(self, image: Any) -> image_pb2.Image | FrameError:
        """Return the image to send, or the error of reading it."""
        try:
            image = await awaited(image)
        except (Resnet50Error, OSError, TypeError) as error:
            return error
        if is_quickly_read(image):
            return self.pending.read(image)
        return await self._calls.in_thread(self.pending.read, image)

    async def _read_image(self) -> None:
        """Read one image from the source."""
        try:
            found = await self._source.read()
            if found is _sources.END:
                self._exhausted = True
            else:
                self.pending.add(await self._content(found), found)
        # The source may await a future that was cancelled by something else: that is not its end.
        except (Exception, asyncio.CancelledError) as error:  # of the source; raised to the caller
            self._exhausted, self.failure = True, error
        finally:
            self._reading = None
            self._changed.set()
