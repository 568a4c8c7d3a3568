"""From our errors to gRPC: code, message and google.rpc details."""

from __future__ import annotations

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from resnet50_server.errors import (
    DataLoss,
    DeadlineUnreachable,
    DiskTimeout,
    EngineFailed,
    InvalidRequest,
    NotEnabled,
    NotNow,
    Overloaded,
    PermissionDenied,
    ServingError,
    ShuttingDown,
    SplitNotFound,
    Stalled,
    Unauthenticated,
    VariantLoading,
    VariantNotFound,
    VariantUnhealthy,
    let_go,
)
from resnet50_server.runtime.texts import MAX_TEXT_BYTES, shortened

DETAILS_KEY = "grpc-status-details-bin"
REQUEST_ID_KEY = "x-request-id"
DOMAIN = "resnet50-serving"
_DETAIL_BYTES = MAX_TEXT_BYTES // 2

# The one table; a subclass has its parent's code unless it stands here itself.
CODES: dict[type[ServingError], grpc.StatusCode] = {
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    VariantNotFound: grpc.StatusCode.NOT_FOUND,
    SplitNotFound: grpc.StatusCode.NOT_FOUND,
    VariantLoading: grpc.StatusCode.UNAVAILABLE,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DataLoss: grpc.StatusCode.DATA_LOSS,
    DeadlineUnreachable: grpc.StatusCode.DEADLINE_EXCEEDED,
    Stalled: grpc.StatusCode.DEADLINE_EXCEEDED,
    ShuttingDown: grpc.StatusCode.UNAVAILABLE,
    DiskTimeout: grpc.StatusCode.UNAVAILABLE,
    NotEnabled: grpc.StatusCode.UNIMPLEMENTED,
    NotNow: grpc.StatusCode.FAILED_PRECONDITION,
    EngineFailed: grpc.StatusCode.INTERNAL,
}


def code_of(error: Exception) -> grpc.StatusCode:
    """Return the code of any exception; what is not ours is INTERNAL."""
    for kind in type(error).__mro__:
        if kind in CODES:
            return CODES[kind]
    return grpc.StatusCode.INTERNAL


def is_fault(error: Exception) -> bool:
    """Return whether an error is the server's own, so that its reason belongs into the log."""
    return code_of(error) is grpc.StatusCode.INTERNAL


def to_status(error: Exception, request_id: str) -> status_pb2.Status:
    """Return what the caller is told; the error is done with then, and is stripped of its frames.

    Texts are cut to what all clients take: the trailers of a call stay below 8 KiB.

    Args:
        error: What stopped the request. An internal fault's own text stays in the log, where it
            must have been written already.
        request_id: Connects the reply with the log.
    """
    code = code_of(error)
    message = str(error)
    if is_fault(error):
        message = f"internal error; the server's log has the reason under request id {request_id}"
    status = status_pb2.Status(code=code.value[0], message=shortened(message))
    for detail in (*_details(error), error_details_pb2.RequestInfo(request_id=request_id)):
        status.details.add().Pack(detail)
    let_go(error)
    return status


def _details(error: Exception) -> list[Message]:
    if isinstance(error, InvalidRequest):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=shortened(error.field, _DETAIL_BYTES),
            description=shortened(error.reason, _DETAIL_BYTES),
        )
        return [error_details_pb2.BadRequest(field_violations=[violation])]
    if isinstance(error, Overloaded):
        delay = Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        return [error_details_pb2.RetryInfo(retry_delay=delay)]
    if isinstance(error, VariantNotFound):
        return [
            error_details_pb2.ErrorInfo(
                reason="VARIANT_NOT_FOUND",
                domain=DOMAIN,
                metadata={"field": error.field, "served": _names(error.served)},
            )
        ]
    if isinstance(error, VariantUnhealthy):
        return [error_details_pb2.ErrorInfo(reason="VARIANT_UNHEALTHY", domain=DOMAIN)]
    if isinstance(error, Unauthenticated):
        return [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)]
    if isinstance(error, PermissionDenied):
        return [
            error_details_pb2.ErrorInfo(
                reason="SCOPE_MISSING", domain=DOMAIN, metadata={"scope": error.scope}
            )
        ]
    return []


def _names(names: list[str]) -> str:
    """Return as many names as there is room for, none of them cut."""
    text = ", ".join(names)
    if len(text) <= _DETAIL_BYTES:
        return text
    return text[: _DETAIL_BYTES + 1].rpartition(", ")[0]
