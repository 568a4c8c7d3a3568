from __future__ import annotations

import grpc
import pytest

from resnet50_client.errors import Resnet50Error, ServerError, UnavailableError, error_of


class Failure(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__()
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self):
        return ()


def name_of(code: grpc.StatusCode, details: str) -> type[Resnet50Error]:
    error = error_of(Failure(code, details), "here:1")
    assert error.code == ("UNAVAILABLE" if isinstance(error, UnavailableError) else code.name)
    return type(error)


@pytest.mark.parametrize(
    ("code", "details"),
    [
        # gRPC's server, of calls that it had not yet handed over when it stopped.
        (grpc.StatusCode.CANCELLED, "CANCELLED"),
        # gRPC's client, when nginx loses a server in the middle of an answer.
        (
            grpc.StatusCode.INTERNAL,
            "Stream removed (RST_STREAM (Received RST_STREAM with error code 2))",
        ),
        (grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2"),
    ],
)
def test_call_that_is_lost_on_its_way_is_unavailable(code, details):
    assert name_of(code, details) is UnavailableError


def test_fault_of_the_server_stays_its_fault():
    assert name_of(grpc.StatusCode.INTERNAL, "request 12 failed") is ServerError
