"""The threads' side of a blocking stream: gRPC's threads send frames and receive responses."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

from . import _sources
from ._frames import FrameAnswer, StreamKind, StreamLimits
from ._pending_frames import PendingFrames
from ._retries import Resumption
from ._stubs import Stubs
from .images import ImageInput
from .observers import Observation

Result = TypeVar("Result")


class Attempt:
    """One call of a stream.

    Attributes:
        replies: Received responses that are not processed yet.
        ended: True after the last response.
        failure: The gRPC error, or one of an interceptor; None if the server ended the stream with
            OK.
        silence: Description of an idle timeout; None if there was none.
        call: The gRPC call; None before it is made.
        stubs: Kept so that the channel stays open during the call.
    """

    def __init__(self, stubs: Stubs) -> None:
        self.stubs = stubs
        self.call: Any = None
        self.replies: collections.deque[Any] = collections.deque()
        self.ended = False
        self.failure: BaseException | None = None
        self.silence: str | None = None


class Exchange(Generic[Result]):
    """State that a stream shares with the threads that send its frames and receive responses.

    Args:
        observation: Notifies observers.
        kind: RPC, configuration and format of the stream.
        images: The frames.
        limits: Limits of pending frames.
        resumption: Records responses.

    Attributes:
        changed: Guards the attributes below; notified of every change.
        pending: The frames without an answer.
        attempt: The current attempt, the only one that may send; None between two.
        cancelled: True if the application has cancelled the stream.
        failure: Error of the source.
    """

    def __init__(
        self,
        observation: Observation,
        kind: StreamKind[Result],
        images: Iterable[ImageInput],
        limits: StreamLimits,
        resumption: Resumption,
    ) -> None:
        self._observation = observation
        self._kind = kind
        self._resumption = resumption
        self._source = _sources.Source(images)
        self.changed = threading.Condition()
        self.pending: PendingFrames[Result] = PendingFrames(kind, limits)
        self.attempt: Attempt | None = None
        self.cancelled = False
        self.failure: BaseException | None = None
        self._reading = False
        self._exhausted = False

    @property
    def finished(self) -> bool:
        """True if the source is exhausted, and every frame has its answer."""
        with self.changed:
            return self._exhausted and not self.pending

    def begin(self, attempt: Attempt, method: Any, metadata: Any) -> None:
        """Start a call, and a thread that receives its responses.

        Raises:
            ValueError: The channel is closed.
        """
        with self.changed:
            self.attempt = attempt
        attempt.call = method(self._requests(attempt), metadata=metadata)
        threading.Thread(
            target=self._receive, args=[attempt], name="resnet50 stream", daemon=True
        ).start()

    def answers(self, attempt: Attempt) -> list[FrameAnswer[Result]] | None:
        """Wait for answers; return None if the attempt has ended, an empty list if cancelled."""
        with self.changed:
            while not self.cancelled:
                if attempt.replies:
                    answer = self.pending.answer(attempt.replies.popleft())
                    self._resumption.progress()
                    self.changed.notify_all()
                    if answer is not None:
                        return [answer]
                elif late := self.pending.expire():
                    self.changed.notify_all()
                    return late
                elif attempt.ended:
                    return None
                elif (silence := self.pending.silence()) is not None:
                    attempt.silence = silence
                    return None
                else:
                    self.changed.wait(self.pending.wait_s())
        return []

    def pause(self, until: float, closing: threading.Event) -> list[FrameAnswer[Result]]:
        """Wait between two attempts, until a time or a change; return errors of late frames."""
        with self.changed:
            late = self.pending.expire()
            if not (late or self.cancelled or closing.is_set()):
                left_s, wait_s = until - time.monotonic(), self.pending.wait_s()
                self.changed.wait(left_s if wait_s is None else min(left_s, wait_s))
            return late

    def cancel(self) -> None:
        """Wake the thread that waits for an answer, to end the stream."""
        with self.changed:
            self.cancelled = True
            self.changed.notify_all()

    def wake(self) -> None:
        """Wake the waiting threads: the client was closed."""
        with self.changed:
            self.changed.notify_all()

    def drop_attempt(self) -> None:
        """Cancel the current attempt, if any."""
        with self.changed:
            attempt, self.attempt = self.attempt, None
            self.changed.notify_all()
        if attempt is not None and attempt.call is not None:
            attempt.call.cancel()

    def close(self) -> None:
        """Cancel the current attempt, and close the source."""
        try:
            self.drop_attempt()
        finally:
            self._source.close()

    def _receive(self, attempt: Attempt) -> None:
        """Receive responses, at most as many as pending frames; runs in a thread."""
        failure = None
        try:
            for reply in attempt.call:
                with self.changed:
                    attempt.replies.append(reply)
                    self.changed.notify_all()
        except BaseException as error:  # raised in the thread that waits for an answer
            failure = error.with_traceback(None)  # whose frames have this attempt
        finally:
            with self.changed:
                attempt.ended, attempt.failure = True, failure
                self.changed.notify_all()

    def _requests(self, attempt: Attempt) -> Iterator[Any]:
        """Yield an attempt's requests; runs in gRPC's thread."""
        yield self._kind.request(config=self._kind.config)
        while (request := self._next_request(attempt)) is not None:
            self._observation.sent(request)
            yield request

    def _next_request(self, attempt: Attempt) -> Any | None:
        while True:
            with self.changed:
                while True:
                    if self.attempt is not attempt:
                        return None
                    first = not self.pending.in_flight
                    request = self.pending.next_request()
                    if request is not None:
                        if first:  # the idle timeout starts now
                            self.changed.notify_all()
                        return request
                    if self._exhausted and not self.pending.unsent:
                        return None
                    # An earlier attempt may still be reading an image, which it will add.
                    if not self._exhausted and self.pending.has_room and not self._reading:
                        break
                    self.changed.wait()
                self._reading = True
            self._read_image()

    def _read_image(self) -> None:
        """Read one image from the source; may block as long as the source does."""
        failure, image, found = None, None, None
        try:
            found = self._source.read()
            if found is not _sources.END:
                image = self.pending.read(found)
        except BaseException as error:  # of the source; re-raised to the caller
            failure = error
        with self.changed:
            self._reading = False
            if image is not None:
                self.pending.add(image, found)
            else:
                self._exhausted, self.failure = True, failure
            self.changed.notify_all()
