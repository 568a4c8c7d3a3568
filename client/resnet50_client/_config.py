"""Connection options of a client: addresses, balancing, timeouts, metadata."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import grpc

from ._addresses import SOCKET_SCHEMES, Server, addresses_of, function_of, is_local, split
from ._arguments import check_choice, check_name, check_request_id, check_seconds
from ._auth import Credentials
from ._channel_config import ChannelConfig
from ._frames import StreamLimits
from ._retries import Attempts, RetryPolicy
from ._status import REQUEST_ID_KEY, error_of
from ._tls import advice
from .errors import CallCancelledError, DeadlineExceededError, Resnet50Error, UnavailableError

if TYPE_CHECKING:
    from ._bulk_images import BulkLimits

DEFAULT_TIMEOUT_S = 30.0
# Of loading and unloading variants: quantizing to int8, or capturing CUDA graphs, takes minutes.
# Keepalive detects an unreachable server much earlier.
CHANGE_TIMEOUT_S = 900.0
# Polls of `wait_until_ready`: single attempts at intervals from 0.1 s to 1 s.
HEALTH_POLLS = RetryPolicy(attempts=1, initial_backoff_s=0.1, max_backoff_s=1.0)
_CALLER_KEY = re.compile(r"[ -~]{1,128}")
_METADATA_KEY = re.compile(r"[a-z0-9_.-]+")
_METADATA_VALUE = re.compile(r"[ -~]+")
_RESERVED_KEYS = {
    "authorization": "use token or token_file",
    "x-priority": "use priority",
    "x-caller-key": "use caller_key",
}
Priority: TypeAlias = Literal["interactive", "bulk"]
"""Priority of a call: bulk yields to interactive calls."""
Metadata: TypeAlias = tuple[tuple[str, str], ...]


@dataclass(frozen=True, eq=False, repr=False)
class Connection:
    """Connection options of a client.

    Attributes:
        addresses: Address of one server, or of several replicas; () if a function returns them.
        timeout_s: Default timeout of calls in seconds.
        retry: Policy for retrying failed calls.
        priority: Default priority of calls.
        credentials: TLS and token.
        caller_key: Default key for traffic splits; None: not sent.
        variant: Default variant; None for the server's.
        extra: Metadata that is sent with every call.
        request_id: ID of the calls; None for an ID of its own for each.
        channel: Settings of channels.
        function: Returns the current addresses; None if they are fixed.
    """

    addresses: tuple[str, ...]
    timeout_s: float
    retry: RetryPolicy
    priority: Priority = "interactive"
    credentials: Credentials = field(default_factory=Credentials)
    caller_key: str | None = None
    variant: str | None = None
    extra: Metadata = ()
    request_id: str | None = None
    channel: ChannelConfig = field(default_factory=ChannelConfig)
    function: Callable[[], str | Sequence[str]] | None = None

    @classmethod
    def to(
        cls,
        server: Server,
        timeout_s: float,
        retry: RetryPolicy | None,
        priority: Priority = "interactive",
        credentials: Credentials | None = None,
        caller_key: str | None = None,
        variant: str | None = None,
        metadata: Mapping[str, str] | None = None,
        channel: ChannelConfig | None = None,
    ) -> Connection:
        """Check a client's arguments.

        Raises:
            ValueError: One is invalid, or the token would be sent in plaintext to another machine.
            TypeError: `server` is a coroutine function.
        """
        credentials = credentials or Credentials()
        function = function_of(server)
        addresses = () if callable(server) else addresses_of(server)
        connection = cls(
            addresses,
            timeout_s,
            RetryPolicy(),
            credentials=credentials,
            channel=channel or ChannelConfig(),
            function=function,
        ).with_options(
            retry=retry,
            priority=priority,
            caller_key=caller_key,
            variant=variant,
            metadata=metadata,
        )
        connection.attempts(None)
        connection.server_name()
        if credentials.bearer and not (credentials.secure or credentials.insecure_token):
            for address in addresses or ("the addresses of a function",):
                if not is_local(address):
                    raise ValueError(
                        f"token: would be sent to {address} in plaintext, readable in transit;"
                        " use TLS (ca, or tls), or allow it with insecure_token"
                    )
        return connection

    def with_options(
        self,
        *,
        variant: str | None = None,
        timeout_s: float | None = None,
        retry: RetryPolicy | None = None,
        priority: Priority | None = None,
        caller_key: str | None = None,
        metadata: Mapping[str, str] | None = None,
        request_id: str | None = None,
    ) -> Connection:
        """Return a copy with other options; None keeps one, metadata are added.

        Raises:
            ValueError: One is invalid.
        """
        changes: dict[str, Any] = {}
        if variant is not None:
            check_name("variant", variant, "options.variant")
            changes["variant"] = variant
        if timeout_s is not None:
            check_seconds("timeout_s", timeout_s)
            changes["timeout_s"] = timeout_s
        if retry is not None:
            if not isinstance(retry, RetryPolicy):
                raise ValueError(
                    f"retry: is {retry!r}, must be a RetryPolicy, e.g. RetryPolicy(attempts=3)"
                )
            changes["retry"] = retry
        if priority is not None:
            check_choice("priority", priority, get_args(Priority))
            changes["priority"] = priority
        if caller_key is not None:
            if not (isinstance(caller_key, str) and _CALLER_KEY.fullmatch(caller_key)):
                raise ValueError(
                    f"caller_key: is {caller_key!r}, must be 1 to 128 printable ASCII characters"
                )
            changes["caller_key"] = caller_key
        if metadata is not None:
            extra = {**dict(self.extra), **_checked_metadata(metadata)}
            other_id = extra.pop(REQUEST_ID_KEY, None)
            request_id = other_id if request_id is None else request_id
            changes["extra"] = tuple(extra.items())
        if request_id is not None:
            check_request_id(request_id)
            changes["request_id"] = request_id
        return replace(self, **changes) if changes else self

    def own_metadata(self) -> dict[str, str]:
        """Return the metadata that the client was given, with the request ID."""
        given = dict(self.extra)
        return given if self.request_id is None else {**given, REQUEST_ID_KEY: self.request_id}

    def metadata(self, observed: Metadata = ()) -> Metadata:
        """Return the metadata of an attempt.

        Args:
            observed: The observation's: of observers, and the request ID.

        Raises:
            ValueError: The function or file of the token returned an invalid one.
        """
        bearer = self.credentials.bearer
        return self._metadata(None if bearer is None else bearer.token(), observed)

    async def metadata_async(self, observed: Metadata, timeout_s: float) -> Metadata:
        """As `metadata`; the token may come from a coroutine function.

        Args:
            observed: As for `metadata`.
            timeout_s: Timeout of the coroutine function in seconds.

        Raises:
            ValueError: The function or file of the token returned an invalid one.
            DeadlineExceededError: The coroutine function did not return in time.
        """
        bearer = self.credentials.bearer
        token = None if bearer is None else await bearer.token_async(timeout_s)
        return self._metadata(token, observed)

    def _metadata(self, token: str | None, observed: Metadata) -> Metadata:
        sent = []
        if token is not None:
            sent.append(("authorization", f"Bearer {token}"))
        if self.priority != "interactive":  # the server's default
            sent.append(("x-priority", self.priority))
        if self.caller_key is not None:
            sent.append(("x-caller-key", self.caller_key))
        return (*sent, *self.extra, *observed)

    def server_name(self) -> str | None:
        """Return the name expected in the servers' certificates; None for the address's host.

        Raises:
            ValueError: There are several hosts.
        """
        if self.credentials.server_name is not None or not self.credentials.secure:
            return self.credentials.server_name
        if len(self.addresses) == 1:
            # The name that gRPC derives from a path is in no certificate.
            return "localhost" if self.addresses[0].startswith(SOCKET_SCHEMES) else None
        hosts = {split(address)[0] for address in self.addresses}
        if len(hosts) != 1:  # none are known yet if a function returns them
            raise ValueError(
                "server_name: with TLS, several hosts, or a function, need a name that the"
                " certificates of all servers contain"
            )
        return hosts.pop()

    def error_of(self, failure: grpc.RpcError) -> Resnet50Error:
        """Convert the gRPC error of a call, with a hint if TLS may be the cause."""
        hint = advice(str(failure.details()), self.credentials.secure)
        return error_of(failure, str(self), hint)

    def attempts(self, timeout_s: float | None, repeatable: bool = True) -> Attempts:
        """Start the deadline of one call.

        Args:
            timeout_s: Timeout in seconds; None for the client's default.
            repeatable: True if it can be retried after a server may have received it.

        Raises:
            ValueError: `timeout_s` is not above 0.
        """
        return Attempts(
            self.retry,
            self.timeout_s if timeout_s is None else timeout_s,
            None if repeatable else self.timeout_s,
        )

    def stream_limits(
        self,
        window: int,
        resume_s: float | None,
        idle_timeout_s: float | None,
        frame_timeout_s: float | None,
    ) -> StreamLimits:
        """Return a stream's limits; None means the client's `timeout_s`, for frames no limit.

        Raises:
            InvalidRequestError: One is out of range.
        """
        return StreamLimits(
            window,
            self.timeout_s if resume_s is None else resume_s,
            self.timeout_s if idle_timeout_s is None else idle_timeout_s,
            math.inf if frame_timeout_s is None else frame_timeout_s,
        )

    def bulk_limits(
        self, timeout_s: float | None, ordered: bool, max_in_flight: int | None
    ) -> BulkLimits:
        """Return the limits of a bulk run; None means the client's `timeout_s`.

        Raises:
            InvalidRequestError: One is out of range.
        """
        from ._bulk_images import BulkLimits  # only bulk calls need it

        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        return BulkLimits(timeout_s, self.retry, ordered, max_in_flight)

    def unavailable(self, reason: str) -> UnavailableError:
        """Return an UnavailableError for a reason that gRPC does not detect."""
        return UnavailableError(f"{self}: {reason}", code="UNAVAILABLE")

    def closed(self) -> CallCancelledError:
        """Return the error of calls whose client is closed."""
        return CallCancelledError(
            f"{self}: the client was closed during the call", code="CANCELLED"
        )

    def cancelled(self) -> CallCancelledError:
        """Return the error of a stream that the application cancelled."""
        return CallCancelledError(f"{self}: the stream was cancelled", code="CANCELLED")

    def not_ready(self, timeout_s: float, status: str) -> DeadlineExceededError:
        """Return the error if no server became ready, with the last status."""
        return DeadlineExceededError(
            f"{self} was not ready within {timeout_s:g} s; last status: {status}. Is it running"
            " there, and has it loaded its variants?",
            code="DEADLINE_EXCEEDED",
        )

    def __str__(self) -> str:
        if self.function is not None:
            return f"{getattr(self.function, '__qualname__', type(self.function).__name__)}()"
        return ", ".join(self.addresses)


def _checked_metadata(metadata: Mapping[str, str]) -> Mapping[str, str]:
    """Return valid metadata.

    Raises:
        ValueError: The metadata are invalid.
    """
    if not isinstance(metadata, Mapping):
        raise ValueError(f"metadata: is {metadata!r}, must map keys to values")
    for key, value in metadata.items():
        _check_metadata(key, value)
    return metadata


def _check_metadata(key: object, value: object) -> None:
    if not (isinstance(key, str) and _METADATA_KEY.fullmatch(key)) or key.endswith("-bin"):
        raise ValueError(
            f"metadata: the key {key!r} must be of a-z, 0-9, '_', '.' and '-', and not end with"
            " '-bin'"
        )
    if key.startswith("grpc-") or key in _RESERVED_KEYS:
        advice = _RESERVED_KEYS.get(key, "it is gRPC's")
        raise ValueError(f"metadata: {key!r} cannot be set: {advice}")
    if not (isinstance(value, str) and _METADATA_VALUE.fullmatch(value)):
        raise ValueError(f"metadata: the value of {key!r} must be printable ASCII characters")
