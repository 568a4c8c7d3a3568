# Generated from _async_base_client.py by client/generate_sync.py; do not edit.
"""Base of the blocking clients: their arguments, constructors and common methods."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, TypeVar

from . import _unary, types
from ._addresses import DEFAULT_SERVER
from ._auth import Credentials, Token
from ._channel_config import ChannelConfig, Compression
from ._config import DEFAULT_TIMEOUT_S, HEALTH_POLLS, Connection, Priority
from ._health import HealthStatus
from ._retries import Backoff, RetryPolicy
from ._sync_calls import Calls, Interceptor
from ._tls import Pem
from .errors import DeadlineExceededError, NotFoundError, UnavailableError
from .observers import CallObserver, Observers

Result = TypeVar("Result")
Self = TypeVar("Self", bound="BaseClient")


class BaseClient:
    """Base of `Client` and `AdminClient`.

    A client is pickled as its arguments; the copy makes connections of its own. Certificates given
    as paths are read again when their files change, and used for later calls. Keys and tokens never
    appear in messages, nor in pickles.
    """

    def __init__(
        self,
        server: str | Sequence[str] | Callable[[], str | Sequence[str]] = DEFAULT_SERVER,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retry: RetryPolicy | None = None,
        priority: Priority = "interactive",
        caller_key: str | None = None,
        tls: bool | None = None,
        ca: Pem | None = None,
        cert: Pem | None = None,
        key: Pem | None = None,
        token: Token | None = None,
        token_file: str | os.PathLike[str] | None = None,
        server_name: str | None = None,
        insecure_token: bool = False,
        observers: Sequence[CallObserver] = (),
        variant: str | None = None,
        metadata: Mapping[str, str] | None = None,
        channel_options: Mapping[str, int | str] | None = None,
        interceptors: Sequence[Interceptor] = (),
        compression: Compression | None = None,
        wait_for_ready: bool = False,
        connections: int = 1,
    ) -> None:
        """Create a client; it connects when the first call is made.

        Args:
            server: "host:port" (balanced over all addresses of the name), "unix:PATH", or a list of
                "host:port" to balance over. gRPC resolves one name, again when a connection ends;
                the names of a list are resolved every 30 s, and again while calls fail. Or a
                function that returns such addresses, e.g. `resnet50_client.ray.RayServers`: a
                thread calls it every 2 s while calls are made, and again while they fail. Calls in
                flight stay at their server; the last addresses are kept if it fails or returns
                none; until it returns the first ones, calls wait.
            timeout_s: Timeout of a call in seconds, retries included; `math.inf` for no limit.
            retry: Policy for retrying failed calls.
            priority: "interactive", or "bulk" for calls that yield to interactive traffic.
            caller_key: Key that assigns calls in a server's traffic split: 1 to 128 printable ASCII
                characters, such as a user ID. The same key always gets the same weights. None: the
                server uses the caller's identity.
            tls: Use TLS; None means: if `ca`, `cert` or `server_name` is given. True without `ca`
                trusts the public CA certificates of gRPC (or of the file named by
                GRPC_DEFAULT_SSL_ROOTS_FILE_PATH).
            ca: CA certificates to trust: a path, or the bytes of a PEM file.
            cert: Client certificate chain for servers that require one: a path, or PEM bytes.
            key: Unencrypted private key of `cert`: a path, or PEM bytes.
            token: Bearer token, sent as "authorization: Bearer ..." with each call; or a function
                that returns the current one, for asyncio clients also a coroutine function. It is
                called for each attempt, and must not block.
            token_file: File with the token, read again when it changes.
            server_name: Name expected in the server's certificate, if different from the address's
                host; "localhost" for unix sockets.
            insecure_token: Allow sending the token over plaintext to other machines.
            observers: Notified of each call, e.g. `OpenTelemetryObserver` of
                `resnet50_client.opentelemetry`.
            variant: Default variant of calls; None for the server's.
            metadata: Metadata that is sent with every call, e.g. {"x-tenant": "a"}.
            channel_options: Options of gRPC channels, e.g. {"grpc.keepalive_time_ms": 60_000};
                they precede the SDK's own.
            interceptors: Interceptors of `grpc`, the first one outermost; they see each attempt
                of a call.
            compression: "gzip" or "deflate" for requests; encoded images do not become smaller.
            wait_for_ready: Let calls wait for a connection until their deadline instead of trying
                again; errors then do not say why there was none.
            connections: Number of connections to each server, used in turn: more than one for
                links on which one connection does not reach the bandwidth.

        Raises:
            ValueError: An argument is invalid, or the token would be sent in plaintext to another
                machine.
            TypeError: Interceptors or a token are for the other kind of client, or `server` is a
                coroutine function.
            OSError: A file cannot be read.
        """
        # For pickle; before any other variable exists.
        self._arguments = {name: value for name, value in locals().items() if name != "self"}
        credentials = Credentials.of(
            tls=tls,
            ca=ca,
            cert=cert,
            key=key,
            token=token,
            token_file=token_file,
            server_name=server_name,
            insecure_token=insecure_token,
        )
        self._connection = Connection.to(
            server,
            timeout_s,
            retry,
            priority,
            credentials,
            caller_key,
            variant,
            metadata,
            ChannelConfig.of(
                channel_options, interceptors, compression, wait_for_ready, connections
            ),
        )
        self._observers = Observers(observers, self._connection.addresses)
        self._calls = Calls(self._connection, repr(self))

    @classmethod
    def from_profile(
        cls: type[Self],
        name: str,
        *,
        profile_file: str | os.PathLike[str] | None = None,
        **overrides: Any,
    ) -> Self:
        """Create a client from a table `[profiles.NAME]` of a TOML file.

        Args:
            name: Name of the profile.
            profile_file: Path of the file; None for `RESNET50_PROFILE_FILE` or the user's default,
                ~/.config/resnet50/profiles.toml (on Windows in %APPDATA%).
            overrides: Arguments of the client, which take precedence.

        Raises:
            ValueError: The profile does not exist, or is invalid.
            OSError: A file cannot be read.
        """
        from ._profiles import Profile  # reads TOML, which few programs need

        profile = Profile.named(name, profile_file)
        return cls(**profile.arguments(**overrides))

    @classmethod
    def from_environment(cls: type[Self], **overrides: Any) -> Self:
        """Create a client from environment variables, which take precedence over their profile.

        Variables are RESNET50_SERVER (several separated by commas), RESNET50_PROFILE,
        RESNET50_PROFILE_FILE, and, like the arguments, RESNET50_TLS, _CA, _CERT, _KEY, _TOKEN,
        _TOKEN_FILE, _SERVER_NAME, _INSECURE_TOKEN, _PRIORITY, _CALLER_KEY, _TIMEOUT_S, _VARIANT,
        _COMPRESSION and _WAIT_FOR_READY.

        Args:
            overrides: Arguments of the client, which take precedence.

        Raises:
            ValueError: A variable or the profile is invalid.
            OSError: A file cannot be read.
        """
        from ._profiles import Profile

        profile = Profile.of_environment()
        return cls(**profile.arguments(**overrides))

    @classmethod
    def from_ray(
        cls: type[Self], app: str = "resnet50", *, address: str = "auto", **overrides: Any
    ) -> Self:
        """Create a client of the servers that `resnet50-server ray deploy` has deployed.

        It follows servers as they start and stop. Connects this process to the Ray cluster, unless
        it is connected.

        Args:
            app: Name of the application.
            address: Address of the cluster, e.g. "10.0.0.1:6379"; "auto" for the one of this
                machine or of RAY_ADDRESS.
            overrides: Other arguments of the client.

        Raises:
            ModuleNotFoundError: Ray is not installed; the extra `[ray]` has it.
            ConnectionError: The cluster cannot be reached.
            ValueError: An argument is invalid.
        """
        from .ray import RayServers  # Ray is large

        return cls(RayServers(app, address=address), **overrides)

    def with_options(
        self: Self,
        *,
        variant: str | None = None,
        timeout_s: float | None = None,
        retry: RetryPolicy | None = None,
        priority: Priority | None = None,
        caller_key: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Self:
        """Return a client with other defaults that shares this one's connections.

        Closing either closes both. None keeps a default.

        Args:
            variant: Default variant of calls.
            timeout_s: Timeout of a call in seconds.
            retry: Policy for retrying failed calls.
            priority: "interactive" or "bulk".
            caller_key: Key that assigns calls in a traffic split.
            metadata: Metadata of every call, in addition to this client's, e.g. an
                "x-request-id".

        Raises:
            ValueError: An argument is invalid.
        """
        given = {
            "variant": variant,
            "timeout_s": timeout_s,
            "retry": retry,
            "priority": priority,
            "caller_key": caller_key,
        }
        connection = self._connection.with_options(**given, metadata=metadata)  # type: ignore[arg-type]
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, _connection=connection)
        other._arguments = {
            **self._arguments,
            **{name: value for name, value in given.items() if value is not None},
            "metadata": connection.own_metadata(),
        }
        return other

    def list_variants(self, *, timeout_s: float | None = None) -> list[types.Variant]:
        """List all variants of the server, the default first, without their categories.

        Args:
            timeout_s: Timeout in seconds; None for the client's, `math.inf` for no limit.

        Raises:
            Resnet50Error: The call failed; see `resnet50_client.errors` for the subclasses.
        """
        from . import _variant_calls

        return self._call(_variant_calls.list_variants_call(), timeout_s)

    def get_variant(
        self, name: str | None = None, *, timeout_s: float | None = None
    ) -> types.Variant:
        """Return one variant, with its categories.

        Args:
            name: Name or alias; None for the client's default variant, or the server's.
            timeout_s: Timeout in seconds; None for the client's, `math.inf` for no limit.

        Raises:
            VariantNotFoundError: The server has no variant of that name.
            Resnet50Error: The call failed; see `resnet50_client.errors` for the subclasses.
        """
        from . import _variant_calls

        name = self._connection.variant if name is None else name
        return self._call(_variant_calls.get_variant_call(name), timeout_s)

    def health(self, service: str = "", *, timeout_s: float | None = None) -> HealthStatus:
        """Return a service's health: "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN" or "UNKNOWN".

        Args:
            service: Full name, e.g. "resnet50.v1.InferenceService"; "" for the whole server.
            timeout_s: Timeout in seconds; None for the client's, `math.inf` for no limit.

        Raises:
            Resnet50Error: The call failed; see `resnet50_client.errors` for the subclasses.
        """
        try:
            return self._call(_unary.health_call(service), timeout_s)
        except NotFoundError:
            return "SERVICE_UNKNOWN"

    def wait_until_ready(self, *, timeout_s: float = 60.0) -> None:
        """Wait until a server has loaded its variants and is ready for requests.

        Args:
            timeout_s: Timeout in seconds.

        Raises:
            DeadlineExceededError: No server was ready in time; the message has the last status.
            Resnet50Error: The health check failed; see `resnet50_client.errors`.
        """
        self._check_open()
        attempts = self._connection.attempts(timeout_s)
        connection, pauses = replace(self._connection, retry=HEALTH_POLLS), Backoff(HEALTH_POLLS)
        call, status = _unary.health_call("", wait_for_ready=False), "no connection"
        channels = self._calls.open(attempts.left_s())
        with self._observers.observe(call.method) as observation:
            while not attempts.over():
                poll = connection.attempts(attempts.left_s())
                try:
                    status = call.result(
                        self._calls.reply(channels, connection, call, poll, observation)
                    )
                except UnavailableError as error:
                    status = error.message
                except DeadlineExceededError:
                    break
                if status == "SERVING":
                    return
                self._calls.pause(channels, min(pauses.next_s(), attempts.left_s()))
            raise self._connection.not_ready(timeout_s, status)

    def close(self) -> None:
        """Close the connections; calls in flight end with CallCancelledError."""
        self._calls.close()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._connection)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        for name, other in (("token", "token_file"), ("key", "the path of its file")):
            value = self._arguments[name]
            if isinstance(value, bytes) or (name == "token" and isinstance(value, str)):
                raise TypeError(
                    f"{name}: a secret is not written into a pickle; pass {other} to"
                    f" {type(self).__name__}, which can be pickled"
                )
        return _unpickle, (type(self), self._arguments)

    def _call(
        self,
        call: _unary.SingleCall[Result],
        timeout_s: float | None,
        connection: Connection | None = None,
    ) -> Result:
        """Make one call; `connection` has its options if they differ from the client's."""
        self._check_open()
        connection = connection or self._connection
        return self._calls.call(connection, self._observers, call, timeout_s)

    def _with(
        self,
        variant: str | None = None,
        priority: Priority | None = None,
        caller_key: str | None = None,
        metadata: Mapping[str, str] | None = None,
        request_id: str | None = None,
    ) -> Connection:
        """Return the options of a call; None for the client's. Checks that the client is open."""
        self._check_open()
        return self._connection.with_options(
            variant=variant,
            priority=priority,
            caller_key=caller_key,
            metadata=metadata,
            request_id=request_id,
        )

    def _check_open(self) -> None:
        if self._calls.closed:
            raise RuntimeError(f"{self!r} is closed; create a new one")


def _unpickle(kind: type[BaseClient], arguments: dict[str, Any]) -> BaseClient:
    return kind(**arguments)
