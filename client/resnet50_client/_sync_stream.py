"""The stream object of the blocking client; `_sync_exchange.py` has the side of gRPC's threads."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

import grpc

from ._channels import Channels
from ._config import Connection
from ._frames import FrameAnswer, StreamKind, StreamLimits, StreamStats
from ._retries import Resumption
from ._status import ended_by_peer
from ._sync_calls import Calls
from ._sync_exchange import Attempt, Exchange
from .errors import CallCancelledError, Resnet50Error
from .images import ImageInput
from .observers import Observation

Result = TypeVar("Result")


class Stream(Iterator[FrameAnswer[Result]], Generic[Result]):
    """The answers of a stream: an iterator and a context manager.

        with client.classify_stream(frames) as stream:
            for answer in stream:
                print(answer.frame_id, answer.result)

    The stream starts at the first answer that is asked for. It ends after the last frame's answer,
    with an error, or when it is cancelled or closed; its source is closed then. A thread that reads
    the source at that moment closes it after the read. If a server becomes unreachable, the stream
    is resumed at another one.

    Thread-safe: `cancel`, `close` and `stats` may be used by any thread while another one waits for
    an answer. Several threads may iterate; each answer goes to one of them.

    Args:
        calls: The client's calls.
        connection: The client's connection options.
        observation: Notifies observers.
        kind: RPC, configuration and format of the stream.
        images: Read one at a time by gRPC's thread, as the window allows; closed at the end.
        limits: Limits of pending frames.
    """

    _ended = True  # until there is something to close

    def __init__(
        self,
        calls: Calls,
        connection: Connection,
        observation: Observation,
        kind: StreamKind[Result],
        images: Iterable[ImageInput],
        limits: StreamLimits,
    ) -> None:
        self._calls = calls
        self._connection = connection
        self._observation = observation
        self._kind = kind
        self._resumption = Resumption(connection.retry, limits.resume_s)
        self._exchange = Exchange(observation, kind, images, limits, self._resumption)
        self._iterating = (
            threading.Lock()
        )  # held by the thread that waits for an answer, or ends this
        # The attributes below are guarded by it.
        self._channels: Channels | None = None  # until the first iteration
        self._ready: collections.deque[FrameAnswer[Result]] = collections.deque()
        self._resume_at = 0.0  # of the monotonic clock
        self._error: CallCancelledError | None = None  # to raise at the next iteration
        self._ended = False

    @property
    def stats(self) -> StreamStats:
        """Counts of the frames so far; also after the end."""
        with self._exchange.changed:
            return self._exchange.pending.stats()

    def cancel(self) -> None:
        """End the stream now; safe in any thread, and in a signal handler.

        Frames without an answer get none. A thread that waits for an answer, or else the next one
        that asks for one, gets CallCancelledError; then the iteration is over. There is no effect
        after the end.
        """
        self._exchange.cancel()
        if not self._iterating.acquire(blocking=False):
            return  # the thread that holds it ends the stream
        try:
            if not self._ended:
                self._error = self._connection.cancelled()
                self._end(self._error)
        finally:
            self._iterating.release()

    def close(self) -> None:
        """End the stream now, without an error: the iteration is over.

        If another thread waits for an answer, this is `cancel`.
        """
        if not self._iterating.acquire(blocking=False):
            self.cancel()
            return
        try:
            self._error = None
            if not self._ended:
                self._end(None, closed=True)
        finally:
            self._iterating.release()

    def __next__(self) -> FrameAnswer[Result]:
        try:
            with self._iterating:
                return self._next()
        finally:
            if self._exchange.cancelled and not self._ended:  # cancelled meanwhile
                self.cancel()

    def __enter__(self) -> Stream[Result]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # Threads of a call refer to the exchange, so that a stream that is dropped ends.
        if not self._ended:
            self.close()

    def __repr__(self) -> str:
        if self._ended:
            state = "ended"
        elif self._channels is None:
            state = "not started"
        else:
            state = "open" if self._exchange.attempt is not None else "waiting to resume"
        return f"Stream({self._kind.method} of {self._connection}, {state}: {self.stats})"

    def _next(self) -> FrameAnswer[Result]:
        if self._ended:
            error, self._error = self._error, None
            raise error or StopIteration
        try:
            answer = self._wait_for_answer()
        except BaseException as error:
            self._end(error)
            raise
        if answer is None:
            self._end(None)
            raise StopIteration
        self._observation.frame_answered(answer)
        return answer

    def _wait_for_answer(self) -> FrameAnswer[Result] | None:
        """Return the next answer; None at the end."""
        exchange = self._exchange
        if self._channels is None:
            channels = self._calls.open(self._connection.timeout_s, lambda: exchange.cancelled)
            if exchange.cancelled:
                raise self._connection.cancelled()
            channels.wake_at_close(exchange)
            self._channels = channels
            self._observation.start()
            exchange.pending.request_id = self._observation.request_id
        closing = self._channels.closing
        while True:
            if exchange.cancelled:
                raise self._connection.cancelled()
            if self._ready:
                return self._ready.popleft()
            if (attempt := exchange.attempt) is not None:
                answers = exchange.answers(attempt)
                if answers is not None:
                    self._ready.extend(answers)
                else:
                    self._after(attempt, self._channels)
            elif exchange.finished:
                if exchange.failure is not None:
                    raise exchange.failure
                return None
            elif closing.is_set():
                raise self._connection.closed()
            elif time.monotonic() < self._resume_at:
                self._ready.extend(exchange.pause(self._resume_at, closing))
            else:
                self._open(self._channels)

    def _open(self, channels: Channels) -> None:
        """Start an attempt."""
        attempt = Attempt(channels.stubs())
        metadata = self._connection.metadata(self._observation.metadata)
        self._observation.attempt()
        method = getattr(attempt.stubs.inference, self._kind.method)
        try:
            self._exchange.begin(attempt, method, metadata)
        except ValueError as misuse:  # raised by gRPC if the channel is closed
            if not channels.closing.is_set():
                raise
            raise self._connection.closed() from misuse

    def _after(self, attempt: Attempt, channels: Channels) -> None:
        """Prepare the next attempt after one that has ended, or raise its error."""
        if channels.closing.is_set():
            raise self._connection.closed() from attempt.failure
        error, broke = self._end_of(attempt)
        self._exchange.drop_attempt()
        if error is None:
            return
        channels.failed(error)
        with self._exchange.changed:
            can_resume = self._exchange.pending.refuse_too_long(error)
        pause_s = 0.0 if can_resume else self._resumption.pause_s(error, broke)
        if pause_s is None:
            try:
                raise self._exchange.pending.unanswered(error) from attempt.failure
            finally:
                del error  # which its traceback would keep, and with it the frames
        self._observation.retried(error, pause_s)
        with self._exchange.changed:
            self._ready.extend(self._exchange.pending.restart(broke))
        self._resume_at = time.monotonic() + pause_s

    def _end_of(self, attempt: Attempt) -> tuple[Resnet50Error | None, bool]:
        """Return an attempt's error (None at the end), and whether its connection broke.

        Raises:
            BaseException: An interceptor failed.
        """
        if attempt.silence is not None:
            return self._connection.unavailable(attempt.silence), False
        with self._exchange.changed:
            failure = attempt.failure
            if isinstance(failure, grpc.RpcError):
                broke = self._exchange.pending.in_flight and not ended_by_peer(failure)
                return self._connection.error_of(failure), broke
        if failure is not None:
            raise failure
        if self._exchange.finished:
            return None, False
        return self._connection.unavailable("the server ended the stream too early, with OK"), False

    def _end(self, error: BaseException | None, *, closed: bool = False) -> None:
        """End the call, close the source and notify observers; called once, under the lock."""
        self._ended = True
        self._ready.clear()
        try:
            self._exchange.close()
        except BaseException as failure:  # of closing the source
            error = failure
            raise
        finally:
            if self._channels is not None:
                self._observation.end(error, closed=closed)
