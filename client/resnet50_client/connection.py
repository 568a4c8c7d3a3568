"""How a client reaches its servers: addresses, balancing, deadlines, metadata."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Literal, TypeAlias, get_args

import grpc

from . import errors
from .addresses import addresses_of, is_local, split
from .certificates import advice
from .credentials import Credentials
from .errors import CallCancelledError, DeadlineExceededError, Resnet50Error, UnavailableError
from .frames import StreamLimits
from .retries import Attempts, RetryPolicy

DISTRIBUTION = "resnet50-serving"
DEFAULT_TIMEOUT_S = 30.0
# Of loading and unloading variants: to make int8 of float weights, or to capture a GPU's graphs,
# takes minutes. A server that is gone is noticed by keepalive long before.
CHANGE_TIMEOUT_S = 900.0
# How `wait_until_ready` asks: each time once, after a pause of 0.1 s at first and 1 s in the end.
HEALTH_POLLS = RetryPolicy(attempts=1, initial_backoff_s=0.1, max_backoff_s=1.0)
# A peer that is silent for so long is sent a ping. If TCP does not deliver what is sent, pings too,
# within 8 s, the connection ends (TCP_USER_TIMEOUT): behind a dead link calls go to another server
# after 23 s. Servers refuse callers that ping more often than every 10 s.
KEEPALIVE_S, KEEPALIVE_TIMEOUT_S = 15, 8
# To answer a ping a peer has longer: on a slow link it waits behind the images that are being sent.
PING_TIMEOUT_S = 20
_CALLER_KEY = re.compile(r"[ -~]{1,128}")
Priority: TypeAlias = Literal["interactive", "bulk"]
Metadata: TypeAlias = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Connection:
    """Connection arguments of a client.

    Attributes:
        addresses: Of one server, or of several equal ones.
        timeout_s: Deadline of calls that name none.
        retry: When a failed call is made again.
        priority: Of calls that name none.
        credentials: Whether TLS is spoken, and who calls.
        caller_key: Caller for traffic splits, unless a call names one; None: not sent.
    """

    addresses: tuple[str, ...]
    timeout_s: float
    retry: RetryPolicy
    priority: Priority = "interactive"
    credentials: Credentials = field(default_factory=Credentials)
    caller_key: str | None = None

    @classmethod
    def to(
        cls,
        server: str | Sequence[str],
        timeout_s: float,
        retry: RetryPolicy | None,
        priority: Priority = "interactive",
        credentials: Credentials | None = None,
        caller_key: str | None = None,
    ) -> Connection:
        """Check a client's arguments.

        Raises:
            ValueError: One is wrong, or the token would leave this machine in plaintext.
        """
        credentials = credentials or Credentials()
        addresses = addresses_of(server)
        connection = cls(addresses, timeout_s, retry or RetryPolicy(), credentials=credentials).of(
            priority, caller_key
        )
        connection.attempts(None)
        connection.server_name()
        if credentials.bearer and not (credentials.secure or credentials.insecure_token):
            for address in addresses:
                if not is_local(address):
                    raise ValueError(
                        f"token: would go to {address} in plaintext, for all on the way to read;"
                        " use TLS (ca, or tls), or allow it with insecure_token"
                    )
        return connection

    def of(self, priority: Priority | None = None, caller_key: str | None = None) -> Connection:
        """Return the same for calls that name a priority or a caller; None leaves either.

        Raises:
            ValueError: There is no such priority, or the key is none.
        """
        if priority is None and caller_key is None:
            return self
        if priority is not None and priority not in get_args(Priority):
            raise ValueError(
                f"priority: is {priority!r}, must be one of {', '.join(get_args(Priority))}"
            )
        if caller_key is not None and not (
            isinstance(caller_key, str) and _CALLER_KEY.fullmatch(caller_key)
        ):
            raise ValueError(
                f"caller_key: is {caller_key!r}, must be 1 to 128 printable ASCII characters"
            )
        return replace(
            self, priority=priority or self.priority, caller_key=caller_key or self.caller_key
        )

    def metadata(self, observed: Metadata = ()) -> Metadata:
        """Return what goes with a call besides its request; asked for at each attempt.

        Args:
            observed: What observers have added.

        Raises:
            ValueError: What gives the token gave none.
        """
        sent = []
        if self.credentials.bearer is not None:
            sent.append(("authorization", f"Bearer {self.credentials.bearer.token()}"))
        if self.priority != "interactive":  # which is what servers take a call for
            sent.append(("x-priority", self.priority))
        if self.caller_key is not None:
            sent.append(("x-caller-key", self.caller_key))
        return (*sent, *observed)

    def server_name(self) -> str | None:
        """Return the name that the servers' certificates are checked for; None for the address's.

        Raises:
            ValueError: Several names would have to be.
        """
        if self.credentials.server_name is not None or not self.credentials.secure:
            return self.credentials.server_name
        if len(self.addresses) == 1:
            # No certificate holds the name that gRPC makes of a path.
            return "localhost" if self.addresses[0].startswith("unix") else None
        hosts = {split(address)[0] for address in self.addresses}
        if len(hosts) > 1:
            raise ValueError(
                "server_name: with TLS, a list of several hosts needs a name that is in the"
                " certificates of all"
            )
        return hosts.pop()

    def error_of(self, failure: grpc.RpcError) -> Resnet50Error:
        """Return what a failed call is called here; says what to check if TLS could be why."""
        hint = advice(str(failure.details()), self.credentials.secure)
        return errors.error_of(failure, str(self), hint)

    def attempts(self, timeout_s: float | None, repeatable: bool = True) -> Attempts:
        """Start the clock of one call.

        Args:
            timeout_s: In seconds; None for the client's default.
            repeatable: Whether it may be made again although a server may have received it.

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

    def unavailable(self, reason: str) -> UnavailableError:
        """Return the error of servers that cannot be used, for a reason that gRPC does not see."""
        return UnavailableError(f"{self}: {reason}", code="UNAVAILABLE")

    def closed(self) -> CallCancelledError:
        """Return what calls end with whose client is closed."""
        return CallCancelledError(
            f"{self}: the client was closed during the call", code="CANCELLED"
        )

    def not_ready(self, timeout_s: float, seen: str) -> DeadlineExceededError:
        """Say that no server became ready, and what was seen of it last."""
        return DeadlineExceededError(
            f"{self} was not ready within {timeout_s:g} s; seen last: {seen}. Is it running there,"
            " and has it loaded its variants?",
            code="DEADLINE_EXCEEDED",
        )

    def __str__(self) -> str:
        return ", ".join(self.addresses)


def channel_options() -> list[tuple[str, int | str]]:
    """Return a channel's options: round robin, keepalive, no retries of gRPC's own."""
    config: dict[str, object] = {"loadBalancingConfig": [{"round_robin": {}}]}
    return [
        ("grpc.service_config", json.dumps(config)),
        ("grpc.service_config_disable_resolution", 1),  # no TXT look-ups for another one
        # http_proxy is for the web; gRPC would send even calls to localhost through it.
        ("grpc.enable_http_proxy", 0),
        # The SDK makes them itself, within the deadline (docs/adr/0026-retries-in-the-sdk.md).
        ("grpc.enable_retries", 0),
        ("grpc.max_send_message_length", -1),  # the server's limit decides, and says so
        ("grpc.primary_user_agent", f"{DISTRIBUTION}/{version(DISTRIBUTION)}"),
        # A server that restarts is found again soon, and one that has moved behind its name.
        ("grpc.dns_min_time_between_resolutions_ms", 1_000),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        # A peer that vanished without a word is noticed, also between calls.
        ("grpc.keepalive_time_ms", 1000 * KEEPALIVE_S),
        ("grpc.keepalive_timeout_ms", 1000 * KEEPALIVE_TIMEOUT_S),
        # Without it a ping has a minute all the same (gRPC 1.85; not in its documents).
        ("grpc.http2.ping_timeout_ms", 1000 * PING_TIMEOUT_S),
        ("grpc.keepalive_permit_without_calls", 1),
        # Without it only two are sent while a call waits, and then one a minute.
        ("grpc.http2.max_pings_without_data", 0),
    ]
