"""Reads the messages of one stream."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from resnet50.v1 import inference_pb2
from resnet50_server.errors import InvalidRequest, ServingError, Stalled

from .call import EOF, Received

Config: TypeAlias = inference_pb2.ClassifyStreamConfig | inference_pb2.EmbedStreamConfig


class MessageReader:
    """Reads the messages of one stream.

    Args:
        read: Waits for the next message, a `Received`; returns `EOF` after the last.
        idle_timeout_s: Maximum pause between messages, in seconds; 0 for no limit.
    """

    def __init__(self, read: Callable[[], Awaitable[Any]], idle_timeout_s: float) -> None:
        self._read = read
        self._idle_timeout_s = idle_timeout_s
        self._reading: asyncio.Task[Any] | None = None
        self._stopped: ServingError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._idle_since = 0.0

    def stop(self, reason: ServingError) -> None:
        """Read no more, and raise `reason` where the next message is awaited."""
        self._stopped = reason
        if self._reading is not None:
            self._reading.cancel()

    def close(self) -> None:
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()

    async def next(self) -> Any:
        """Return the next message; `EOF` after the last.

        Raises:
            ServingError: Why reading was stopped.
        """
        if self._stopped is not None:
            raise self._stopped
        loop = asyncio.get_running_loop()
        self._reading = asyncio.current_task(loop)
        # One timer measures the pauses of a stream, whatever its frame rate.
        self._idle_since = loop.time()
        if self._idle_timeout_s and self._timer is None:
            self._timer = loop.call_later(self._idle_timeout_s, self._check_idle)
        try:
            return await self._read()
        except asyncio.CancelledError:
            if self._stopped is not None:
                raise self._stopped from None
            raise
        finally:
            self._reading = None

    def _check_idle(self) -> None:
        loop = asyncio.get_running_loop()
        left_s = self._idle_since + self._idle_timeout_s - loop.time()
        if self._reading is None:  # the server is busy, not the client idle
            left_s = self._idle_timeout_s
        if left_s <= 0:
            self.stop(
                Stalled(
                    f"no frame came for {self._idle_timeout_s:g} s (stream_idle_timeout_s); open a"
                    " new stream when there are frames"
                )
            )
        else:
            self._timer = loop.call_later(left_s, self._check_idle)


class StreamReader(MessageReader):
    """Reads the messages of a stream of frames: its config, then frames, which it iterates over.

    Args:
        read: Waits for the next message, a `Received`; returns `EOF` after the last.
        idle_timeout_s: Maximum pause between messages, in seconds; 0 for no limit.
    """

    def __init__(self, read: Callable[[], Awaitable[Any]], idle_timeout_s: float) -> None:
        super().__init__(read, idle_timeout_s)
        self._last_id = -1

    async def config(self) -> Config:
        """Read the first message.

        Raises:
            InvalidRequest: It has no config, or there is none.
            ServingError: Why reading was stopped.
        """
        received = await self.next()
        if received is EOF or received.message.WhichOneof("part") != "config":
            raise InvalidRequest(
                "config", "is missing: the first message of a stream holds its config"
            )
        config: Config = received.message.config
        return config

    def __aiter__(self) -> StreamReader:
        return self

    async def __anext__(self) -> Received:
        """Return the next frame, with the size of its message.

        Raises:
            InvalidRequest: A message has no frame, or a frame id is not above the one before.
            ServingError: Why reading was stopped.
            StopAsyncIteration: There are no more.
        """
        received = await self.next()
        if received is EOF:
            raise StopAsyncIteration
        part, size = received
        if part.WhichOneof("part") != "frame":
            raise InvalidRequest(
                "config" if part.HasField("config") else "frame",
                "after the first message, a stream holds frames only",
            )
        frame = part.frame
        if frame.frame_id <= self._last_id:
            raise InvalidRequest(
                "frame.frame_id",
                f"is {frame.frame_id} after {self._last_id}; each frame's id must be above the one"
                " before",
            )
        self._last_id = frame.frame_id
        return Received(frame, size)
