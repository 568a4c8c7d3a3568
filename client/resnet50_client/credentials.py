"""Credentials of a client: certificates and a bearer token. Never shown, never logged."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from .certificates import CertificateSources, Pem
from .watched_file import WatchedFile

Token: TypeAlias = str | Callable[[], str]
"""A bearer token, or what gives the one of the moment."""
# Visible ASCII: more than RFC 6750 allows, and nothing that could end a header.
_TOKEN = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True)
class Credentials:
    """How a client speaks to its servers.

    Attributes:
        certificates: For TLS; None for plaintext.
        bearer: Gives the token of the moment; None for none.
        server_name: The name that the server's certificate is checked for; None for that of the
            address.
        insecure_token: Whether the token may leave this machine in plaintext.
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
        """Check a client's arguments; see `BaseClient`.

        Raises:
            ValueError: One is wrong, or two of them do not go together.
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
            raise ValueError(f"{named[0]}: goes with TLS, which tls=False turns off")
        if token is not None and token_file is not None:
            raise ValueError("token, token_file: give one of them")
        secure = bool(named) if tls is None else tls
        return cls(
            CertificateSources(ca, cert, key) if secure else None,
            Bearer.of(token, token_file),
            server_name,
            insecure_token,
        )

    @property
    def secure(self) -> bool:
        """Whether the client speaks TLS."""
        return self.certificates is not None

    def __repr__(self) -> str:
        parts = ["TLS" if self.certificates is not None else "plaintext"]
        parts += self.certificates.names if self.certificates is not None else ()
        parts += ["token"] if self.bearer is not None else []
        return f"{type(self).__name__}({', '.join(parts)})"


class Bearer:
    """Gives the token of the moment.

    Args:
        source: The token, what gives it, or the file that holds it.
    """

    def __init__(self, source: Token | WatchedFile) -> None:
        self._source = source
        self._last = ""
        if not callable(source):  # a function may not be able to answer yet
            self.token()

    @classmethod
    def of(cls, token: Token | None, file: str | os.PathLike[str] | None) -> Bearer | None:
        """Return what gives the token; None if there is none.

        Raises:
            ValueError: It cannot be one.
            OSError: The file cannot be read.
        """
        if file is not None:
            return cls(WatchedFile(file, "token_file"))
        return None if token is None else cls(token)

    def token(self) -> str:
        """Return the token.

        A file that cannot be read, or is empty, is being replaced: until then its last one holds.

        Raises:
            ValueError: It cannot be one.
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
        return _checked(self._source() if callable(self._source) else self._source, "token")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"


def _checked(token: object, argument: str) -> str:
    """Return a token that can be one; gRPC would show one that cannot."""
    if not isinstance(token, str):
        raise ValueError(f"{argument}: is a {type(token).__name__}, must be text")
    if not _TOKEN.fullmatch(token):
        raise ValueError(
            f"{argument}: must be visible ASCII without spaces, and not empty; give the token"
            " alone, without the word Bearer"
        )
    return token
