"""Identifies callers: the name that quotas are counted by, and the scopes."""

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

# Generated tokens have 48 characters; other ones may be longer.
MAX_TOKEN_LENGTH = 512
# RFC 6750's syntax of a token after "Bearer".
_BEARER = re.compile(r"bearer +([A-Za-z0-9._~+/-]+=*)", re.IGNORECASE)
# gRPC's auth context keys for a verified certificate, in order of preference. Each may have several
# values.
_CERTIFICATE_KEYS = ("peer_spiffe_id", "peer_uri", "peer_dns", "x509_common_name")
_MAY_INFER = frozenset({INFER})


@dataclass(frozen=True)
class Caller:
    """An authenticated caller.

    Attributes:
        name: Stable between calls, e.g. "token:cameras" or "address:10.0.0.7".
        scopes: Allowed method groups: "infer", "admin".
        by_token: Whether a token identifies it; False if the server has no tokens.
    """

    name: str
    scopes: frozenset[str]
    by_token: bool = False

    def require(self, scope: str) -> None:
        """Raise `PermissionDenied` unless the caller has `scope`."""
        if scope not in self.scopes:
            raise PermissionDenied(self.name, scope, has_tokens=self.by_token)


class Authenticator:
    """Identifies the caller of each request.

    With tokens, every request needs one, even over a connection with a client certificate; the
    token determines the name and scopes. Without tokens, every client that can connect has the
    scope "infer", and none has "admin".

    Args:
        tokens: The valid tokens; None if requests need none.
        now: Returns the time, in Unix seconds.
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
        """Return the caller of a request.

        Args:
            metadata: Its invocation metadata.
            peer: gRPC's name of the peer, e.g. "ipv4:10.0.0.7:51234".
            auth_context: gRPC's auth context of the connection.

        Raises:
            Unauthenticated: A token is required, and it is missing or invalid.
        """
        if self._tokens is not None:
            return self._by_token(self._tokens, metadata)
        return _caller_without_token(_peer_name(peer, auth_context))

    def peer_identity(self, peer: str, auth_context: Mapping[str, Iterable[bytes]]) -> Caller:
        """Return the caller of a request that needs no token, such as a health check.

        Args:
            peer: As for `authenticate`.
            auth_context: As for `authenticate`.
        """
        return Caller(_peer_name(peer, auth_context), frozenset())

    def _by_token(self, tokens: Tokens, metadata: Sequence[tuple[str, str | bytes]]) -> Caller:
        token = tokens.find(_bearer_token(metadata))
        if token is None:
            raise Unauthenticated("TOKEN_UNKNOWN", "unknown or revoked token")
        if token.expires_at is not None and token.expires_at <= self._now():
            raise Unauthenticated(
                "TOKEN_EXPIRED", f"the token {token.name!r} has expired; use a new one"
            )
        return Caller(f"token:{token.name}", token.scopes, by_token=True)


@lru_cache(maxsize=4096)
def _caller_without_token(name: str) -> Caller:
    return Caller(name, _MAY_INFER)


def _peer_name(peer: str, auth_context: Mapping[str, Iterable[bytes]]) -> str:
    identity = certificate_identity(auth_context)
    return f"address:{_address(peer)}" if identity is None else f"cert:{identity}"


def _bearer_token(metadata: Sequence[tuple[str, str | bytes]]) -> str:
    """Return the token of a request. Errors never contain any of it."""
    values = [value for key, value in metadata if key == "authorization"]
    if not values:
        raise Unauthenticated(
            "TOKEN_MISSING",
            "this server requires a token: send the metadata 'authorization: Bearer TOKEN'",
        )
    if len(values) > 1:
        raise Unauthenticated("TOKEN_MALFORMED", "was sent more than once; send one token")
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
    """Return the name in a verified client certificate; None if there is none.

    The first of: SPIFFE ID, URI, first DNS name, common name. Characters that do not print are
    escaped, since names appear in logs and errors.

    Args:
        auth_context: gRPC's; it contains names only once the certificate is verified.
    """
    for key in _CERTIFICATE_KEYS:
        for value in auth_context.get(key, ()):
            if value:
                text = value.decode("utf-8", "backslashreplace")
                return text if text.isprintable() else ascii(text)[1:-1]
    return None


@lru_cache(maxsize=4096)
def _address(peer: str) -> str:
    """Return a peer's address without its port: IPv4 address, IPv6 /64 network, or "unix".

    A host in an IPv6 network can use all of its 2**64 addresses.
    """
    kind, _, address_and_port = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return "unix"
    host = unquote(address_and_port).rpartition(":")[0].strip("[]").partition("%")[0]
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
