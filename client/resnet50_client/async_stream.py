"""A stream of the asyncio client: one task sends frames, the caller's takes answers."""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Sequence,
)
from contextlib import aclosing
from typing import Any, Generic, TypeVar

import grpc

from .aio_status import keep_status
from .channels import Channels
from .connection import Connection, Resumption
from .frames import FrameAnswer, StreamKind, Unanswered
from .images import ImageInput, is_quickly_read
from .observer import Observation

Result = TypeVar("Result")
_END = object()


class AsyncStream(Generic[Result]):
    """Sends frames while it gives answers, and goes on at another server when one goes away.

    Args:
        channels: The client's.
        connection: The client's.
        observation: Is told of the stream.
        kind: What the stream asks for.
        images: Read one at a time while fewer than `window` are unanswered; an iterable that may
            block is read in a thread.
        window: How many frames may wait for their answers.
        resume_s: How long no server may be reached, in seconds.
    """

    def __init__(
        self,
        channels: Channels,
        connection: Connection,
        observation: Observation,
        kind: StreamKind[Result],
        images: Iterable[ImageInput] | AsyncIterable[ImageInput],
        window: int,
        resume_s: float | None,
    ) -> None:
        self._channels = channels
        self._connection = connection
        self._observation = observation
        self._kind = kind
        self._next_image = _source(images)
        self._resumption = Resumption(connection, resume_s)
        self._unanswered: Unanswered[Result] = Unanswered(kind, window)
        self._changed = asyncio.Event()
        self._attempt = 0  # 0 once closed: only the attempt of this number may send
        self._reading: asyncio.Task[None] | None = None
        self._exhausted = False
        self._failure: BaseException | None = None

    async def answers(self) -> AsyncGenerator[FrameAnswer[Result], None]:
        """Give the answers; closing the generator cancels the call."""
        with self._observation:
            async with aclosing(self._answers()) as answers:
                async for answer in answers:
                    self._observation.frame_answered(answer)
                    yield answer

    async def _answers(self) -> AsyncGenerator[FrameAnswer[Result], None]:
        attempts, call = 0, None
        try:
            while True:
                attempts += 1
                self._attempt = attempts
                self._changed.set()  # one that an earlier attempt waits for
                for answer in self._unanswered.restart():
                    yield answer
                stubs = self._channels.stubs()
                metadata = self._connection.metadata(self._observation.metadata)
                self._observation.attempt()
                method = getattr(stubs.inference, self._kind.method)
                call = keep_status(method(self._requests(attempts), metadata=metadata))
                try:
                    async for reply in call:
                        self._resumption.progress()
                        answer = self._unanswered.answer(reply)
                        self._changed.set()
                        yield answer
                except grpc.RpcError as failure:
                    error = self._connection.error_of(failure)
                    pause_s = self._resumption.pause_s(error)
                    if pause_s is None:
                        raise error from failure
                    self._observation.retried(error, pause_s)
                    await asyncio.sleep(pause_s)
                    continue
                if self._failure is not None:
                    raise self._failure
                return
        finally:
            # The task that sends ends by itself: gRPC leaves that of a call that a server has ended
            # waiting, until it is collected as garbage with a complaint in the log.
            self._attempt = 0
            self._changed.set()
            if call is not None:
                call.cancel()
            if self._reading is not None:
                self._reading.cancel()
                await asyncio.wait([self._reading])

    async def _requests(self, attempt: int) -> AsyncIterator[Any]:
        """Give one attempt's requests; runs in gRPC's task."""
        yield self._kind.request(config=self._kind.config)
        while self._attempt == attempt:
            request = self._unanswered.next_request()
            if request is not None:
                self._observation.sent(request)
                yield request
            elif self._exhausted:
                return
            elif not self._unanswered.has_room:
                self._changed.clear()
                await self._changed.wait()
            else:
                # A task of its own: what an attempt that ends was reading is not lost.
                if self._reading is None:
                    self._reading = asyncio.create_task(self._read_image())
                await asyncio.wait([self._reading])

    async def _read_image(self) -> None:
        """Take one image from the caller."""
        try:
            image = await self._next_image()
            if image is _END:
                self._exhausted = True
            elif is_quickly_read(image):
                self._unanswered.add(self._unanswered.read(image))
            else:
                self._unanswered.add(await asyncio.to_thread(self._unanswered.read, image))
        except Exception as error:  # the caller's own; raised where the answers are taken
            self._exhausted, self._failure = True, error
        finally:
            self._reading = None


def _source(
    images: Iterable[ImageInput] | AsyncIterable[ImageInput],
) -> Callable[[], Awaitable[Any]]:
    """Return what gives the next image; `_END` after the last."""
    if isinstance(images, AsyncIterable):
        following = aiter(images)

        async def next_awaited() -> Any:
            return await anext(following, _END)

        return next_awaited
    iterator = iter(images)
    if isinstance(images, Sequence):

        async def next_at_hand() -> Any:
            return next(iterator, _END)

        return next_at_hand

    async def next_in_thread() -> Any:
        return await asyncio.to_thread(next, iterator, _END)

    return next_in_thread
