"""Arguments of both clients: addresses, timeouts, credentials."""

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
        server: "host:port" (all addresses behind the name are used, in turn), "unix:PATH", or a
            list of "host:port" to balance over. Names are looked up when a call is made, and again
            while calls fail.
        timeout_s: How long a call may take, in seconds, retries included; `math.inf` for no limit.
        retry: When a failed call is made again.
        priority: "interactive", or "bulk" for calls that may wait while others are in a hurry.
        caller_key: Who calls, to a server with a traffic split: 1 to 128 printable ASCII
            characters, such as a user's id. The same key always gets the same weights. None: who
            the server takes the caller to be.
        tls: Whether to speak TLS; None means: if `ca`, `cert` or `server_name` is given. True
            without `ca` trusts the public authorities that gRPC comes with (or those of the file
            that GRPC_DEFAULT_SSL_ROOTS_FILE_PATH names).
        ca: The authorities to trust: a path, or the bytes of a PEM file.
        cert: Certificate of the client and those above it, for servers that want one; as `ca`.
        key: Its private key, not encrypted; as `ca`.
        token: Is sent as "authorization: Bearer ..." with each call; or a function that returns the
            one of the moment, which is asked at each attempt and must not block.
        token_file: A file that holds the token, read again when it changes.
        server_name: The name to find in the server's certificate, if it is not that of the address;
            "localhost" for unix sockets.
        insecure_token: Allow the token to leave this machine in plaintext.
        observers: Are told of each call, e.g. `resnet50_client.telemetry.OpenTelemetryObserver`.

    Certificates that were given as paths are read again when their files change, and used for calls
    made from then on. Neither keys nor tokens are ever shown in a message.

    Raises:
        ValueError: An argument is wrong, or the token would leave this machine in plaintext.
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
        """Connect, if that can be done already."""

    @classmethod
    def from_profile(
        cls: type[Self],
        name: str,
        *,
        profile_file: str | os.PathLike[str] | None = None,
        retry: RetryPolicy | None = None,
        observers: Sequence[CallObserver] = (),
    ) -> Self:
        """Return a client as a table `[profiles.NAME]` of a TOML file describes it.

        Args:
            name: Of the profile.
            profile_file: Where it stands; None for `RESNET50_PROFILE_FILE` or the user's own,
                ~/.config/resnet50/profiles.toml (on Windows in %APPDATA%).
            retry: As for the class.
            observers: As for the class.

        Raises:
            ValueError: There is no such profile, or something in it is wrong.
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
        """Return a client as the environment describes it, on top of the profile that it names.

        Names are RESNET50_SERVER (several separated by commas), RESNET50_PROFILE and
        RESNET50_PROFILE_FILE, and, as the arguments, RESNET50_TLS, _CA, _CERT, _KEY, _TOKEN,
        _TOKEN_FILE, _SERVER_NAME, _INSECURE_TOKEN, _PRIORITY, _CALLER_KEY and _TIMEOUT_S.

        Args:
            retry: As for the class.
            observers: As for the class.

        Raises:
            ValueError: Something in it is wrong.
            OSError: A file cannot be read.
        """
        profile = Profile.of_environment()
        return cls(**profile.arguments(), retry=retry, observers=observers)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._connection)!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} can be neither pickled nor copied, since it holds connections;"
            " make one in each process, for example when it is first used there"
        )

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError(f"{self!r} is closed; make a new one")
