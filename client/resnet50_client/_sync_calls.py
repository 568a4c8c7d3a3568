"""Unary calls of the blocking client. `_async_calls.py` has the asyncio ones."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import Any, TypeVar

import grpc

from . import _unary
from ._base_client import BaseClient
from ._channels import Channels
from ._config import Connection
from ._resolver import Resolver
from ._retries import Attempts
from .observers import Observation

Result = TypeVar("Result")
Self = TypeVar("Self", bound="SyncCalls")


class SyncCalls(BaseClient):
    """Opens and closes connections, and makes unary calls."""

    def _start(self) -> None:
        resolver = Resolver(self._connection.addresses)
        self._shared.channels = Channels(self._connection, resolver, grpc)

    @property
    def _channels(self) -> Channels:
        assert self._shared.channels is not None  # since `_start`
        return self._shared.channels

    def close(self) -> None:
        """Close the connection; calls in flight end with CallCancelledError."""
        self._shared.closed = True
        with ExitStack() as stack:  # all are closed, even if one fails
            for channel in self._channels.close():
                stack.callback(channel.close)

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _call(
        self,
        call: _unary.SingleCall[Result],
        timeout_s: float | None,
        caller_key: str | None = None,
    ) -> Result:
        """Make one call, and notify observers."""
        self._check_open()
        connection = self._connection.of(caller_key=caller_key)
        attempts = connection.attempts(timeout_s, call.repeatable)
        with self._observers.observe(call.method) as observation:
            result = call.result(self._reply(connection, call, attempts, observation))
            observation.answered(result)
            return result

    def _reply(
        self,
        connection: Connection,
        call: _unary.SingleCall[Any],
        attempts: Attempts,
        observation: Observation,
    ) -> Any:
        """Make a call with retries; gRPC errors become `Resnet50Error`."""
        closing = self._channels.closing
        self._channels.resolver.wait(attempts.left_s())
        while True:
            stubs, metadata = self._channels.stubs(), connection.metadata(observation.metadata)
            observation.attempt(call.length)
            try:
                return call.start(stubs)(timeout=attempts.grpc_timeout(), metadata=metadata)
            except grpc.RpcError as failure:
                if closing.is_set():
                    raise connection.closed() from failure
                error = connection.error_of(failure)
                self._channels.failed(error)
                pause_s = attempts.pause_s(error)
                if pause_s is None:
                    raise error from failure
            except ValueError as misuse:  # raised by gRPC if the channel is closed
                if not closing.is_set():
                    raise
                raise connection.closed() from misuse
            observation.retried(error, pause_s)
            if closing.wait(pause_s):
                raise connection.closed()
