"""gRPC statuses, converted to the errors of the SDK."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from .errors import (
    CallCancelledError,
    ConflictError,
    DataLossError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidImageError,
    InvalidRequestError,
    NoClassificationHeadError,
    NotFoundError,
    OverloadedError,
    PermissionDeniedError,
    Resnet50Error,
    ServerError,
    TransformMismatchError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
    VariantChangeError,
    VariantNotFoundError,
)

# Keys of metadata: a status with details, and the ID of a call.
DETAILS_KEY = "grpc-status-details-bin"
REQUEST_ID_KEY = "x-request-id"
_CODES = {code.value[0]: code for code in grpc.StatusCode}
# gRPC's message if a proxy, or the server's transport, aborted a call.
_BROKEN_OFF = re.compile(r"Received RST_STREAM with error code \d+")
# gRPC's messages if no connection could be made, so that no server received the call.
_NEVER_SENT = re.compile(
    "connections to all backends failing|failed to connect to all addresses"
    "|errors resolving|DNS resolution failed"
)
# gRPC's rejection of a message that exceeds the receiver's limit: of a request by the server, or
# (CLIENT) of a response by this client.
_TOO_LONG = re.compile(r"(CLIENT: )?\w+ message larger than max \((\d+) vs\.? (\d+)\)")
# The same of metadata; "Stream removed" is about a response.
_METADATA_TOO_LONG = re.compile(r"(Stream removed \()?received metadata size exceeds hard limit")
# A longer retry delay cannot be intended, and could overflow timers.
_LONGEST_PAUSE_S = 24 * 3600.0
# Every status code that is not OK; a test walks grpc.StatusCode.
ERRORS: dict[grpc.StatusCode, type[Resnet50Error]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPreconditionError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequestError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: OverloadedError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.DATA_LOSS: DataLossError,
    grpc.StatusCode.UNIMPLEMENTED: UnimplementedError,
    grpc.StatusCode.CANCELLED: CallCancelledError,
    grpc.StatusCode.INTERNAL: ServerError,
    grpc.StatusCode.UNKNOWN: ServerError,
    grpc.StatusCode.ABORTED: ConflictError,
    grpc.StatusCode.ALREADY_EXISTS: ConflictError,
}
# Reasons of google.rpc.ErrorInfo that have a class of their own.
REASONS: dict[str, type[Resnet50Error]] = {
    "VARIANT_NOT_FOUND": VariantNotFoundError,
    "VARIANT_CHANGE_REFUSED": VariantChangeError,
    "TRANSFORM_MISMATCH": TransformMismatchError,
    "NO_CLASSIFICATION_HEAD": NoClassificationHeadError,
}


def error_of(failure: grpc.RpcError, server: str, advice: str = "") -> Resnet50Error:
    """Convert the gRPC error of a call.

    Args:
        failure: Error of a blocking or asyncio call, with code, details and trailing metadata.
        server: The server's address, for messages that lack it.
        advice: Hint what to check if no server is reachable.
    """
    code: grpc.StatusCode = failure.code()
    message: str = failure.details() or code.name
    pairs = cast("Iterable[tuple[str, Any]]", failure.trailing_metadata() or ())
    # Not dict(pairs), which fails for the Metadata of grpc.aio 1.72 and older.
    metadata = {key: value for key, value in pairs}
    if code is grpc.StatusCode.CANCELLED and message == "CANCELLED":  # gRPC's own words
        code, message = (
            grpc.StatusCode.UNAVAILABLE,
            "the server was shut down, or overloaded, before it accepted the call",
        )
    codes_of_proxies = (grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED)
    if code in codes_of_proxies and _BROKEN_OFF.search(message):
        code, message = (
            grpc.StatusCode.UNAVAILABLE,
            f"the call was aborted in transit: {message}",
        )
    # gRPC's own words; those of newer releases are "Stream removed (Deadline Exceeded)".
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and "Deadline Exceeded" in message:
        message = "no response within timeout_s; allow more time, or check the server's load"
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        message = f"{server}: {message}{advice}"
    details = _details(metadata.get(DETAILS_KEY))
    return _error(code, message, metadata.get(REQUEST_ID_KEY), details)


def ended_by_peer(failure: grpc.RpcError) -> bool:
    """Return True if a server or proxy ended the call, rather than a broken connection."""
    # Errors that gRPC generates locally have no metadata.
    return bool(failure.trailing_metadata()) or "http2 header with status" in str(failure.details())


def error_of_status(status: status_pb2.Status) -> Resnet50Error:
    """Convert the error of a frame."""
    details = _details(status.SerializeToString())
    request_id = details["RequestInfo"].request_id if "RequestInfo" in details else None
    return _error(
        _CODES.get(status.code, grpc.StatusCode.UNKNOWN), status.message, request_id, details
    )


def _error(
    code: grpc.StatusCode, message: str, request_id: str | None, details: dict[str, Any]
) -> Resnet50Error:
    common: dict[str, Any] = {"code": code.name, "request_id": request_id}
    reason, facts = "", {}
    if info := details.get("ErrorInfo"):
        reason, facts = info.reason, info.metadata
    kind = ERRORS.get(code, ServerError)
    special = REASONS.get(reason, kind)
    if issubclass(special, kind):
        kind = special
    if kind is InvalidRequestError:
        violations = details["BadRequest"].field_violations if "BadRequest" in details else ()
        field = violations[0].field if violations else None
        if field is not None and field.partition(".")[0] == "image":
            return InvalidImageError(message, field=field, **common)
        return InvalidRequestError(message, field=field, **common)
    if kind is VariantNotFoundError:
        names = tuple(name for name in facts.get("served", "").split(", ") if name)
        return VariantNotFoundError(message, served=names, **common)
    if kind is TransformMismatchError:
        message += "; a new one is returned by client.preprocessor()"
    if kind is PermissionDeniedError:
        return PermissionDeniedError(message, scope=facts.get("scope"), **common)
    if kind is UnavailableError:
        never_sent = _NEVER_SENT.search(message) is not None
        return UnavailableError(message, never_sent=never_sent, **common)
    if kind is OverloadedError:
        return _too_long(message, common) or OverloadedError(
            message, retry_after_s=_pause_s(details), **common
        )
    return kind(message, **common)


def _too_long(message: str, common: dict[str, Any]) -> Resnet50Error | None:
    """Return the error if RESOURCE_EXHAUSTED is about a message's size rather than load."""
    if too_long := _TOO_LONG.search(message):
        by_client, length, limit = too_long.groups()
        if by_client:
            return ServerError(
                f"the server's response has {length} bytes, more than this client's limit of"
                f" {limit}",
                **common,
            )
        return image_too_long(int(length), int(limit), **common)
    if too_long := _METADATA_TOO_LONG.search(message):
        if too_long[1]:
            return ServerError(
                f"the status or metadata of the server's response is too long: {message}", **common
            )
        return InvalidRequestError(
            f"metadata: exceeds the server's limit; shorten the token, caller_key or the metadata"
            f" of observers: {message}",
            field="metadata",
            **common,
        )
    return None


def image_too_long(
    length: int, limit: int, advice: str = "send a smaller or a compressed image", **common: Any
) -> InvalidImageError:
    """Return the error of an image whose request exceeds the server's limit.

    Args:
        length: Size of the request in bytes.
        limit: The server's `max_message_bytes`.
        advice: How to send it instead.
        **common: Arguments of `Resnet50Error`.
    """
    return InvalidImageError(
        f"image: the request has {length} bytes, the server's limit (max_message_bytes) is"
        f" {limit}; {advice}",
        field="image",
        max_message_bytes=limit,
        **common,
    )


def _pause_s(details: dict[str, Any]) -> float | None:
    """Return the server's retry delay in seconds; None if missing or implausible."""
    if "RetryInfo" not in details:
        return None
    delay = details["RetryInfo"].retry_delay
    pause_s = float(delay.seconds + delay.nanos / 1e9)
    return pause_s if 0 <= pause_s <= _LONGEST_PAUSE_S else None


def _details(packed: bytes | None) -> dict[str, Any]:
    """Return the known google.rpc details of a status by message name."""
    if packed is None:
        return {}
    from google.rpc import error_details_pb2  # only errors need it

    known = {"BadRequest", "RetryInfo", "ErrorInfo", "RequestInfo"}
    found: dict[str, Any] = {}
    try:
        for detail in status_pb2.Status.FromString(packed).details:
            name = detail.TypeName().rpartition(".")[2]
            if name in known:
                found[name] = getattr(error_details_pb2, name).FromString(detail.value)
    except DecodeError:
        # Details of a proxy: code and message still describe the error.
        return found
    return found
