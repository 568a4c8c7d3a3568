"""Exceptions as google.rpc statuses: code, message and details."""

from __future__ import annotations

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from resnet50_server.errors import (
    INTERNAL,
    InvalidRequest,
    Overloaded,
    ServingError,
    code_of,
)
from resnet50_server.runtime.texts import MAX_TEXT_BYTES, shortened
from resnet50_server.runtime.tracebacks import clear_tracebacks

DETAILS_KEY = "grpc-status-details-bin"
DOMAIN = "resnet50-serving"
_DETAIL_BYTES = MAX_TEXT_BYTES // 2


def is_server_error(error: Exception) -> bool:
    """Return whether an error is the server's own, so that its reason is logged."""
    return code_of(error) == INTERNAL


def to_status(error: Exception, request_id: str) -> status_pb2.Status:
    """Return the status for an exception, and drop its tracebacks.

    Texts are shortened so that the trailers of a call stay below 8 KiB, which all clients accept.

    Args:
        error: Why the request failed. The text of an internal error is not sent; the caller of
            this function has logged it.
        request_id: Connects the response with the log.
    """
    code = grpc.StatusCode[code_of(error)]
    message = str(error)
    if is_server_error(error):
        message = f"internal error; the server's log has the reason under request id {request_id}"
    status = status_pb2.Status(code=code.value[0], message=shortened(message))
    for detail in (*_details(error), error_details_pb2.RequestInfo(request_id=request_id)):
        status.details.add().Pack(detail)
    clear_tracebacks(error)
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
    if isinstance(error, ServingError) and error.error_reason:
        facts = {key: _fitting(text) for key, text in error.facts.items()}
        return [
            error_details_pb2.ErrorInfo(reason=error.error_reason, domain=DOMAIN, metadata=facts)
        ]
    return []


def _fitting(text: str) -> str:
    """Return as many whole parts of a text, which commas separate, as fit."""
    if len(text) <= _DETAIL_BYTES:
        return text
    return text[: _DETAIL_BYTES + 1].rpartition(", ")[0]
