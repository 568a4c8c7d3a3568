from __future__ import annotations

import logging
from types import SimpleNamespace

import grpc

from resnet50_client import aio_status
from resnet50_client.aio_status import keep_status


class Call:
    """A call of a grpcio that has no such private part any more."""


def test_missing_repair_of_grpc_is_logged_once(caplog):
    aio_status._say_once.cache_clear()
    call = Call()
    with caplog.at_level(logging.WARNING):
        assert keep_status(call) is call
        keep_status(Call())
    (record,) = caplog.records
    assert "_cython_call" in record.getMessage()
    assert "ServerError" in record.getMessage()


async def test_call_that_breaks_at_its_last_request_is_left_to_its_status():
    async def send_receive_close() -> None:
        raise grpc.aio.InternalError("Internal error from Core")

    inner = SimpleNamespace(send_receive_close=send_receive_close, done=lambda: True)
    call = SimpleNamespace(_cython_call=inner)
    # grpc.aio cancels the call if this raises: its caller would be told of a cancellation.
    await keep_status(call)._cython_call.send_receive_close()
