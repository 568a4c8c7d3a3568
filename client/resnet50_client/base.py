"""Base of both clients: their arguments and constructors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NoReturn, TypeVar

from .addresses import DEFAULT_SERVER
from .certificates import Pem
from .connection import DEFAULT_TIMEOUT_S, Connection, Priority
from .credentials import Credentials, Token
from .observer import CallObserver, Observers
from .profile import Profile
from .retries import RetryPolicy

Self = TypeVar("Self", bound="BaseClient")


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
        observers: Notified of each call, e.g. `resnet50_client.telemetry.OpenTelemetryObserver`.

    Certificates given as paths are read again when their files change, and used for later calls.
    Keys and tokens never appear in messages.

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
    ) -> None:
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
            server, timeout_s, retry, priority, credentials, caller_key
        )
        self._observers = Observers(observers, self._connection.addresses)
        self._closed = False
        self._start()

    def _start(self) -> None:
        """Create the channel, if possible before the first call."""

    @classmethod
    def from_profile(
        cls: type[Self],
        name: str,
        *,
        profile_file: str | os.PathLike[str] | None = None,
        retry: RetryPolicy | None = None,
        observers: Sequence[CallObserver] = (),
    ) -> Self:
        """Create a client from a table `[profiles.NAME]` of a TOML file.

        Args:
            name: Name of the profile.
            profile_file: Path of the file; None for `RESNET50_PROFILE_FILE` or the user's default,
                ~/.config/resnet50/profiles.toml (on Windows in %APPDATA%).
            retry: Policy for retrying failed calls.
            observers: Notified of each call.

        Raises:
            ValueError: The profile does not exist, or is invalid.
            OSError: A file cannot be read.
        """
        profile = Profile.named(name, profile_file)
        return cls(**profile.arguments(), retry=retry, observers=observers)

    @classmethod
    def from_environment(
        cls: type[Self],
        *,
        retry: RetryPolicy | None = None,
        observers: Sequence[CallObserver] = (),
    ) -> Self:
        """Create a client from environment variables, which take precedence over their profile.

        Variables are RESNET50_SERVER (several separated by commas), RESNET50_PROFILE,
        RESNET50_PROFILE_FILE, and, like the arguments, RESNET50_TLS, _CA, _CERT, _KEY, _TOKEN,
        _TOKEN_FILE, _SERVER_NAME, _INSECURE_TOKEN, _PRIORITY, _CALLER_KEY and _TIMEOUT_S.

        Args:
            retry: Policy for retrying failed calls.
            observers: Notified of each call.

        Raises:
            ValueError: A variable or the profile is invalid.
            OSError: A file cannot be read.
        """
        profile = Profile.of_environment()
        return cls(**profile.arguments(), retry=retry, observers=observers)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._connection)!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} cannot be pickled or copied, because it contains connections;"
            " create one in each process, for example at first use"
        )

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError(f"{self!r} is closed; create a new one")
