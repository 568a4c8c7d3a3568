"""The stream object of the asyncio client; `_async_exchange.py` has the side of its tasks."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import Any, Generic, TypeVar

import grpc

from ._async_calls import AsyncCalls
from ._async_exchange import Attempt, Exchange
from ._channels import Channels
from ._config import Connection
from ._frames import FrameAnswer, StreamKind, StreamLimits, StreamStats
from ._retries import Resumption
from ._status import ended_by_peer
from .errors import CallCancelledError, Resnet50Error
from .images import AsyncImageInput
from .observers import Observation

Result = TypeVar("Result")

# Event loops hold weak references to tasks only.
_tasks: set[asyncio.Task[None]] = set()


class AsyncStream(AsyncIterator[FrameAnswer[Result]], Generic[Result]):
    """The answers of a stream: an asynchronous iterator and context manager.

        async with client.classify_stream(frames) as stream:
            async for answer in stream:
                print(answer.frame_id, answer.result)

    The stream starts when the first answer is requested. It ends after the last frame's answer,
    with an error, or when it is cancelled or closed; its source is closed then. A thread that reads
    the source at that moment closes it after the read. If a server becomes unreachable, the stream
    is resumed at another one.

    `cancel`, `aclose` and `stats` may be used while a task waits for an answer, `cancel` also by
    other threads. Several tasks may iterate; each answer goes to one of them. A task that is
    cancelled while it waits for an answer ends the stream.

    Args:
        calls: The client's calls.
        connection: The client's connection options.
        observation: Notifies observers.
        kind: RPC, configuration and format of the stream.
        images: Read one at a time as the window allows, a blocking iterable in a thread; closed at
            the end.
        limits: Limits of pending frames.
    """

    _ended = True  # until there is something to close

    def __init__(
        self,
        calls: AsyncCalls,
        connection: Connection,
        observation: Observation,
        kind: StreamKind[Result],
        images: Iterable[AsyncImageInput] | AsyncIterable[AsyncImageInput],
        limits: StreamLimits,
    ) -> None:
        self._calls = calls
        self._connection = connection
        self._observation = observation
        self._kind = kind
        self._resumption = Resumption(connection.retry, limits.resume_s)
        self._exchange = Exchange(calls, observation, kind, images, limits, self._resumption)
        self._loop: asyncio.AbstractEventLoop | None = None  # from the first iteration on
        self._channels: Channels | None = None
        # Held by the task that waits for an answer, or ends the stream.
        self._iterating = asyncio.Lock()
        self._ready: collections.deque[FrameAnswer[Result]] = collections.deque()
        self._resume_at = 0.0  # of the monotonic clock
        self._error: CallCancelledError | None = None  # to raise at the next iteration
        self._ended = False

    @property
    def stats(self) -> StreamStats:
        """Counts of the frames so far; also after the end."""
        return self._exchange.pending.stats()

    def cancel(self) -> None:
        """End the stream now; safe in any thread, and in a signal handler.

        Frames without an answer get none. A task that waits for an answer, or else the next one
        that asks for one, gets CallCancelledError; then the iteration is over. There is no effect
        after the end.
        """
        self._exchange.cancelled = True
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._cancel)

    async def aclose(self) -> None:
        """End the stream now, without an error: the iteration is over.

        If another task waits for an answer, that one gets CallCancelledError.
        """
        if self._iterating.locked():
            self._exchange.cancelled = True
            self._exchange.wake()
        async with self._iterating:
            self._error = None
            if not self._ended:
                await self._end(None, closed=True)

    async def __anext__(self) -> FrameAnswer[Result]:
        async with self._iterating:
            if self._ended:
                error, self._error = self._error, None
                raise error or StopAsyncIteration
            try:
                answer = await self._wait_for_answer()
            except BaseException as error:
                await self._end(error)
                raise
            if answer is None:
                await self._end(None)
                raise StopAsyncIteration
            self._observation.frame_answered(answer)
            return answer

    async def __aenter__(self) -> AsyncStream[Result]:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # Tasks of a call refer to the exchange, so that a stream that is dropped ends.
        if not self._ended and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(_in_background, self.aclose)

    def __repr__(self) -> str:
        if self._ended:
            state = "ended"
        elif self._loop is None:
            state = "not started"
        else:
            state = "open" if self._exchange.attempt is not None else "waiting to resume"
        return f"AsyncStream({self._kind.method} of {self._connection}, {state}: {self.stats})"

    def _cancel(self) -> None:
        """Wake the task that waits for an answer, or end the stream if there is none."""
        self._exchange.wake()
        _in_background(self._end_cancelled)

    async def _end_cancelled(self) -> None:
        async with self._iterating:
            if not self._ended:
                self._error = self._connection.cancelled()
                await self._end(self._error)

    async def _wait_for_answer(self) -> FrameAnswer[Result] | None:
        """Return the next answer; None at the end."""
        exchange = self._exchange
        if self._channels is None:
            # Before the check below, so that another thread that cancels either finds the loop, or
            # is noticed.
            self._loop = asyncio.get_running_loop()
            channels = await exchange.unless_cancelled(self._calls.open(self._connection.timeout_s))
            if channels is None:
                raise self._connection.cancelled()
            channels.wake_at_close(exchange)
            self._channels = channels
            self._observation.start()
            exchange.pending.request_id = self._observation.request_id
        while True:
            if exchange.cancelled:
                raise self._connection.cancelled()
            if self._ready:
                return self._ready.popleft()
            if (attempt := exchange.attempt) is not None:
                answers = await exchange.answers(attempt)
                if answers is not None:
                    self._ready.extend(answers)
                else:
                    await self._after(attempt, self._channels)
            elif exchange.finished:
                if exchange.failure is not None:
                    raise exchange.failure
                return None
            elif self._channels.closing.is_set():
                raise self._connection.closed()
            elif time.monotonic() < self._resume_at:
                self._ready.extend(await exchange.pause(self._resume_at))
            else:
                await self._open(self._channels)

    async def _open(self, channels: Channels) -> None:
        """Start an attempt, unless the stream is cancelled."""
        attempt = Attempt(channels.stubs())
        # The whole timeout, since resume_s may be 0.
        metadata = await self._exchange.unless_cancelled(
            self._connection.metadata_async(self._observation.metadata, self._connection.timeout_s)
        )
        if metadata is None:
            return
        self._observation.attempt()
        method: Any = getattr(attempt.stubs.inference, self._kind.method)
        try:
            self._exchange.begin(attempt, method, metadata)
        except grpc.aio.UsageError as misuse:  # raised by gRPC if the channel is closed
            if not channels.closing.is_set():
                raise
            raise self._connection.closed() from misuse

    async def _after(self, attempt: Attempt, channels: Channels) -> None:
        """Prepare the next attempt after one that has ended, or raise its error."""
        if channels.closing.is_set():
            raise self._connection.closed() from attempt.failure
        error, broke = self._end_of(attempt)
        await self._exchange.drop_attempt()
        if error is None:
            return
        channels.failed(error)
        can_resume = self._exchange.pending.refuse_too_long(error)
        pause_s = 0.0 if can_resume else self._resumption.pause_s(error, broke)
        if pause_s is None:
            try:
                raise self._exchange.pending.unanswered(error) from attempt.failure
            finally:
                del error  # which its traceback would keep, and with it the frames
        self._observation.retried(error, pause_s)
        self._ready.extend(self._exchange.pending.restart(broke))
        self._resume_at = time.monotonic() + pause_s

    def _end_of(self, attempt: Attempt) -> tuple[Resnet50Error | None, bool]:
        """Return an attempt's error (None at the end), and whether its connection broke.

        Raises:
            Exception: An interceptor failed.
        """
        if attempt.silence is not None:
            return self._connection.unavailable(attempt.silence), False
        failure = attempt.failure
        if isinstance(failure, grpc.RpcError):
            broke = self._exchange.pending.in_flight and not ended_by_peer(failure)
            return self._connection.error_of(failure), broke
        if failure is not None:
            raise failure
        if self._exchange.finished:
            return None, False
        return self._connection.unavailable("the server ended the stream too early, with OK"), False

    async def _end(self, error: BaseException | None, *, closed: bool = False) -> None:
        """End the call, close the source and notify observers; called once, under the lock."""
        self._ended = True
        self._ready.clear()
        try:
            await self._exchange.close()
        except BaseException as failure:  # of closing the source
            error = failure
            raise
        finally:
            if self._channels is not None:
                self._observation.end(error, closed=closed)


def _in_background(function: Callable[[], Any]) -> None:
    """Run a coroutine function in a task."""
    task = asyncio.ensure_future(function())
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
