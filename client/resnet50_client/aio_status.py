"""Repairs of grpc.aio: what ended a call is told apart.

When a server ends a call while the client is still sending, as it does when it refuses an upload
after its first chunk or shuts down, grpc.aio puts "INTERNAL: Internal error from Core" in the place
of the status that the server gave (grpc/grpc#36066, open as of grpcio 1.85). The blocking API does
not.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import Any, TypeVar

import grpc

log = logging.getLogger(__name__)

Call = TypeVar("Call")

# The status follows the failed write at once, unless the call broke without one.
STATUS_GRACE_S = 5.0


def keep_status(call: Call) -> Call:
    """Make a grpc.aio call report the status that its server gave; return it."""
    inner = getattr(call, "_cython_call", None)
    if inner is None:
        _say_once(type(call).__qualname__)
    else:
        call._cython_call = _PatientCall(inner)  # type: ignore[attr-defined]
    return call


@functools.cache
def _say_once(kind: str) -> None:
    log.warning(
        "grpcio %s is not known to this release: its %s has no _cython_call, so that an upload that"
        " the server refuses may be reported as ServerError (grpc/grpc#36066); use a newer release"
        " of the SDK, or an older grpcio",
        grpc.__version__,
        kind,
    )


class CancelledCallError(Exception):
    """A call was cancelled, by its channel's end, and not the task that waits for it."""


async def reply_of(call: Any) -> Any:
    """Wait for the reply of a call.

    grpc.aio raises the same whether the call is cancelled or the task that waits for it. So this
    waits for something else, which only the task's own cancellation ends early.

    Raises:
        CancelledCallError: The call was cancelled.
        asyncio.CancelledError: The task was.
        grpc.RpcError: The call failed.
    """
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end(_: Any) -> None:
        if not ended.done():  # as it is once the task is cancelled
            ended.set_result(None)

    call.add_done_callback(end)
    try:
        await ended
    except asyncio.CancelledError:
        call.cancel()
        raise
    try:
        return await call  # which has ended: the task is not kept waiting here
    except asyncio.CancelledError:
        raise CancelledCallError from None


class _PatientCall:
    """Stands for grpc.aio's inner call, and waits before it invents a status."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    async def send_receive_close(self) -> None:
        """Say that nothing more is sent; a call that has broken is left to its status.

        grpc.aio would cancel it, and its caller would get CancelledError without a cancellation.
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
