"""Workarounds for grpc.aio: preserve a call's status, and distinguish cancellations.

When a server ends a call while the client is still sending, for example to reject an upload after
its first chunk, grpc.aio replaces the server's status by "INTERNAL: Internal error from Core"
(grpc/grpc#36066, open as of grpcio 1.85). The blocking API does not.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Sequence
from typing import Any, TypeVar

import grpc

log = logging.getLogger(__name__)

Call = TypeVar("Call")

# The status follows the failed write at once, unless the call broke without one.
STATUS_GRACE_S = 5.0


def keep_status(call: Call) -> Call:
    """Make a grpc.aio call report its server's status; return the call."""
    inner = getattr(call, "_cython_call", None)
    if hasattr(call, "_interceptors_task"):
        return call  # see `keeping_status`
    if inner is None:
        _warn_once(type(call).__qualname__)
    else:
        call._cython_call = _StatusPreservingCall(inner)  # type: ignore[attr-defined]
    return call


def keeping_status(interceptors: Sequence[Any]) -> list[Any]:
    """Return interceptors that call `keep_status`, to be placed after an application's.

    An intercepted call hides the one that sends, so that only an innermost interceptor reaches it.
    grpc.aio does not intercept kinds of calls for which there is no interceptor.
    """
    return [
        kind()
        for kind in (_KeepUploadStatus, _KeepStreamStatus)
        if any(isinstance(one, kind.__mro__[1]) for one in interceptors)
    ]


class _KeepUploadStatus(grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        return keep_status(await continuation(client_call_details, request_iterator))


class _KeepStreamStatus(grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        return keep_status(await continuation(client_call_details, request_iterator))


@functools.cache
def _warn_once(kind: str) -> None:
    log.warning(
        "grpcio %s is not supported by this release: its %s has no _cython_call, so that a rejected"
        " upload may be reported as ServerError (grpc/grpc#36066); use a newer release of the SDK,"
        " or an older grpcio",
        grpc.__version__,
        kind,
    )


class CancelledCallError(Exception):
    """A call was cancelled because its channel was closed, not because its task was cancelled."""


async def reply_of(call: Any) -> Any:
    """Wait for the response of a call.

    grpc.aio raises the same error if the call or the waiting task is cancelled, so this waits for a
    future that only the task's own cancellation interrupts.

    Raises:
        CancelledCallError: The call was cancelled.
        asyncio.CancelledError: The task was cancelled.
        grpc.RpcError: The call failed.
    """
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end(_: Any) -> None:
        if not ended.done():  # it is done if the task was cancelled
            ended.set_result(None)

    call.add_done_callback(end)
    try:
        await ended
    except asyncio.CancelledError:
        call.cancel()
        raise
    try:
        return await call  # has ended, so this does not wait
    except asyncio.CancelledError:
        raise CancelledCallError from None


class _StatusPreservingCall:
    """Wraps grpc.aio's inner call; delays its INTERNAL status, so that the server's can arrive."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    async def send_receive_close(self) -> None:
        """Half-close the call; after an error, wait for the call's status.

        grpc.aio would cancel the call, and raise CancelledError without any cancellation.
        """
        try:
            await self._call.send_receive_close()
        except grpc.aio.InternalError as error:
            self.set_internal_error(str(error))

    def set_internal_error(self, reason: str) -> None:
        asyncio.get_running_loop().call_later(STATUS_GRACE_S, self._set_internal_error, reason)

    def _set_internal_error(self, reason: str) -> None:
        if not self._call.done():
            self._call.set_internal_error(reason)
