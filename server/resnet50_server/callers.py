"""Who calls: the name that quotas are counted under, and what the caller may do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

INFER = "infer"
ADMIN = "admin"


@dataclass(frozen=True)
class Caller:
    """Who makes a call.

    Attributes:
        name: Stable between calls, e.g. "token:cameras" or "address:10.0.0.7".
        scopes: What it may do: "infer", "admin".
    """

    name: str
    scopes: frozenset[str]


class Callers:
    """Tells callers apart."""

    def identify(
        self,
        metadata: Sequence[tuple[str, str | bytes]],
        peer: str,
        auth_context: Mapping[str, Iterable[bytes]],
    ) -> Caller:
        """Return who makes a call.

        Args:
            metadata: The call's.
            peer: As gRPC names it, e.g. "ipv4:10.0.0.7:51234".
            auth_context: As gRPC gives it.
        """
        kind, _, address = peer.partition(":")
        name = address.rpartition(":")[0] if kind in ("ipv4", "ipv6") else "unix"
        return Caller(f"address:{name}", frozenset({INFER}))
