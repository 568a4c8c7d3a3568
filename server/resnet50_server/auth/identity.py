"""Who calls: the name that quotas are counted under, and what the caller may do."""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import unquote

from resnet50_server.errors import PermissionDenied, Unauthenticated

from .tokens import Tokens

INFER = "infer"
ADMIN = "admin"

# Ours are 48 characters long; whoever brings their own has room.
MAX_TOKEN_LENGTH = 512
# What RFC 6750 allows after "Bearer".
_BEARER = re.compile(r"bearer +([A-Za-z0-9._~+/-]+=*)", re.IGNORECASE)
# gRPC's names for what a verified certificate says, best first. Each may hold several values.
_NAMES = ("peer_spiffe_id", "peer_uri", "peer_dns", "x509_common_name")


@dataclass(frozen=True)
class Caller:
    """Who makes a call.

    Attributes:
        name: Stable between calls, e.g. "token:cameras" or "address:10.0.0.7".
        scopes: What it may do: "infer", "admin".
    """

    name: str
    scopes: frozenset[str]

    def require(self, scope: str) -> None:
        """Raise `PermissionDenied` unless the caller has `scope`."""
        if scope not in self.scopes:
            raise PermissionDenied(self.name, scope)


class Authenticator:
    """Tells callers apart.

    With tokens, every call needs one, also over a connection with a client certificate; it gives
    the name and the scopes. Without, everybody whom the listeners let in may infer and nobody may
    administer.

    Args:
        tokens: The tokens that are taken; None to ask for none.
        now: Tells the time, in Unix seconds.
    """

    def __init__(self, tokens: Tokens | None, now: Callable[[], float] = time.time) -> None:
        self._tokens = tokens
        self._now = now

    def authenticate(
        self,
        metadata: Sequence[tuple[str, str | bytes]],
        peer: str,
        auth_context: Mapping[str, Iterable[bytes]],
    ) -> Caller:
        """Return who makes a call.

        Args:
            metadata: The call's.
            peer: As gRPC names it, e.g. "ipv4:10.0.0.7:51234".
            auth_context: As gRPC gives it: what is known of the connection.

        Raises:
            Unauthenticated: A token is needed, and there is none or not a valid one.
        """
        if self._tokens is not None:
            return self._bearer(self._tokens, metadata)
        return Caller(self.peer_identity(peer, auth_context).name, frozenset({INFER}))

    def peer_identity(self, peer: str, auth_context: Mapping[str, Iterable[bytes]]) -> Caller:
        """Return who makes a call that needs no scope and no token, such as a health check.

        Args:
            peer: As `identify`.
            auth_context: As `identify`.
        """
        identity = certificate_identity(auth_context)
        name = f"address:{_address(peer)}" if identity is None else f"cert:{identity}"
        return Caller(name, frozenset())

    def _bearer(self, tokens: Tokens, metadata: Sequence[tuple[str, str | bytes]]) -> Caller:
        token = tokens.find(_secret(metadata))
        if token is None:
            raise Unauthenticated(
                "TOKEN_UNKNOWN", "the token is not one that this server takes; it may be revoked"
            )
        if token.expires_at is not None and token.expires_at <= self._now():
            raise Unauthenticated(
                "TOKEN_EXPIRED", f"the token {token.name!r} has expired; ask for a new one"
            )
        return Caller(f"token:{token.name}", token.scopes)


def _secret(metadata: Sequence[tuple[str, str | bytes]]) -> str:
    """Return the token that a call brings. No error repeats any of it."""
    values = [value for key, value in metadata if key == "authorization"]
    if not values:
        raise Unauthenticated(
            "TOKEN_MISSING",
            "this server takes calls with a token only: send the metadata"
            " 'authorization: Bearer TOKEN'",
        )
    if len(values) > 1:
        raise Unauthenticated("TOKEN_MALFORMED", "is there more than once; send one token")
    value = values[0]
    match = None
    if isinstance(value, str) and len(value) <= len("bearer ") + MAX_TOKEN_LENGTH:
        match = _BEARER.fullmatch(value)
    if match is None:
        raise Unauthenticated(
            "TOKEN_MALFORMED",
            f"is not 'Bearer TOKEN' with a token of up to {MAX_TOKEN_LENGTH} letters, digits and"
            " -._~+/",
        )
    return match[1]


def certificate_identity(auth_context: Mapping[str, Iterable[bytes]]) -> str | None:
    """Return the name in a verified client certificate; None if there is no certificate or no name.

    The first of: its SPIFFE ID, URI, DNS name (the certificate's first), common name. Characters
    that do not print are escaped: names go into logs and errors.

    Args:
        auth_context: As gRPC gives it; it holds names only after verifying the certificate.
    """
    for key in _NAMES:
        for value in auth_context.get(key, ()):
            if value:
                text = value.decode("utf-8", "backslashreplace")
                return text if text.isprintable() else ascii(text)[1:-1]
    return None


@lru_cache(maxsize=4096)
def _address(peer: str) -> str:
    """Return a peer's address without its port: that of IPv4, the /64 network of IPv6, or "unix".

    Who has one address of an IPv6 network has all 2**64 of them.
    """
    kind, _, place = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return "unix"
    host = unquote(place).rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        if not address.is_loopback:
            return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
