"""Unary calls of the blocking client. `_async_calls.py` has the asyncio ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeAlias, TypeVar

import grpc

from ._auth import NEEDS_ASYNC
from ._channels import Channels
from ._config import Connection
from ._resolver import AGAIN_S, FIRST_LOOKUP_S, Resolver
from ._retries import Attempts
from ._unary import SingleCall
from .errors import Resnet50Error
from .images import ImageInput
from .observers import Observation, Observers

Options = TypeVar("Options")
Result = TypeVar("Result")
Interceptor: TypeAlias = (
    grpc.UnaryUnaryClientInterceptor
    | grpc.UnaryStreamClientInterceptor
    | grpc.StreamUnaryClientInterceptor
    | grpc.StreamStreamClientInterceptor
)


class Calls:
    """Opens and closes the channels of a client, and makes unary calls.

    Clients of `with_options` share it.

    Args:
        connection: The client's connection options.
        _: Description of the client, for errors of `AsyncCalls`.

    Attributes:
        closed: Whether the client was closed.
        channels: The channels.

    Raises:
        TypeError: Interceptors or the token are for `AsyncClient`.
    """

    def __init__(self, connection: Connection, _: str) -> None:
        self._connection = connection
        self.closed = False
        connection.channel.check_interceptors(grpc)
        bearer = connection.credentials.bearer
        if bearer is not None and bearer.asynchronous:
            raise TypeError(NEEDS_ASYNC)
        self.channels = Channels(
            connection, Resolver(connection.addresses, connection.function), grpc
        )

    def open(
        self, timeout_s: float = FIRST_LOOKUP_S, ended: Callable[[], bool] = lambda: False
    ) -> Channels:
        """Return the channels, once the server's name was looked up.

        Args:
            timeout_s: Timeout in seconds of the first lookup; that of names is shorter.
            ended: Returns True if the caller has ended meanwhile: there is no address then.

        Raises:
            CallCancelledError: The client is closed.
            UnavailableError: The function of `server` has not returned an address in time.
        """
        if self.closed:
            raise self._connection.closed()
        resolver, ends = self.channels.resolver, time.monotonic() + timeout_s
        resolver.wait(timeout_s)
        while (problem := resolver.problem) is not None and not ended():
            if (left_s := ends - time.monotonic()) <= 0:
                raise self._connection.unavailable(problem)
            self.pause(self.channels, min(left_s, AGAIN_S))
            resolver.wait(left_s)
        return self.channels

    def close(self) -> None:
        """Close the channels; calls in flight end with CallCancelledError."""
        self.closed = True
        with ExitStack() as stack:  # all are closed, even if one fails
            for channel in self.channels.close():
                stack.callback(channel.close)

    def call(
        self,
        connection: Connection,
        observers: Observers,
        call: SingleCall[Result],
        timeout_s: float | None,
    ) -> Result:
        """Make one call, and notify observers."""
        attempts = connection.attempts(timeout_s, call.repeatable)
        channels = self.open(attempts.left_s())
        with observers.observe(call.method, connection.request_id) as observation:
            try:
                reply = self.reply(channels, connection, call, attempts, observation)
                result = call.result(reply, observation.request_id)
            except Resnet50Error as error:
                error._set_context(source=call.source)
                raise
            observation.answered(result)
            return result

    def reply(
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
            stubs, metadata = channels.stubs(), connection.metadata(observation.metadata)
            observation.attempt(call.length)
            try:
                return call.start(stubs)(timeout=attempts.grpc_timeout(), metadata=metadata)
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
            except ValueError as misuse:  # raised by gRPC if the channel is closed
                if not closing.is_set():
                    raise
                raise connection.closed() from misuse
            observation.retried(error, pause_s)
            self.pause(channels, pause_s)

    def pause(self, channels: Channels, pause_s: float) -> None:
        """Wait before another attempt.

        Raises:
            CallCancelledError: The client was closed meanwhile.
        """
        if channels.closing.wait(pause_s):
            raise self._connection.closed()

    def prepare(
        self,
        make: Callable[[ImageInput, str | None, Options], SingleCall[Result]],
        image: ImageInput,
        pixel_format: str | None,
        options: Options,
    ) -> SingleCall[Result]:
        """Prepare a call."""
        return make(image, pixel_format, options)
