"""Base of both clients: their arguments and constructors."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ._addresses import DEFAULT_SERVER
from ._auth import Credentials, Token
from ._channels import Channels
from ._config import DEFAULT_TIMEOUT_S, Connection, Priority
from ._profiles import Profile
from ._retries import RetryPolicy
from ._tls import Pem
from .observers import CallObserver, Observers

Self = TypeVar("Self", bound="BaseClient")


@dataclass(eq=False)
class SharedState:
    """State that a client shares with those of `with_options`.

    Attributes:
        closed: Whether one of them was closed.
        channels: The channels; None before the first call of an `AsyncClient`.
        loop: The event loop of an `AsyncClient`.
    """

    closed: bool = False
    channels: Channels | None = None
    loop: asyncio.AbstractEventLoop | None = None


class BaseClient:
    """Base of `Client` and `AsyncClient`: everything but the calls.

    Args:
        server: "host:port" (balanced over all addresses of the name), "unix:PATH", or a list of
            "host:port" to balance over. Names are resolved when a call is made, and again while
            calls fail.
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
        token: Bearer token, sent as "authorization: Bearer ..." with each call; or a function that
            returns the current one, which is called for each attempt and must not block.
        token_file: File with the token, read again when it changes.
        server_name: Name expected in the server's certificate, if different from the address's
            host; "localhost" for unix sockets.
        insecure_token: Allow sending the token over plaintext to other machines.
        observers: Notified of each call, e.g. `OpenTelemetryObserver` of
            `resnet50_client.opentelemetry`.
        variant: Default variant of calls; None for the server's.
        metadata: Metadata that is sent with every call, e.g. {"x-tenant": "a"}.

    A client is pickled as its arguments; the copy makes connections of its own. Certificates given
    as paths are read again when their files change, and used for later calls. Keys and tokens never
    appear in messages, nor in pickles.

    Raises:
        ValueError: An argument is invalid, or the token would be sent in plaintext to another
            machine.
        OSError: A file cannot be read.
    """

    def __init__(
        self,
        server: str | Sequence[str] = DEFAULT_SERVER,
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
    ) -> None:
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
            server, timeout_s, retry, priority, credentials, caller_key, variant, metadata
        )
        self._observers = Observers(observers, self._connection.addresses)
        self._shared = SharedState()
        self._start()

    def _start(self) -> None:
        """Create the channel, if possible before the first call."""

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
        profile = Profile.named(name, profile_file)
        return cls(**{**profile.arguments(), **overrides})

    @classmethod
    def from_environment(cls: type[Self], **overrides: Any) -> Self:
        """Create a client from environment variables, which take precedence over their profile.

        Variables are RESNET50_SERVER (several separated by commas), RESNET50_PROFILE,
        RESNET50_PROFILE_FILE, and, like the arguments, RESNET50_TLS, _CA, _CERT, _KEY, _TOKEN,
        _TOKEN_FILE, _SERVER_NAME, _INSECURE_TOKEN, _PRIORITY, _CALLER_KEY and _TIMEOUT_S.

        Args:
            overrides: Arguments of the client, which take precedence.

        Raises:
            ValueError: A variable or the profile is invalid.
            OSError: A file cannot be read.
        """
        profile = Profile.of_environment()
        return cls(**{**profile.arguments(), **overrides})

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
            variant: Default variant; "" for the server's.
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
        connection = self._connection.with_defaults(**given, metadata=metadata)  # type: ignore[arg-type]
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, _connection=connection)
        other._arguments = {
            **self._arguments,
            **{name: value for name, value in given.items() if value is not None},
            "metadata": dict(connection.extra),
        }
        return other

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

    def _check_open(self) -> None:
        if self._shared.closed:
            raise RuntimeError(f"{self!r} is closed; create a new one")


def _unpickle(kind: type[BaseClient], arguments: dict[str, Any]) -> BaseClient:
    return kind(**arguments)
