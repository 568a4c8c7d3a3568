"""A stream of the blocking client: gRPC's threads do the I/O, the caller's thread iterates."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from typing import Any, Generic, TypeVar

import grpc

from . import _sources
from ._channels import Channels
from ._config import Connection
from ._frames import FrameAnswer, StreamKind, StreamLimits
from ._pending_frames import PendingFrames
from ._retries import Resumption
from ._stubs import Stubs
from .errors import Resnet50Error, ended_by_peer
from .images import ImageInput
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


class Stream(Generic[Result]):
    """Sends frames and yields answers; resumes at another server if one becomes unreachable.

    Args:
        open_channels: Returns the client's channels.
        connection: The client's connection options.
        observation: Notifies observers.
        kind: RPC, configuration and format of the stream.
        images: Read one at a time by gRPC's thread, as the window allows; closed at the end.
        limits: Limits of pending frames.
    """

    def __init__(
        self,
        open_channels: Callable[[], Channels],
        connection: Connection,
        observation: Observation,
        kind: StreamKind[Result],
        images: Iterable[ImageInput],
        limits: StreamLimits,
    ) -> None:
        self._open_channels = open_channels
        self._connection = connection
        self._observation = observation
        self._kind = kind
        self._source = _sources.Source(images)
        self._resumption = Resumption(connection.retry, limits.resume_s)
        # Guards the attributes below; notified of every change.
        self._changed = threading.Condition()
        self._pending: PendingFrames[Result] = PendingFrames(kind, limits)
        self._attempt: _Attempt | None = None  # the only one that may send
        self._reading = False
        self._exhausted = False
        self._failure: BaseException | None = None

    def answers(self) -> Generator[FrameAnswer[Result], None, None]:
        """Yield the answers; closing the generator cancels the call."""
        with self._observation, closing(self._answers()) as answers:
            for answer in answers:
                self._observation.frame_answered(answer)
                yield answer

    def _answers(self) -> Generator[FrameAnswer[Result], None, None]:
        with closing(self._source):
            self._channels = self._open_channels()
            while not self._finished():
                attempt = _Attempt(self._channels.stubs())
                call = self._open(attempt)
                try:
                    while (answers := self._wait(attempt)) is not None:
                        yield from answers
                    error, broke = self._end_of(attempt)
                finally:
                    with self._changed:
                        self._attempt = None
                        self._changed.notify_all()
                    call.cancel()
                if error is None:
                    break
                self._channels.failed(error)
                with self._changed:
                    can_resume = self._pending.refuse_too_long(error)
                pause_s = 0.0 if can_resume else self._resumption.pause_s(error, broke)
                if pause_s is None:
                    raise self._pending.unanswered(error) from attempt.failure
                self._observation.retried(error, pause_s)
                with self._changed:
                    answers = self._pending.restart(broke)
                yield from answers
                yield from self._pause(pause_s)
            if self._failure is not None:
                raise self._failure

    def _open(self, attempt: _Attempt) -> Any:
        """Start a call, and a thread that receives its responses."""
        with self._changed:
            self._attempt = attempt
        metadata = self._connection.metadata(self._observation.metadata)
        self._observation.attempt()
        method = getattr(attempt.stubs.inference, self._kind.method)
        try:
            call = method(self._requests(attempt), metadata=metadata)
        except ValueError as misuse:  # raised by gRPC if the channel is closed
            if not self._channels.closing.is_set():
                raise
            raise self._connection.closed() from misuse
        threading.Thread(target=self._receive, args=(attempt, call), daemon=True).start()
        return call

    def _pause(self, pause_s: float) -> Generator[FrameAnswer[Result], None, None]:
        """Wait before the next attempt; yield errors of frames that time out meanwhile."""
        until = time.monotonic() + pause_s
        while (left_s := until - time.monotonic()) > 0:
            with self._changed:
                late, wait_s = self._pending.expire(), self._pending.wait_s()
            yield from late
            if self._finished():
                return
            if self._channels.closing.wait(left_s if wait_s is None else min(left_s, wait_s)):
                raise self._connection.closed()

    def _receive(self, attempt: _Attempt, call: Any) -> None:
        """Receive responses, at most as many as pending frames; runs in a thread."""
        failure = None
        try:
            for reply in call:
                with self._changed:
                    attempt.replies.append(reply)
                    self._changed.notify_all()
        except grpc.RpcError as error:
            failure = error
        finally:
            with self._changed:
                attempt.ended, attempt.failure = True, failure
                self._changed.notify_all()

    def _wait(self, attempt: _Attempt) -> Answers[Result] | None:
        """Wait for answers; return None if the attempt has ended."""
        with self._changed:
            while True:
                if attempt.replies:
                    answer = self._pending.answer(attempt.replies.popleft())
                    self._resumption.progress()
                    self._changed.notify_all()
                    if answer is not None:
                        return [answer]
                elif late := self._pending.expire():
                    self._changed.notify_all()
                    return late
                elif attempt.ended:
                    return None
                elif (silence := self._pending.silence()) is not None:
                    attempt.silence = silence
                    return None
                else:
                    self._changed.wait(self._pending.wait_s())

    def _end_of(self, attempt: _Attempt) -> tuple[Resnet50Error | None, bool]:
        """Return an attempt's error (None at the end), and whether its connection broke."""
        if self._channels.closing.is_set():
            raise self._connection.closed() from attempt.failure
        if attempt.silence is not None:
            return self._connection.unavailable(attempt.silence), False
        with self._changed:
            if attempt.failure is not None:
                broke = self._pending.in_flight and not ended_by_peer(attempt.failure)
                return self._connection.error_of(attempt.failure), broke
        if self._finished():
            return None, False
        return self._connection.unavailable("the server ended the stream too early, with OK"), False

    def _finished(self) -> bool:
        with self._changed:
            return self._exhausted and not self._pending

    def _requests(self, attempt: _Attempt) -> Iterator[Any]:
        """Yield an attempt's requests; runs in gRPC's thread."""
        yield self._kind.request(config=self._kind.config)
        while (request := self._next_request(attempt)) is not None:
            self._observation.sent(request)
            yield request

    def _next_request(self, attempt: _Attempt) -> Any | None:
        while True:
            with self._changed:
                while True:
                    if self._attempt is not attempt:
                        return None
                    first = not self._pending.in_flight
                    request = self._pending.next_request()
                    if request is not None:
                        if first:  # the idle timeout starts now
                            self._changed.notify_all()
                        return request
                    if self._exhausted and not self._pending.unsent:
                        return None
                    # An earlier attempt may still be reading an image, which it will add.
                    if not self._exhausted and self._pending.has_room and not self._reading:
                        break
                    self._changed.wait()
                self._reading = True
            self._read_image()

    def _read_image(self) -> None:
        """Read one image from the source; may block as long as the source does."""
        failure, image = None, None
        try:
            found = self._source.read()
            if found is not _sources.END:
                image = self._pending.read(found)
        except BaseException as error:  # of the source; re-raised by `answers`
            failure = error
        with self._changed:
            self._reading = False
            if image is not None:
                self._pending.add(image)
            else:
                self._exhausted, self._failure = True, failure
            self._changed.notify_all()
