from __future__ import annotations

import grpc
import pytest

from resnet50_client import InvalidImageError, InvalidRequestError, OverloadedError
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


def test_lost_connection_is_told_from_one_that_was_never_made():
    gone = grpc.StatusCode.UNAVAILABLE
    for details, never_sent in (
        ("connections to all backends failing; last error: UNKNOWN: Connection refused", True),
        ("failed to connect to all addresses; last error: UNKNOWN: Connection refused", True),
        ("errors resolving unknown:1: Domain name not found", True),
        ("Socket closed", False),
        ("recvmsg:Connection reset by peer", False),
        ("the server is shutting down", False),
    ):
        error = error_of(Failure(gone, details), "here:1")
        assert isinstance(error, UnavailableError)
        assert error.never_sent is never_sent, details


@pytest.mark.parametrize(
    ("details", "kind", "says"),
    [
        (
            "SERVER: Received message larger than max (2000 vs. 1000)",
            InvalidImageError,
            r"the request has 2000 bytes, the server's limit \(max_message_bytes\) is 1000",
        ),
        (
            "grpc: received message larger than max (2000 vs. 1000)",
            InvalidImageError,
            "the request has 2000 bytes",
        ),
        (
            "Stream removed (CLIENT: Received message larger than max (5000000 vs. 4194304))",
            ServerError,
            "the server's response has 5000000 bytes, more than this client's limit of 4194304",
        ),
        (
            "Stream removed (received metadata size exceeds hard limit (30001 vs. 16384))",
            ServerError,
            "metadata of the server's response is too long",
        ),
        (
            "received metadata size exceeds hard limit (value length 30000 vs. 16384)",
            InvalidRequestError,
            "shorten the token, caller_key",
        ),
        ("the queue is full", OverloadedError, "the queue is full"),
    ],
)
def test_what_is_too_long_is_not_a_full_server(details, kind, says):
    error = error_of(Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, details), "here:1")
    assert type(error) is kind
    with pytest.raises(kind, match=says):
        raise error
