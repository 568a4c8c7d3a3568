"""The errors of requests, and of starting the server.

Which steps of a request raise which errors:

    RPC → authenticate  Unauthenticated, PermissionDenied, InvalidRequest
        → admission     Overloaded, ShuttingDown
        → receive       InvalidRequest, InvalidImage, DataLoss, Stalled
        → validate      InvalidRequest, InvalidImage, VariantNotFound, VariantLoading
        → decode        InvalidImage, TransformMismatch
        → queue         QueueFull, DeadlineUnreachable, VariantUnhealthy
        → engine        EngineFailed, DoesNotFit

Each class has the name of its gRPC status code as `code`; a subclass inherits its parent's. A new
reason for programs is a class with `error_reason`; the SDK maps it in `resnet50_client._status`.

Errors at startup, which no client sees, are `WeightsError` (variants), `UnusableSetting` (files and
addresses in settings) and pydantic's own (settings).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Literal, TypeAlias

from resnet50_server.runtime.texts import MAX_NAMES, listed

INTERNAL = "INTERNAL"

ImageFault: TypeAlias = Literal[
    "empty",  # there is none
    "unsupported",  # another format, or pixels of another kind
    "unreadable",
    "truncated",
    "too_many_bytes",
    "too_many_pixels",
    "too_complex",  # small, but made to be expensive
    "timeout",  # longer than decode_timeout_s
    "bad_raw",  # the numbers of raw pixels do not add up
]
"""Why an image is refused, in one word that does not change: what metrics count by."""


class ServingError(Exception):
    """A request that fails. The message is for the client: field, limit, what to do.

    Attributes:
        code: Name of the gRPC status code.
        error_reason: Reason for programs, of google.rpc.ErrorInfo; "" for none.
        facts: Metadata of that ErrorInfo.
    """

    code: ClassVar[str] = INTERNAL
    error_reason: str = ""
    facts: Mapping[str, str] = MappingProxyType({})


class Unauthenticated(ServingError):
    """The token is missing, malformed, unknown or expired.

    Args:
        error_reason: For programs, e.g. "TOKEN_MISSING".
        text: Description of the problem, and what to do. Never the token.
    """

    code = "UNAUTHENTICATED"

    def __init__(self, error_reason: str, text: str) -> None:
        super().__init__(f"authorization: {text}")
        self.error_reason = error_reason


class PermissionDenied(ServingError):
    """The caller lacks the scope that the method needs.

    Args:
        caller: The caller's name.
        scope: The scope that is missing.
        has_tokens: Whether the server has tokens, which alone can have the scope "admin".
    """

    code = "PERMISSION_DENIED"
    error_reason = "SCOPE_MISSING"

    def __init__(self, caller: str, scope: str, *, has_tokens: bool = True) -> None:
        remedy = (
            "call with a token that has it"
            if has_tokens
            else "only tokens have it, and this server has none: start it with --variants-dir and"
            " --tokens-file"
        )
        super().__init__(
            f"authorization: {caller} does not have the scope {scope!r}, which this method needs;"
            f" {remedy}"
        )
        self.facts = {"scope": scope}


class InvalidRequest(ServingError):
    """A field of the request is invalid.

    Args:
        field: Path of the field in the request message, e.g. `options.top_k`.
        reason: Description of the problem, the limit, and what to do.
    """

    code = "INVALID_ARGUMENT"

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class InvalidImage(InvalidRequest):
    """The image cannot be read, or exceeds a limit.

    Args:
        field: Path of the field in the request message, e.g. `image.encoded`.
        reason: Description of the problem, the limit, and what to do.
        kind: The same in one word.
    """

    def __init__(self, field: str, reason: str, *, kind: ImageFault = "unreadable") -> None:
        super().__init__(field, reason)
        self.kind: ImageFault = kind


class VariantNotFound(ServingError):
    """No variant of that name is loaded, or can be loaded.

    Args:
        field: Path of the field that names it, e.g. `options.variant`.
        name: The requested name.
        served: Names and aliases of the variants that are in that state.
        state: The state that no variant of the name is in: "is served" or "can be loaded".
    """

    code = "NOT_FOUND"
    error_reason = "VARIANT_NOT_FOUND"

    def __init__(self, field: str, name: str, served: list[str], state: str = "is served") -> None:
        # A name may be as long as a message; the reply repeats only what helps.
        shown = repr(name[:64]) + ("…" if len(name) > 64 else "")
        there = listed(served, MAX_NAMES, ", ") or "none"
        super().__init__(f"{field}: no variant {shown} {state} here; there are: {there}")
        self.served = served
        self.facts = {"field": field, "served": ", ".join(served)}


class SplitNotFound(ServingError):
    """The variant has no traffic split.

    Args:
        field: Path of the field that names it.
        name: The variant's.
        those: The variants that have one.
    """

    code = "NOT_FOUND"

    def __init__(self, field: str, name: str, those: list[str]) -> None:
        have = f"those of {listed(those, MAX_NAMES, ', ')} are" if those else "none is"
        super().__init__(f"{field}: {name} has no traffic split; {have} set")


class VariantLoading(ServingError):
    """The variant is still being loaded."""

    code = "UNAVAILABLE"


class Overloaded(ServingError):
    """A limit of the server or of the caller is reached.

    Args:
        limit: The name of the limit that was reached, e.g. "max_requests".
        reason: The limit, its value, and the value that exceeds it.
        retry_after_s: When there may be room, in seconds from now.
    """

    code = "RESOURCE_EXHAUSTED"

    def __init__(self, limit: str, reason: str, retry_after_s: float) -> None:
        super().__init__(f"{reason}; retry in {retry_after_s:.3f} s")
        self.limit = limit
        self.retry_after_s = retry_after_s


class QueueFull(Overloaded):
    """The variant's queue is full."""


class DoesNotFit(Overloaded):
    """The device has no memory left, not even for this image alone.

    Args:
        device: Its name.
        retry_after_s: When there may be some, in seconds from now.
    """

    def __init__(self, device: str, retry_after_s: float) -> None:
        super().__init__(
            "device_memory",
            f"device_memory: {device} has no memory left to compute this image, by itself; it is"
            " for the server's operator to free some: call another server",
            retry_after_s,
        )


class TransformMismatch(ServingError):
    """The image was preprocessed by another transform than the variant's.

    Args:
        field: Path of the field with the digest of the image's transform.
        found: That digest.
        expected: Digest of the variant's transform.
        transform: The variant's transform, in one line.
    """

    code = "FAILED_PRECONDITION"
    error_reason = "TRANSFORM_MISMATCH"

    def __init__(self, field: str, found: str, expected: str, transform: str) -> None:
        shown = repr(found[:64]) + ("…" if len(found) > 64 else "")
        super().__init__(
            f"{field}: is {shown}, the variant's transform is {expected!r} ({transform}): the image"
            " was preprocessed for another variant, or the variant has been replaced; get its"
            " transform anew (GetVariant) and preprocess the image again"
        )
        self.facts = {"transform_digest": expected}


class DataLoss(ServingError):
    """The received bytes differ from the sent ones."""

    code = "DATA_LOSS"


class Stalled(ServingError):
    """The request arrived too slowly.

    A single request took longer than `receive_timeout_s` to arrive, an upload paused for
    `upload_idle_timeout_s`, or a stream was silent for `stream_idle_timeout_s`.
    """

    code = "DEADLINE_EXCEEDED"


class DeadlineUnreachable(ServingError):
    """The deadline has passed, or cannot be met.

    Args:
        text: By how much, and what to do.
        accepted: Whether it had been accepted, and decoded, before that was known.
    """

    code = "DEADLINE_EXCEEDED"

    def __init__(self, text: str, *, accepted: bool = False) -> None:
        super().__init__(text)
        self.accepted = accepted


class ShuttingDown(ServingError):
    """The server or the variant accepts no more requests.

    Args:
        reason: A clause that names the server or the variant.
        advice: Advice to the operator.
    """

    code = "UNAVAILABLE"

    def __init__(
        self, reason: str = "the server is shutting down", advice: str = "call another one"
    ) -> None:
        super().__init__(reason, advice)
        self.reason = reason

    def __str__(self) -> str:
        return "; ".join(self.args)


class Unloading(ShuttingDown):
    """The variant is being unloaded."""


class VariantUnhealthy(ShuttingDown):
    """The variant is out of service because it fails.

    Args:
        reason: A clause that names the variant and its problem.
        advice: Advice to the operator.
    """

    error_reason = "VARIANT_UNHEALTHY"

    def __init__(
        self, reason: str, advice: str = "ask for another variant, or call another server"
    ) -> None:
        super().__init__(reason, advice)


class EngineFailed(ServingError):
    """The engine failed on the batch, or the result has NaN or Inf.

    The cause is chained.
    """


class DiskTimeout(ServingError):
    """Files of variants could not be read in time.

    Args:
        source: The setting that names the files, and its value.
        timeout_s: How long they were waited for, in seconds.
    """

    code = "UNAVAILABLE"

    def __init__(self, source: str, timeout_s: float) -> None:
        super().__init__(
            f"{source} did not answer within {timeout_s:g} s: its disk hangs, or is very slow; look"
            " at the mount, then try again"
        )


class NotEnabled(ServingError):
    """The method is disabled; a setting enables it.

    Args:
        method: Its name.
        setting: The setting that asks for it.
    """

    code = "UNIMPLEMENTED"

    def __init__(self, method: str, setting: str) -> None:
        super().__init__(f"{method} is off: the server was started without {setting}")


class NotNow(ServingError):
    """The variants cannot be changed as requested; the message gives the reason.

    Args:
        reason: Why, and what to do.
        transient: Whether the same change may be possible later, though no file changes: memory, a
            disk, another change. False if it is the files that are wrong.
    """

    code = "FAILED_PRECONDITION"
    error_reason = "VARIANT_CHANGE_REFUSED"

    def __init__(self, reason: str, *, transient: bool = True) -> None:
        super().__init__(reason)
        self.transient = transient


class NoClassificationHead(ServingError):
    """A classification was requested from a variant without a classification head.

    Args:
        variant: Its name.
    """

    code = "FAILED_PRECONDITION"
    error_reason = "NO_CLASSIFICATION_HEAD"

    def __init__(self, variant: str) -> None:
        super().__init__(
            f"options.variant: {variant} has no classification head: ask for its embedding (Embed),"
            " or name a variant with categories"
        )


def code_of(error: Exception) -> str:
    """Return the name of an exception's gRPC status code; INTERNAL if it is not ours."""
    return error.code if isinstance(error, ServingError) else INTERNAL


class WeightsError(Exception):
    """Weights are missing or wrong: which file, why, and what to do."""


class UnusableSetting(Exception):
    """A setting names a file or an address that cannot be used.

    Args:
        setting: Its name.
        reason: Description of the problem, and what to do. Never a secret.
    """

    def __init__(self, setting: str, reason: str) -> None:
        super().__init__(f"{setting}: {reason}")
