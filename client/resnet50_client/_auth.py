"""Credentials of a client: certificates and a bearer token. Never shown, never logged."""

from __future__ import annotations

import asyncio
import inspect
import math
import os
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from ._tls import CertificateSources, Pem
from ._watched_file import WatchedFile
from .errors import DeadlineExceededError

Token: TypeAlias = str | Callable[[], str] | Callable[[], Awaitable[str]]
"""A bearer token, or a function that returns it; for asyncio clients also a coroutine function."""
NEEDS_ASYNC = "token: is a coroutine function, which needs AsyncClient"
# Visible ASCII: more than RFC 6750 allows, but nothing that could end a header.
_TOKEN = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, eq=False, repr=False)
class Credentials:
    """TLS and token of a client.

    Attributes:
        certificates: Certificates for TLS; None for plaintext.
        bearer: Provides the current token; None for none.
        server_name: Name expected in the server's certificate; None for the address's host.
        insecure_token: Allow sending the token over plaintext to other machines.
    """

    certificates: CertificateSources | None = None
    bearer: Bearer | None = None
    server_name: str | None = None
    insecure_token: bool = False

    @classmethod
    def of(
        cls,
        *,
        tls: bool | None = None,
        ca: Pem | None = None,
        cert: Pem | None = None,
        key: Pem | None = None,
        token: Token | None = None,
        token_file: str | os.PathLike[str] | None = None,
        server_name: str | None = None,
        insecure_token: bool = False,
    ) -> Credentials:
        """Check a client's arguments; see `Client`.

        Raises:
            ValueError: One is invalid, or two of them conflict.
            OSError: A file cannot be read.
        """
        for name, switch in (("tls", tls), ("insecure_token", insecure_token)):
            if not isinstance(switch, (bool, type(None))):  # "false" would count as True
                raise ValueError(f"{name}: is {switch!r}, must be True or False")
        if (cert is None) != (key is None):
            raise ValueError("cert, key: a client certificate needs both")
        named = [
            name
            for name, one in (("ca", ca), ("cert", cert), ("server_name", server_name))
            if one is not None
        ]
        if tls is False and named:
            raise ValueError(f"{named[0]}: requires TLS, which tls=False disables")
        if token is not None and token_file is not None:
            raise ValueError("token, token_file: pass only one of them")
        secure = bool(named) if tls is None else tls
        return cls(
            CertificateSources(ca, cert, key) if secure else None,
            Bearer.of(token, token_file),
            server_name,
            insecure_token,
        )

    @property
    def secure(self) -> bool:
        """True if the client uses TLS."""
        return self.certificates is not None

    def __repr__(self) -> str:
        parts = ["TLS" if self.certificates is not None else "plaintext"]
        parts += self.certificates.names if self.certificates is not None else ()
        parts += ["token"] if self.bearer is not None else []
        return f"{type(self).__name__}({', '.join(parts)})"


class Bearer:
    """Provides the current token.

    Args:
        source: The token, a function that returns it, or a file that contains it.
    """

    def __init__(self, source: Token | WatchedFile) -> None:
        self._source = source
        self._last = ""
        if not callable(source):  # a function may not have a token yet
            self.token()

    @classmethod
    def of(cls, token: Token | None, file: str | os.PathLike[str] | None) -> Bearer | None:
        """Create from a token or a file; None without either.

        Raises:
            ValueError: The token is invalid.
            OSError: The file cannot be read.
        """
        if file is not None:
            return cls(WatchedFile(file, "token_file"))
        return None if token is None else cls(token)

    def token(self) -> str:
        """Return the token.

        While a file is unreadable or empty, because it is being replaced, its last token is used.

        Raises:
            ValueError: The token is invalid.
        """
        if isinstance(self._source, WatchedFile):
            try:
                content = self._source.content().decode("ascii", "replace").strip()
            except OSError:
                if not self._last:
                    raise
                return self._last
            self._last = _checked(content or self._last, "token_file")
            return self._last
        token = self._source() if callable(self._source) else self._source
        if inspect.isawaitable(token):
            if inspect.iscoroutine(token):
                token.close()
            raise TypeError(NEEDS_ASYNC)
        return _checked(token, "token")

    async def token_async(self, timeout_s: float) -> str:
        """As `token`, also for a coroutine function.

        Args:
            timeout_s: Timeout of the coroutine function in seconds.

        Raises:
            ValueError: The token is invalid.
            DeadlineExceededError: The coroutine function did not return in time.
        """
        if isinstance(self._source, WatchedFile) or not callable(self._source):
            return self.token()
        token = self._source()
        if inspect.isawaitable(token):
            ends = time.monotonic() + timeout_s
            try:
                token = await asyncio.wait_for(
                    token, None if math.isinf(timeout_s) else max(timeout_s, 0.0)
                )
            except asyncio.TimeoutError:
                if time.monotonic() < ends:  # of the function itself
                    raise
                raise DeadlineExceededError(
                    "token: the coroutine function did not return within timeout_s",
                    code="DEADLINE_EXCEEDED",
                ) from None
        return _checked(token, "token")

    @property
    def asynchronous(self) -> bool:
        """Whether the source is a coroutine function."""
        return inspect.iscoroutinefunction(self._source) or inspect.iscoroutinefunction(
            getattr(self._source, "__call__", None)  # noqa: B004  an object with that method
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"


def _checked(token: object, argument: str) -> str:
    """Validate a token, because gRPC's error about an invalid one would show it."""
    if not isinstance(token, str):
        raise ValueError(f"{argument}: is a {type(token).__name__}, must be text")
    if not _TOKEN.fullmatch(token):
        raise ValueError(
            f"{argument}: must be visible ASCII without spaces, and not empty; pass only the token,"
            " without the word Bearer"
        )
    return token
