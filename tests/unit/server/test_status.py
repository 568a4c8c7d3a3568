from __future__ import annotations

import string
from collections.abc import Iterator
from urllib.parse import quote

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from resnet50_server.api.status import to_status
from resnet50_server.errors import (
    DataLoss,
    DeadlineUnreachable,
    DiskTimeout,
    DoesNotFit,
    EngineFailed,
    InvalidImage,
    InvalidRequest,
    NoClassificationHead,
    NotEnabled,
    NotNow,
    Overloaded,
    PermissionDenied,
    QueueFull,
    ServingError,
    ShuttingDown,
    SplitNotFound,
    Stalled,
    TransformMismatch,
    Unauthenticated,
    Unloading,
    VariantLoading,
    VariantNotFound,
    VariantUnhealthy,
    code_of,
)
from resnet50_server.runtime.texts import shortened

# One of each, and what its caller is told.
TOLD = [
    (Unauthenticated("TOKEN_MISSING", "send one"), "UNAUTHENTICATED", {"ErrorInfo"}),
    (PermissionDenied("token:cameras", "admin"), "PERMISSION_DENIED", {"ErrorInfo"}),
    (InvalidRequest("options.top_k", "is 0"), "INVALID_ARGUMENT", {"BadRequest"}),
    (InvalidImage("image.encoded", "is empty"), "INVALID_ARGUMENT", {"BadRequest"}),
    (VariantNotFound("options.variant", "cats", ["dogs"]), "NOT_FOUND", {"ErrorInfo"}),
    (SplitNotFound("variant", "cats", []), "NOT_FOUND", set()),
    (VariantLoading("wait"), "UNAVAILABLE", set()),
    (Overloaded("max_requests", "full", 0.25), "RESOURCE_EXHAUSTED", {"RetryInfo"}),
    (QueueFull("max_queue_size", "full", 0.25), "RESOURCE_EXHAUSTED", {"RetryInfo"}),
    (DoesNotFit("cuda:0", 5.0), "RESOURCE_EXHAUSTED", {"RetryInfo"}),
    (DataLoss("damaged"), "DATA_LOSS", set()),
    (Stalled("silent"), "DEADLINE_EXCEEDED", set()),
    (DeadlineUnreachable("too late"), "DEADLINE_EXCEEDED", set()),
    (ShuttingDown("draining"), "UNAVAILABLE", set()),
    (Unloading("variant cats goes"), "UNAVAILABLE", set()),
    (VariantUnhealthy("variant cats fails"), "UNAVAILABLE", {"ErrorInfo"}),
    (DiskTimeout("variants_dir: /nfs", 10.0), "UNAVAILABLE", set()),
    (NotEnabled("LoadVariant", "--variants-dir"), "UNIMPLEMENTED", set()),
    (NotNow("served already"), "FAILED_PRECONDITION", {"ErrorInfo"}),
    (NoClassificationHead("vectors"), "FAILED_PRECONDITION", {"ErrorInfo"}),
    (TransformMismatch("image", "a", "b", "resize 232"), "FAILED_PRECONDITION", {"ErrorInfo"}),
    (EngineFailed("secret"), "INTERNAL", set()),
    (ZeroDivisionError("secret"), "INTERNAL", set()),
]


def subclasses(kind: type) -> Iterator[type]:
    for one in kind.__subclasses__():
        yield one
        yield from subclasses(one)


def details(status: status_pb2.Status) -> dict[str, object]:
    found = {}
    for packed in status.details:
        name = packed.TypeName().removeprefix("google.rpc.")
        found[name] = getattr(error_details_pb2, name)()
        assert packed.Unpack(found[name])
    return found


def test_every_serving_error_is_in_the_table_above():
    kinds = {type(error) for error, _, _ in TOLD} - {ZeroDivisionError}
    assert set(subclasses(ServingError)) == kinds


@pytest.mark.parametrize(
    ("error", "code", "kinds"), TOLD, ids=[type(error).__name__ for error, _, _ in TOLD]
)
def test_error_becomes_its_code_with_details(error, code, kinds):
    status = to_status(error, "request-1")
    assert code_of(error) == code
    assert status.code == getattr(grpc.StatusCode, code).value[0]
    found = details(status)
    assert found.keys() == kinds | {"RequestInfo"}
    assert found["RequestInfo"].request_id == "request-1"
    if code != "INTERNAL":
        assert status.message == str(error)


def test_bad_request_names_the_field_and_the_reason():
    (violation,) = details(to_status(InvalidImage("image.raw.width", "is 0"), "x"))[
        "BadRequest"
    ].field_violations
    assert (violation.field, violation.description) == ("image.raw.width", "is 0")


@pytest.mark.parametrize("kind", [Overloaded, QueueFull])
def test_overload_says_when_to_come_back(kind):
    status = to_status(kind("max_requests", "full", 1.25), "x")
    assert details(status)["RetryInfo"].retry_delay.ToNanoseconds() == 1_250_000_000
    assert "1.250 s" in status.message


def test_unknown_variant_is_told_which_are_served():
    info = details(to_status(VariantNotFound("name", "cats", ["a", "b"]), "x"))["ErrorInfo"]
    assert (info.reason, info.domain) == ("VARIANT_NOT_FOUND", "resnet50-serving")
    assert dict(info.metadata) == {"field": "name", "served": "a, b"}


@pytest.mark.parametrize(
    ("error", "reason", "metadata"),
    [
        (Unauthenticated("TOKEN_EXPIRED", "ask for a new one"), "TOKEN_EXPIRED", {}),
        (PermissionDenied("token:cameras", "admin"), "SCOPE_MISSING", {"scope": "admin"}),
    ],
)
def test_refused_credentials_have_a_reason_for_programs(error, reason, metadata):
    info = details(to_status(error, "x"))["ErrorInfo"]
    assert (info.reason, info.domain) == (reason, "resnet50-serving")
    assert dict(info.metadata) == metadata


def test_long_name_of_an_unknown_variant_is_not_sent_back_whole():
    assert len(to_status(VariantNotFound("name", "x" * 10_000, ["a"]), "x").message) < 200


@pytest.mark.parametrize("error", [EngineFailed("secret"), KeyError("secret"), OSError("secret")])
def test_internal_error_has_a_fixed_text(error):
    status = to_status(error, "request-1")
    assert status.message == (
        "internal error; the server's log has the reason under request id request-1"
    )
    assert b"secret" not in status.SerializeToString()


def test_refused_request_is_let_go_of_with_its_error():
    """Frames of the traceback hold the image, and gRPC holds the error in a circle."""

    def refuse(image: bytes) -> None:
        try:
            raise OSError("broken")
        except OSError as error:
            raise InvalidImage("image.encoded", "is broken") from error

    with pytest.raises(InvalidImage) as refused:
        refuse(bytes(10))
    to_status(refused.value, "x")
    assert refused.value.__traceback__ is None
    assert refused.value.__cause__.__traceback__ is None


@pytest.mark.parametrize(
    "error",
    [
        NotNow("a" * 100_000),
        NotNow("é%\x00" * 100_000),
        InvalidRequest("options." + "f" * 50_000, "猫" * 50_000),
        VariantNotFound("name", "x" * 10**6, [f"{number:064}" for number in range(15_000)]),
        SplitNotFound("variant", "a", [f"{number:064}" for number in range(15_000)]),
        Unauthenticated("TOKEN_UNKNOWN", "🦊" * 50_000),
    ],
    ids=lambda error: type(error).__name__,
)
def test_no_text_is_longer_than_all_clients_take(error):
    status = to_status(error, "r" * 32)
    # As gRPC sends it: percent-encoded, and in base64 within the details.
    header = len(quote(status.message, safe=string.punctuation.replace("%", "") + " "))
    assert header <= 2048
    assert header + 4 * len(status.SerializeToString()) / 3 < 8000
    assert "characters in all)" in status.message or "more" in status.message


def test_names_in_details_are_whole():
    served = [f"variant-{number}" for number in range(1000)]
    told = details(to_status(VariantNotFound("name", "x", served), ""))["ErrorInfo"]
    names = told.metadata["served"].split(", ")
    assert len(names) > 50
    assert names == served[: len(names)]


def test_what_fits_is_not_cut():
    text = "a" * 2048
    assert to_status(NotNow(text), "").message == text
    end = "... (2049 characters in all)"
    assert shortened(text + "b") == "a" * (2048 - len(end)) + end
