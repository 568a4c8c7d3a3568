from __future__ import annotations

import logging

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
