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

from typing import Any

from ._types.record import without_image


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
