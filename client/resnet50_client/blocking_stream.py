"""A stream of the blocking client: gRPC's thread sends frames, the caller's takes answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from typing import Any, Generic, TypeVar

import grpc

from .channels import Channels
from .connection import Connection, Resumption
from .frames import FrameAnswer, StreamKind, Unanswered
from .images import ImageInput
from .observer import Observation

Result = TypeVar("Result")


class BlockingStream(Generic[Result]):
    """Sends frames while it gives answers, and goes on at another server when one goes away.

    Args:
        channels: The client's.
        connection: The client's.
        observation: Is told of the stream.
        kind: What the stream asks for.
        images: Read one at a time, by gRPC's thread, while fewer than `window` are unanswered.
        window: How many frames may wait for their answers.
        resume_s: How long no server may be reached, in seconds.
    """

    def __init__(
        self,
        channels: Channels,
        connection: Connection,
        observation: Observation,
        kind: StreamKind[Result],
        images: Iterable[ImageInput],
        window: int,
        resume_s: float | None,
    ) -> None:
        self._channels = channels
        self._connection = connection
        self._observation = observation
        self._kind = kind
        self._images = iter(images)
        self._resumption = Resumption(connection, resume_s)
        self._unanswered: Unanswered[Result] = Unanswered(kind, window)
        # Guards what follows; notified whenever it changes.
        self._changed = threading.Condition()
        self._attempt = 0  # 0 once closed: only the attempt of this number may send
        self._reading = False
        self._exhausted = False
        self._failure: BaseException | None = None

    def answers(self) -> Generator[FrameAnswer[Result], None, None]:
        """Give the answers; closing the generator cancels the call."""
        with self._observation, closing(self._answers()) as answers:
            for answer in answers:
                self._observation.frame_answered(answer)
                yield answer

    def _answers(self) -> Generator[FrameAnswer[Result], None, None]:
        attempts, call = 0, None
        try:
            while True:
                attempts += 1
                with self._changed:
                    self._attempt = attempts
                    dropped = self._unanswered.restart()
                    self._changed.notify_all()
                yield from dropped
                stubs = self._channels.stubs()
                metadata = self._connection.metadata(self._observation.metadata)
                self._observation.attempt()
                method = getattr(stubs.inference, self._kind.method)
                call = method(self._requests(attempts), metadata=metadata)
                try:
                    for reply in call:
                        self._resumption.progress()
                        with self._changed:
                            answer = self._unanswered.answer(reply)
                            self._changed.notify_all()
                        yield answer
                except grpc.RpcError as failure:
                    error = self._connection.error_of(failure)
                    pause_s = self._resumption.pause_s(error)
                    if pause_s is None:
                        raise error from failure
                    self._observation.retried(error, pause_s)
                    time.sleep(pause_s)
                    continue
                if self._failure is not None:
                    raise self._failure
                return
        finally:
            with self._changed:
                self._attempt = 0
                self._changed.notify_all()
            if call is not None:
                call.cancel()

    def _requests(self, attempt: int) -> Iterator[Any]:
        """Give one attempt's requests; runs in gRPC's thread."""
        yield self._kind.request(config=self._kind.config)
        while (request := self._next_request(attempt)) is not None:
            self._observation.sent(request)
            yield request

    def _next_request(self, attempt: int) -> Any | None:
        while True:
            with self._changed:
                while True:
                    if self._attempt != attempt:
                        return None
                    request = self._unanswered.next_request()
                    if request is not None:
                        return request
                    if self._exhausted:
                        return None
                    # An earlier attempt may still be waiting for an image: it will add it.
                    if self._unanswered.has_room and not self._reading:
                        break
                    self._changed.wait()
                self._reading = True
            self._read_image()

    def _read_image(self) -> None:
        """Take one image from the caller; may block for as long as the caller's iterator does."""
        failure, image = None, None
        try:
            image = self._unanswered.read(next(self._images))
        except StopIteration:
            pass
        except BaseException as error:  # the caller's own; raised where the answers are taken
            failure = error
        with self._changed:
            self._reading = False
            if image is not None:
                self._unanswered.add(image)
            else:
                self._exhausted, self._failure = True, failure
            self._changed.notify_all()
