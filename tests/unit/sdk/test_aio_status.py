from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from resnet50_client._aio_status import CancelledCallError, keep_status, reply_of


class Call:
    """A call of a grpcio that has no `_cython_call`; it ends as a test says."""

    def __init__(self) -> None:
        self._reply = asyncio.get_running_loop().create_future()
        self.add_done_callback = self._reply.add_done_callback
        self.cancelled: Callable[[], bool] = self._reply.cancelled
        self.cancel: Callable[[], bool] = self._reply.cancel

    def answer(self, reply: str) -> None:
        self._reply.set_result(reply)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._reply.__await__()


async def test_missing_repair_of_grpc_is_logged_once(caplog):
    class Unsupported(Call):
        pass

    call = Unsupported()
    with caplog.at_level(logging.WARNING):
        assert keep_status(call) is call
        keep_status(Unsupported())
    (record,) = caplog.records
    assert "_cython_call" in record.getMessage()
    assert "ServerError" in record.getMessage()


async def test_call_broken_at_its_last_request_reports_its_status():
    async def send_receive_close() -> None:
        raise grpc.aio.InternalError("Internal error from Core")

    inner = SimpleNamespace(send_receive_close=send_receive_close, done=lambda: True)
    call = SimpleNamespace(_cython_call=inner)
    keep_status(call)
    # grpc.aio cancels the call if this raises: its caller would be told of a cancellation.
    await vars(call)["_cython_call"].send_receive_close()


async def test_reply_is_that_of_the_call():
    call = Call()
    waiting = asyncio.create_task(reply_of(call))
    await asyncio.sleep(0)
    call.answer("cat")
    assert await waiting == "cat"


async def test_cancelled_task_cancels_its_call():
    call = Call()
    waiting = asyncio.create_task(reply_of(call))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert call.cancelled()


async def test_cancelled_call_is_not_a_cancelled_task():
    """On Python 3.10 as well, where a task does not know whether it was cancelled."""
    call = Call()
    waiting = asyncio.create_task(reply_of(call))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(CancelledCallError):
        await waiting


async def test_task_and_call_cancelled_together_cancel_the_task():
    call = Call()
    waiting = asyncio.create_task(reply_of(call))
    await asyncio.sleep(0)
    call.cancel()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
