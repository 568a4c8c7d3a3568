"""Unary calls of the asyncio client. `_sync_calls.py` has the blocking ones."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar

import grpc

from ._aio_status import CancelledCallError, keep_status, reply_of
from ._channels import Channels
from ._config import Connection
from ._resolver import AGAIN_S, FIRST_LOOKUP_S, Resolver
from ._retries import Attempts
from ._unary import SingleCall
from .errors import Resnet50Error
from .images import AsyncImageInput, ImageInput, awaited, is_quickly_read
from .observers import Observation, Observers

# Threads of a client that read, copy and hash images, started as they are needed.
MAX_THREADS = 16

Options = TypeVar("Options")
Result = TypeVar("Result")
Value = TypeVar("Value")
Interceptor: TypeAlias = (
    grpc.aio.UnaryUnaryClientInterceptor
    | grpc.aio.UnaryStreamClientInterceptor
    | grpc.aio.StreamUnaryClientInterceptor
    | grpc.aio.StreamStreamClientInterceptor
)


class AsyncCalls:
    """Opens and closes the channels of a client, and makes unary calls.

    Clients of `with_options` share it. Channels belong to the event loop they are created on, so
    the first call creates them.

    Args:
        connection: The client's connection options.
        owner: Description of the client, for errors.

    Attributes:
        closed: Whether the client was closed.
        channels: The channels; None before the first call.

    Raises:
        TypeError: Interceptors are for `Client`.
    """

    def __init__(self, connection: Connection, owner: str) -> None:
        self._connection = connection
        self._owner = owner
        connection.channel.check_interceptors(grpc.aio)
        self._loop: asyncio.AbstractEventLoop | None = None
        # Its own: asyncio's threads are few, and belong to the application.
        self._threads = ThreadPoolExecutor(MAX_THREADS, "resnet50 images")
        self.closed = False
        self.channels: Channels | None = None

    async def open(
        self, timeout_s: float = FIRST_LOOKUP_S, ended: Callable[[], bool] = lambda: False
    ) -> Channels:
        """Return the channels, once the server's name was looked up.

        Args:
            timeout_s: Timeout in seconds of the first lookup; that of names is shorter.
            ended: Returns True if the caller has ended meanwhile: there is no address then.

        Raises:
            CallCancelledError: The client is closed.
            UnavailableError: The function of `server` has not returned an address in time.
            RuntimeError: The client belongs to another event loop.
        """
        loop = asyncio.get_running_loop()
        if self.closed:
            raise self._connection.closed()
        if self.channels is None:
            resolver = Resolver(self._connection.addresses, self._connection.function)
            self.channels, self._loop = Channels(self._connection, resolver, grpc.aio), loop
        if self._loop is not loop:
            raise RuntimeError(
                f"{self._owner} was used on another event loop; create one for each loop"
            )
        resolver, ends = self.channels.resolver, time.monotonic() + timeout_s
        await resolver.wait_async(timeout_s)
        while (problem := resolver.problem) is not None and not ended():
            if (left_s := ends - time.monotonic()) <= 0:
                raise self._connection.unavailable(problem)
            await self.pause(self.channels, min(left_s, AGAIN_S))
            await resolver.wait_async(left_s)
        return self.channels

    async def close(self) -> None:
        """Close the channels; calls in flight end with CallCancelledError."""
        self.closed = True
        self._threads.shutdown(wait=False)  # each ends after the image that it reads
        if self.channels is None:
            return
        # All are closed, even if this task is cancelled.
        async with contextlib.AsyncExitStack() as stack:
            for channel in self.channels.close():
                stack.push_async_callback(channel.close)

    async def call(
        self,
        connection: Connection,
        observers: Observers,
        call: SingleCall[Result],
        timeout_s: float | None,
    ) -> Result:
        """Make one call, and notify observers."""
        attempts = connection.attempts(timeout_s, call.repeatable)
        channels = await self.open(attempts.left_s())
        with observers.observe(call.method, connection.request_id) as observation:
            try:
                reply = await self.reply(channels, connection, call, attempts, observation)
                result = call.result(reply, observation.request_id)
            except Resnet50Error as error:
                error._set_context(source=call.source)
                raise
            observation.answered(result)
            return result

    async def reply(
        self,
        channels: Channels,
        connection: Connection,
        call: SingleCall[Any],
        attempts: Attempts,
        observation: Observation,
    ) -> Any:
        """Make a call with retries; gRPC errors become `Resnet50Error`."""
        closing = channels.closing
        while True:
            stubs = channels.stubs()
            metadata = await connection.metadata_async(observation.metadata, attempts.left_s())
            observation.attempt(call.length)
            try:
                made = call.start(stubs)(timeout=attempts.grpc_timeout(), metadata=metadata)
                return await reply_of(keep_status(made))
            except CancelledCallError:
                if not closing.is_set():
                    raise asyncio.CancelledError from None
                raise connection.closed() from None
            except grpc.aio.UsageError as misuse:  # raised by gRPC if the channel is closed
                if not closing.is_set():
                    raise
                raise connection.closed() from misuse
            except grpc.RpcError as failure:
                if closing.is_set():
                    raise connection.closed() from failure
                error = connection.error_of(failure)
                channels.failed(error)
                pause_s = attempts.pause_s(error)
                if pause_s is None:
                    try:
                        raise error from failure
                    finally:
                        del error  # which its traceback would keep, and with it the image
            observation.retried(error, pause_s)
            await self.pause(channels, pause_s)

    async def pause(self, channels: Channels, pause_s: float) -> None:
        """Wait before another attempt.

        Raises:
            CallCancelledError: The client was closed meanwhile.
        """
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(channels.closing.wait(), pause_s)
        if channels.closing.is_set():
            raise self._connection.closed()

    async def prepare(
        self,
        make: Callable[[ImageInput, str | None, Options], SingleCall[Result]],
        image: AsyncImageInput,
        pixel_format: str | None,
        options: Options,
    ) -> SingleCall[Result]:
        """Prepare a call, in a thread if its image has to be read from a file, or is large."""
        content = await awaited(image)
        if is_quickly_read(content):
            call = make(content, pixel_format, options)
        else:
            call = await self.in_thread(make, content, pixel_format, options)
        return call if content is image else replace(call, source=image)

    async def in_thread(self, function: Callable[..., Value], *arguments: Any) -> Value:
        """Run a function in one of the client's threads, with the context variables of the task.

        Raises:
            CallCancelledError: The client is closed.
        """
        if self.closed:
            raise self._connection.closed()
        run = functools.partial(contextvars.copy_context().run, function, *arguments)
        return await asyncio.get_running_loop().run_in_executor(self._threads, run)
