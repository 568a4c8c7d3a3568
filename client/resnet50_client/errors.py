"""Errors of the SDK. gRPC errors are never raised; they are the exception's `__cause__`.

Resnet50Error
├── InvalidRequestError      (also ValueError)     an argument is invalid; do not retry
│   └── InvalidImageError                          the image is invalid: corrupt, too large, ...
├── NotFoundError            (also LookupError)    the server does not have it
│   └── VariantNotFoundError                       the server has no variant of that name
├── FailedPreconditionError                        the server's state does not allow the call
│   ├── VariantChangeError                         the variants cannot be changed as requested
│   ├── NoClassificationHeadError                  the variant computes embeddings only
│   └── TransformMismatchError                     an image was preprocessed by another transform
├── ConflictError                                  it exists, or another call changed it meanwhile
├── OverloadedError                                the server is at a limit; retry later
├── DeadlineExceededError    (also TimeoutError)   no response in time
├── UnavailableError         (also ConnectionError) no server reachable, or starting, or stopping
├── UnauthenticatedError                           credentials are missing or invalid
├── PermissionDeniedError                          credentials lack the permission
├── EmbeddingSpaceError      (also ValueError)     vectors of one call are not comparable
├── DataLossError                                  data was corrupted in transit
├── UnimplementedError                             the server does not implement this call
├── CallCancelledError                             the call was cancelled
└── ServerError                                    a server error; see the server's log
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from ._types.record import without_image

_DETAILS_KEY = "grpc-status-details-bin"
_REQUEST_ID_KEY = "x-request-id"
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


class Resnet50Error(Exception):
    """Base of all errors of this package.

    Attributes:
        message: Description of the error and what to do, mostly from the server.
        code: The gRPC status code's name, e.g. "INVALID_ARGUMENT"; None if no call was made.
        request_id: ID of the call, which servers log; None if no call was made.
        source: The image that the call or frame was about, as it was passed to the client; None
            for other calls. A pickle keeps paths only.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        request_id: str | None = None,
        source: Any = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.request_id = request_id
        self.source = source

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args, without_image(self.__dict__)

    def _set_context(self, *, request_id: str | None = None, source: Any = None) -> None:
        """Set the request's ID, unless the server returned one, and the image."""
        self.request_id = self.request_id or request_id
        self.source = source if self.source is None else self.source

    def _complete(self, text: str) -> None:
        """Append to the message, for example the number of attempts."""
        self.message += text
        self.args = (self.message, *self.args[1:])


class InvalidRequestError(Resnet50Error, ValueError):
    """An argument is invalid: an unknown value, out of range, or not what the server expects.

    Attributes:
        field: Path of the field in the request, e.g. "options.top_k"; None if unknown.
    """

    def __init__(self, message: str, *, field: str | None = None, **common: Any) -> None:
        super().__init__(message, **common)
        self.field = field


class InvalidImageError(InvalidRequestError):
    """The image is unreadable, corrupt, or exceeds a limit of the server.

    Attributes:
        max_message_bytes: The server's limit if the request exceeds it; None otherwise.
    """

    def __init__(
        self, message: str, *, max_message_bytes: int | None = None, **common: Any
    ) -> None:
        super().__init__(message, **common)
        self.max_message_bytes = max_message_bytes


class NotFoundError(Resnet50Error, LookupError):
    """The server does not have the requested object, e.g. a traffic split."""


class VariantNotFoundError(NotFoundError):
    """The server has no variant of that name, loaded or, for a load, available.

    Attributes:
        served: Names and aliases that are loaded, or available if the call was a load.
    """

    def __init__(self, message: str, *, served: tuple[str, ...] = (), **common: Any) -> None:
        super().__init__(message, **common)
        self.served = served


class FailedPreconditionError(Resnet50Error):
    """The server's state does not allow the call; the message says what must be changed."""


class VariantChangeError(FailedPreconditionError):
    """The variants cannot be changed as requested; they keep serving.

    The message gives the reason: weights that cannot be loaded, too little memory, a name that is
    in use, the default variant, or another change in progress. It also names variants that were
    evicted for a load that then failed; those are not loaded again.
    """


class NoClassificationHeadError(FailedPreconditionError):
    """The variant has no classification head; it computes embeddings only."""


class TransformMismatchError(FailedPreconditionError):
    """The image was preprocessed by another transform than the variant's.

    The variant has been replaced, or the image was preprocessed for another one. Get a new
    preprocessor, and preprocess the image again.
    """


class ConflictError(Resnet50Error):
    """The object exists already, or another call changed it at the same time."""


class OverloadedError(Resnet50Error):
    """The server is at a limit and rejected the request immediately.

    Attributes:
        retry_after_s: Seconds until the server expects capacity; None if not given.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None, **common: Any) -> None:
        super().__init__(message, **common)
        self.retry_after_s = retry_after_s


class DeadlineExceededError(Resnet50Error, TimeoutError):
    """No response within `timeout_s`, or the server predicted that."""


class UnavailableError(Resnet50Error, ConnectionError):
    """No server is reachable, or it is starting or stopping; retries have failed.

    Attributes:
        never_sent: True if no connection could be made, so that no server received the call.
    """

    def __init__(self, message: str, *, never_sent: bool = False, **common: Any) -> None:
        super().__init__(message, **common)
        self.never_sent = never_sent


class UnauthenticatedError(Resnet50Error):
    """The server requires credentials; they are missing or invalid."""


class PermissionDeniedError(Resnet50Error):
    """The credentials are valid but do not permit this call.

    Attributes:
        scope: The required scope, e.g. "admin"; None if unknown.
    """

    def __init__(self, message: str, *, scope: str | None = None, **common: Any) -> None:
        super().__init__(message, **common)
        self.scope = scope


class DataLossError(Resnet50Error):
    """Data was corrupted in transit."""


class EmbeddingSpaceError(Resnet50Error, ValueError):
    """Vectors that belong together are of different weights, so they are not comparable."""


class UnimplementedError(Resnet50Error):
    """The server does not implement this call: an older release, or another kind of server."""


class CallCancelledError(Resnet50Error):
    """The call was cancelled, e.g. because its client was closed."""


class ServerError(Resnet50Error):
    """A server error. The server's log has the reason under `request_id`."""


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
    if message == "Deadline Exceeded":  # gRPC's own words
        message = "no response within timeout_s; allow more time, or check the server's load"
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        message = f"{server}: {message}{advice}"
    details = _details(metadata.get(_DETAILS_KEY))
    return _error(code, message, metadata.get(_REQUEST_ID_KEY), details)


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
