"""How a client reaches its servers: addresses, balancing, retries, deadlines."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Literal, TypeAlias, get_args

import grpc

from . import errors
from .addresses import addresses_of, is_local, split
from .arguments import check_seconds
from .certificates import advice
from .credentials import Credentials
from .errors import DeadlineExceededError, OverloadedError, Resnet50Error, UnavailableError

DISTRIBUTION = "resnet50-serving"
DEFAULT_TIMEOUT_S = 30.0
# Of loading and unloading variants: to make int8 of float weights, or to capture a GPU's graphs,
# takes minutes. A server that is gone is noticed by keepalive long before.
CHANGE_TIMEOUT_S = 900.0
HEALTH_POLL_S = 0.1
# Below some milliseconds gRPC may lose a retry, and the call then waits for its deadline or for
# ever (grpc/grpc#41036, open as of grpcio 1.85).
SHORTEST_BACKOFF_S = 0.01
# A peer that is silent for so long is sent a ping. What TCP has not delivered within 8 s, pings too,
# ends the connection (TCP_USER_TIMEOUT): behind a dead link calls go to another server after 23 s.
# Servers refuse callers that ping more often than every 10 s.
KEEPALIVE_S, KEEPALIVE_TIMEOUT_S = 15, 8
# To answer a ping a peer has longer: on a slow link it waits behind the images that are being sent.
PING_TIMEOUT_S = 20
# gRPC cannot count further than some centuries.
LONGEST_S = 365 * 24 * 3600.0
_CALLER_KEY = re.compile(r"[ -~]{1,128}")
Priority: TypeAlias = Literal["interactive", "bulk"]
Metadata: TypeAlias = tuple[tuple[str, str], ...]


# What gRPC may make again by itself: not what changes variants, whose next attempt would go to
# another server and leave the first one as it is, perhaps changed, perhaps still at it; nor
# streams, whose answers it would have to undo; those are resumed frame by frame. Uploads are made
# again here: gRPC (1.85) loses chunks of a call that is refused while it is still being sent, so
# that its next attempt is the wrong image (docs/adr/0006-balancing-by-grpc.md).
REPEATABLE = [
    {"service": "resnet50.v1.InferenceService", "method": "Classify"},
    {"service": "resnet50.v1.InferenceService", "method": "Embed"},
    {"service": "resnet50.v1.VariantService", "method": "ListVariants"},
    {"service": "resnet50.v1.VariantService", "method": "GetVariant"},
    {"service": "grpc.health.v1.Health"},
]


@dataclass(frozen=True)
class RetryPolicy:
    """When a failed call is made again, by itself and within its deadline.

    An image's answer is the same whenever it is computed, so repeating a call is safe.

    Attributes:
        attempts: How often a call is made in all while no server can be reached (UNAVAILABLE),
            each time at the next address; 1 to 5, gRPC's own limit. 1 means no retry.
        initial_backoff_s: About how long the first pause is, 0.01 at least; each one is twice the
            one before.
        max_backoff_s: How long a pause is at most.
        overload_attempts: How often a call is made in all while servers are full
            (RESOURCE_EXHAUSTED), each time after the pause that the server asks for. 1, the
            default, means no retry: sending more to a full server is for callers to decide.
    """

    attempts: int = 4
    initial_backoff_s: float = 0.1
    max_backoff_s: float = 2.0
    overload_attempts: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.attempts <= 5:
            raise ValueError(f"attempts: is {self.attempts}, must be 1 to 5")
        if self.overload_attempts < 1:
            raise ValueError(f"overload_attempts: is {self.overload_attempts}, must be 1 or more")
        if not SHORTEST_BACKOFF_S <= self.initial_backoff_s <= self.max_backoff_s:
            raise ValueError(
                f"initial_backoff_s: is {self.initial_backoff_s}, must be {SHORTEST_BACKOFF_S} or"
                " more, and at most max_backoff_s"
            )


@dataclass(frozen=True)
class Connection:
    """What a client was told about its servers.

    Attributes:
        addresses: Of one server, or of several equal ones.
        timeout_s: Deadline of calls that name none.
        retry: When a failed call is made again.
        priority: Of calls that name none.
        credentials: Whether TLS is spoken, and who calls.
        caller_key: Who that is to traffic splits, of calls that name nobody; None: not said.
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
            ValueError: One is wrong, or the token would leave this machine in clear text.
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
                        f"token: would go to {address} in clear text, for all on the way to read;"
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

    def attempts(self, timeout_s: float | None) -> Attempts:
        """Start the clock of one call; `timeout_s` None means the client's default."""
        return Attempts(self.retry, self.timeout_s if timeout_s is None else timeout_s)

    def not_ready(self, timeout_s: float, seen: str) -> DeadlineExceededError:
        """Say that no server became ready, and what was seen of it last."""
        return DeadlineExceededError(
            f"{self} was not ready within {timeout_s:g} s; seen last: {seen}. Is it running there,"
            " and has it loaded its variants?",
            code="DEADLINE_EXCEEDED",
        )

    def __str__(self) -> str:
        return ", ".join(self.addresses)


def channel_options(retry: RetryPolicy) -> list[tuple[str, int | str]]:
    """Return a channel's options: round robin, retries, keepalive."""
    config: dict[str, object] = {
        "loadBalancingConfig": [{"round_robin": {}}],
        # After 500 failures more than successes retries stop: they would multiply the load of
        # servers that come back. One of several that dies with all its calls is no reason yet.
        "retryThrottling": {"maxTokens": 1000, "tokenRatio": 1.0},
    }
    if retry.attempts > 1:
        config["methodConfig"] = [
            {
                "name": REPEATABLE,
                "retryPolicy": {
                    "maxAttempts": retry.attempts,
                    "initialBackoff": f"{retry.initial_backoff_s:.3f}s",
                    "maxBackoff": f"{retry.max_backoff_s:.3f}s",
                    "backoffMultiplier": 2,
                    # CANCELLED, unless it is the caller's own wish, is gRPC's word for calls that
                    # a server had not yet taken up when it shut down (grpc/grpc#41785).
                    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
                },
            }
        ]
    return [
        ("grpc.service_config", json.dumps(config)),
        ("grpc.service_config_disable_resolution", 1),  # no TXT look-ups for another one
        # http_proxy is for the web; gRPC would send even calls to localhost through it.
        ("grpc.enable_http_proxy", 0),
        ("grpc.enable_retries", int(retry.attempts > 1)),
        # A call is kept for its retry only up to this length; gRPC's default of 256 KiB would
        # silently leave most photographs without one.
        ("grpc.per_rpc_retry_buffer_size", 128 * 2**20),
        ("grpc.max_send_message_length", -1),  # the server's limit decides, and says so
        ("grpc.primary_user_agent", f"{DISTRIBUTION}/{version(DISTRIBUTION)}"),
        # A server that restarts is found again soon.
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


class Attempts:
    """The deadline of one call, and whether it is made again.

    Args:
        retry: The client's policy.
        timeout_s: For all attempts together; `math.inf` for no deadline.

    Raises:
        ValueError: `timeout_s` is not above 0.
    """

    def __init__(self, retry: RetryPolicy, timeout_s: float) -> None:
        check_seconds("timeout_s", timeout_s)
        self._overload_left = retry.overload_attempts
        self._upload_left = retry.attempts
        self._backoff = Backoff(retry)
        self._deadline = time.monotonic() + timeout_s

    def left_s(self) -> float:
        """Return the time that is left, in seconds; a little even when there is none."""
        return max(1e-3, self._deadline - time.monotonic())

    def over(self) -> bool:
        """Return whether no time is left."""
        return time.monotonic() >= self._deadline

    def grpc_timeout(self) -> float | None:
        """Return the same as gRPC takes it: None for no deadline."""
        left_s = self.left_s()
        return None if left_s > LONGEST_S else left_s

    def pause_s(self, error: Resnet50Error, *, of_upload: bool = False) -> float | None:
        """Return how long to wait before the next attempt; None if there is none to make.

        Args:
            error: How this one failed.
            of_upload: Whether the call is one that gRPC does not make again by itself.
        """
        pause_s = None
        if isinstance(error, OverloadedError):
            self._overload_left -= 1
            pause_s = error.retry_after_s if self._overload_left else None
        elif isinstance(error, UnavailableError) and of_upload:
            self._upload_left -= 1
            pause_s = self._backoff.next_s() if self._upload_left else None
        if pause_s is None or time.monotonic() + pause_s >= self._deadline:
            return None
        return pause_s


class Backoff:
    """The pauses between attempts, each about twice the one before.

    Args:
        retry: Says the first and the longest.
    """

    def __init__(self, retry: RetryPolicy) -> None:
        self._retry = retry
        self._next_s = retry.initial_backoff_s

    def next_s(self) -> float:
        """Return the next pause, in seconds; not the same for all callers of a server."""
        pause_s = self._next_s * random.uniform(0.8, 1.2)
        self._next_s = min(2 * self._next_s, self._retry.max_backoff_s)
        return pause_s


class Resumption:
    """Whether a broken stream is opened again, and after which pause.

    Args:
        connection: The client's; its retry policy gives the pauses.
        resume_s: How long no server may be reached, in seconds; None for the client's `timeout_s`,
            0 for not at all.
    """

    def __init__(self, connection: Connection, resume_s: float | None) -> None:
        self._resume_s = connection.timeout_s if resume_s is None else resume_s
        self._retry = connection.retry
        self._failing_since: float | None = None
        self._backoff = Backoff(self._retry)

    def progress(self) -> None:
        """Say that an answer came."""
        self._failing_since = None

    def pause_s(self, error: Resnet50Error) -> float | None:
        """Return how long to wait before the stream is opened again; None if it is not."""
        if not isinstance(error, UnavailableError):
            return None
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since, self._backoff = now, Backoff(self._retry)
        if now - self._failing_since >= self._resume_s:
            return None
        return self._backoff.next_s()
