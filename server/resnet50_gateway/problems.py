"""Failed requests, as problem details (RFC 9457)."""

from __future__ import annotations

import json
from contextlib import suppress
from http import HTTPStatus
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from starlette.responses import Response

PROBLEM_JSON = "application/problem+json"
# HTTP's statuses of gRPC's codes, as google.rpc.Code documents them.
HTTP_STATUS = {
    "CANCELLED": 499,
    "UNKNOWN": 500,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 500,
    "UNAUTHENTICATED": 401,
}
DETAILS_KEY = "grpc-status-details-bin"
# gRPC's own words for a server that is not there, or is gone.
_UNREACHABLE = (
    "connections to all backends failing",
    "failed to connect to all addresses",
    "Stream removed",
    "Socket closed",
    "recvmsg:",
    "DNS resolution failed",
)
_CODES = {code.value[0]: code.name for code in grpc.StatusCode}


class ClientDisconnected(Exception):
    """The client has closed its connection before its response."""


class Problem(Exception):
    """A request that fails.

    Args:
        code: Name of the gRPC status code.
        message: For the client, in one line: field, limit, what to do.
        field: The part of the request that is wrong.
        limit: The limit that it exceeds.
        reason: For programs, such as "TOKEN_MISSING".
        status: HTTP's status; by default that of `code`.
        retry_after_s: When a retry may succeed, in seconds.
        details: As the server sent them.
        served: The variants that are served, if another one was asked for.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        field: str | None = None,
        limit: int | float | None = None,
        reason: str | None = None,
        status: int | None = None,
        retry_after_s: float | None = None,
        details: tuple[Any, ...] = (),
        served: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field
        self.limit = limit
        self.reason = reason
        self.status = HTTP_STATUS[code] if status is None else status
        self.retry_after_s = retry_after_s
        self.details = details
        self.served = served

    def to_json(self) -> dict[str, Any]:
        """Return it as an error within a response: of an image of a batch, or of a frame."""
        members = {
            "code": self.code,
            "message": self.message,
            "field": self.field,
            "limit": self.limit,
            "reason": self.reason,
            "served": self.served,
            "retryAfterS": self.retry_after_s,
        }
        return {name: value for name, value in members.items() if value is not None}

    def headers(self) -> dict[str, str]:
        """Return the headers that belong to it."""
        headers = {"cache-control": "no-store"}
        if self.retry_after_s is not None:
            headers["retry-after"] = str(max(1, round(self.retry_after_s)))
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers

    def response(self, request_id: str) -> Response:
        """Return it as problem details.

        Args:
            request_id: Connects the response with the server's log.
        """
        members = self.to_json()
        content = {
            "type": "about:blank",
            "title": _title(self.status),
            "status": self.status,
            "detail": members.pop("message"),
            **members,
            "requestId": request_id,
        }
        return Response(
            json.dumps(content),
            self.status,
            headers=self.headers(),
            media_type=PROBLEM_JSON,
        )


def invalid(field: str, reason: str, *, limit: int | float | None = None) -> Problem:
    """Return the problem of a field that is wrong.

    Args:
        field: The query parameter, header, form field or member of the JSON.
        reason: Description of the problem, and what to do.
        limit: The limit that it exceeds.
    """
    return Problem("INVALID_ARGUMENT", f"{field}: {reason}", field=field, limit=limit)


def problem_of(error: grpc.aio.AioRpcError) -> Problem:
    """Return the problem of a call that a server has failed, with the server's details."""
    message = error.details() or ""
    status = status_pb2.Status(code=error.code().value[0], message=message)
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            with suppress(DecodeError):  # of a proxy; code and text are there
                status = status_pb2.Status.FromString(value)
    if error.code() is grpc.StatusCode.UNAVAILABLE and message.startswith(_UNREACHABLE):
        status.message = f"server: does not respond, see whether it is running; gRPC: {message}"
    return problem_of_status(status)


def problem_of_status(status: Any) -> Problem:
    """Return the problem of a google.rpc.Status."""
    field = reason = served = None
    retry_after_s = None
    for detail in status.details:
        bad_request = error_details_pb2.BadRequest()
        info = error_details_pb2.ErrorInfo()
        retry = error_details_pb2.RetryInfo()
        try:
            if detail.Unpack(bad_request) and bad_request.field_violations:
                field = bad_request.field_violations[0].field
            elif detail.Unpack(info):
                reason = info.reason
                field = info.metadata.get("field", field)
                served = info.metadata.get("served")
            elif detail.Unpack(retry):
                retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
        except DecodeError:
            continue
    return Problem(
        _CODES.get(status.code, "UNKNOWN"),
        status.message,
        field=field,
        reason=reason,
        retry_after_s=retry_after_s,
        details=tuple(status.details),
        served=served,
    )


def _title(status: int) -> str:
    return "Client Closed Request" if status == 499 else HTTPStatus(status).phrase
