from __future__ import annotations

import copy
import pickle
from pathlib import Path

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2

from resnet50_client import (
    InvalidImageError,
    InvalidRequestError,
    OverloadedError,
    RetryPolicy,
    SourceLostError,
    errors,
)
from resnet50_client._batches import Batches
from resnet50_client._bulk_images import BulkLimits
from resnet50_client._status import REASONS, error_of, error_of_status
from resnet50_client.errors import (
    ConflictError,
    FailedPreconditionError,
    NotFoundError,
    Resnet50Error,
    ServerError,
    UnavailableError,
)


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


@pytest.mark.parametrize("details", ["Deadline Exceeded", "Stream removed (Deadline Exceeded)"])
def test_deadline_that_grpc_reports_names_timeout_s(details):
    error = error_of(Failure(grpc.StatusCode.DEADLINE_EXCEEDED, details), "here:1")
    assert isinstance(error, errors.DeadlineExceededError)
    assert str(error).startswith("here:1: no response within timeout_s")


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


def status(code: int, reason: str = "", **metadata: str) -> status_pb2.Status:
    found = status_pb2.Status(code=code, message="told")
    if reason:
        found.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, metadata=metadata))
    return found


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (code_pb2.NOT_FOUND, NotFoundError),
        (code_pb2.FAILED_PRECONDITION, FailedPreconditionError),
        (code_pb2.ALREADY_EXISTS, ConflictError),
        (code_pb2.ABORTED, ConflictError),
    ],
)
def test_code_without_a_reason_has_its_general_class(code, kind):
    assert type(error_of_status(status(code))) is kind
    assert type(error_of_status(status(code, "OF_A_NEWER_SERVER"))) is kind


@pytest.mark.parametrize("reason", REASONS)
def test_reason_has_its_class_below_that_of_its_code(reason):
    kind = REASONS[reason]
    code = code_pb2.NOT_FOUND if issubclass(kind, NotFoundError) else code_pb2.FAILED_PRECONDITION
    assert type(error_of_status(status(code, reason))) is kind
    # A reason that does not belong to the code does not change what the code says.
    assert type(error_of_status(status(code_pb2.INTERNAL, reason))) is ServerError


def test_error_tree_is_as_documented():
    described = errors.__doc__.partition("Resnet50Error\n")[2]
    names = {line.lstrip("│├└─ ").split()[0] for line in described.splitlines() if line.strip()}
    defined = {
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, Resnet50Error)
    }
    assert names == defined - {"Resnet50Error"}


def test_errors_of_the_network_are_the_builtin_ones():
    assert issubclass(UnavailableError, ConnectionError)
    assert issubclass(errors.DeadlineExceededError, TimeoutError)
    assert issubclass(NotFoundError, LookupError)
    assert issubclass(InvalidRequestError, ValueError)
    unavailable = UnavailableError("no server is there", code="UNAVAILABLE")
    assert str(unavailable) == unavailable.message == "no server is there"
    assert unavailable.errno is None


def every_class() -> list[type[Resnet50Error]]:
    kinds = [Resnet50Error]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return [kind for kind in kinds if kind.__module__ == errors.__name__]


@pytest.mark.parametrize("kind", every_class(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("repeat", [lambda one: pickle.loads(pickle.dumps(one)), copy.copy])
def test_error_is_whole_after_a_pickle(kind, repeat):
    error = kind("told", code="UNKNOWN", request_id="7", source=Path("a.jpg"))
    back = repeat(error)
    assert type(back) is kind
    assert (str(back), back.args) == ("told", ("told",))
    assert vars(back) == vars(error)


def test_lost_source_is_whole_after_a_pickle():
    lost = pickle.loads(pickle.dumps(SourceLostError("camera 0: lost", "camera 0", 7)))
    assert (str(lost), lost.source, lost.frames) == ("camera 0: lost", "camera 0", 7)


def test_text_added_to_an_error_survives_a_pickle():
    run = Batches(BulkLimits(1.0, RetryPolicy()))
    run.fail(UnavailableError("refused", code="UNAVAILABLE"))
    back = pickle.loads(pickle.dumps(run.failure))
    text = "refused; 0 images that were read had no result"
    assert (str(back), back.message, back.args) == (text, text, (text,))


def test_fields_of_an_error_survive_a_pickle():
    for error, name in (
        (InvalidImageError("", field="image.raw", max_message_bytes=7), "max_message_bytes"),
        (OverloadedError("", retry_after_s=1.5), "retry_after_s"),
        (errors.VariantNotFoundError("", served=("a", "b")), "served"),
        (errors.PermissionDeniedError("", scope="admin"), "scope"),
        (UnavailableError("", never_sent=True), "never_sent"),
    ):
        back = pickle.loads(pickle.dumps(error))
        assert getattr(back, name) == getattr(error, name)


def test_pickle_of_an_error_has_no_image():
    with open(__file__, "rb") as file:
        for source in (file, b"x" * 10**6):
            pickled = pickle.dumps(InvalidImageError("image: is broken", source=source))
            assert len(pickled) < 1000
            assert pickle.loads(pickled).source is None


def test_absent_fields_of_an_error_are_none():
    error = InvalidRequestError("top_k: is 0")
    assert (error.code, error.field, error.request_id, error.source) == (None,) * 4
    assert errors.PermissionDeniedError("").scope is None
    assert error_of_status(status(code_pb2.INVALID_ARGUMENT)).field is None
