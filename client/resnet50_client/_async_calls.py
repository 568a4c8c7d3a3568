"""Unary calls of the asyncio client. `_sync_calls.py` has the blocking ones."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Any, TypeVar

import grpc

from . import _unary
from ._aio_status import CancelledCallError, keep_status, reply_of
from ._base_client import BaseClient
from ._channels import Channels
from ._config import Connection
from ._resolver import FIRST_LOOKUP_S, Resolver
from ._retries import Attempts
from .observers import Observation

Result = TypeVar("Result")
Self = TypeVar("Self", bound="AsyncCalls")


class AsyncCalls(BaseClient):
    """Opens and closes connections, and makes unary calls.

    Channels belong to the event loop they are created on, so the first call creates them.
    """

    async def close(self) -> None:
        """Close the connection; calls in flight end with CallCancelledError."""
        self._shared.closed = True
        channels = self._shared.channels
        if channels is None:
            return
        # All are closed, even if this task is cancelled.
        async with contextlib.AsyncExitStack() as stack:
            for channel in channels.close():
                stack.push_async_callback(channel.close)

    async def __aenter__(self: Self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _open(self, timeout_s: float = FIRST_LOOKUP_S) -> Channels:
        loop = asyncio.get_running_loop()
        shared = self._shared
        if shared.closed:
            raise self._connection.closed()
        if shared.channels is None:
            resolver = Resolver(self._connection.addresses)
            shared.channels, shared.loop = Channels(self._connection, resolver, grpc.aio), loop
        if shared.loop is not loop:
            raise RuntimeError(f"{self!r} was used on another event loop; create one for each loop")
        await shared.channels.resolver.wait_async(timeout_s)
        return shared.channels

    async def _call(
        self,
        call: _unary.SingleCall[Result],
        timeout_s: float | None,
        caller_key: str | None = None,
    ) -> Result:
        """Make one call, and notify observers."""
        self._check_open()
        connection = self._connection.of(caller_key=caller_key)
        attempts = connection.attempts(timeout_s, call.repeatable)
        channels = await self._open(attempts.left_s())
        with self._observers.observe(call.method) as observation:
            reply = await self._reply(channels, connection, call, attempts, observation)
            result = call.result(reply)
            observation.answered(result)
            return result

    async def _reply(
        self,
        channels: Channels,
        connection: Connection,
        call: _unary.SingleCall[Any],
        attempts: Attempts,
        observation: Observation,
    ) -> Any:
        """Make a call with retries; gRPC errors become `Resnet50Error`."""
        closing = channels.closing
        while True:
            stubs, metadata = channels.stubs(), connection.metadata(observation.metadata)
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
                    raise error from failure
            observation.retried(error, pause_s)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(closing.wait(), pause_s)
            if closing.is_set():
                raise connection.closed()
