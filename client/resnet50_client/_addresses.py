"""Addresses of servers: parsing, gRPC targets, and which ones are local."""

from __future__ import annotations

import inspect
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Server: TypeAlias = str | Sequence[str] | Callable[[], str | Sequence[str]]
"""An address, several, or a function that returns the current ones."""
DEFAULT_SERVER = "localhost:50051"
DEFAULT_PORT = 50051
# Schemes of gRPC targets; the first ones are of sockets on this machine.
SOCKET_SCHEMES = ("unix:", "unix-abstract:")
GRPC_SCHEMES = (*SOCKET_SCHEMES, "dns:", "ipv4:", "ipv6:")
_HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.%]+\]")


def function_of(server: Server) -> Callable[[], str | Sequence[str]] | None:
    """Return the `server` argument if it is a function; None if it is addresses.

    Raises:
        TypeError: It is a coroutine function.
    """
    if not callable(server):
        return None
    called = getattr(server, "__call__", server)  # noqa: B004  the method of an object
    if inspect.iscoroutinefunction(server) or inspect.iscoroutinefunction(called):
        raise TypeError(
            "server: is a coroutine function, must be a function; it is called in a thread"
        )
    return server


def addresses_of(server: str | Sequence[str]) -> tuple[str, ...]:
    """Return the addresses of the `server` argument.

    Raises:
        ValueError: There is no address, or one is invalid.
    """
    given = (server,) if isinstance(server, str) else _listed(server)
    if not given or not all(isinstance(one, str) and one.strip() for one in given):
        raise ValueError(
            f"server: {_shown(server)} is neither an address such as 'localhost:50051' or"
            " 'unix:/run/r.sock' nor a list of addresses"
        )
    for one in given:
        if "@" in one and not one.startswith(SOCKET_SCHEMES):
            raise ValueError(
                f"server: {_shown(one)} contains a user name or password; pass credentials as token"
                " or token_file"
            )
        if not one.startswith(GRPC_SCHEMES):
            split(one)
        elif len(given) > 1:
            raise ValueError(
                f"server: {_shown(given)} mixes schemes; in a list only host:port is allowed"
            )
    return given


def _listed(server: object) -> tuple[Any, ...]:
    """Return the members of a list of addresses; () if it is not one."""
    if isinstance(server, Iterable) and not isinstance(server, (bytes, bytearray, Mapping)):
        return tuple(server)
    return ()


def _shown(server: object) -> str:
    """Format addresses for a message, without user names and passwords."""
    if isinstance(server, (list, tuple)):
        return f"[{', '.join(map(_shown, server))}]"
    if not isinstance(server, str):
        return f"of type {type(server).__name__}"
    from ._redaction import redact  # only errors need it

    return redact(repr(f"***@{server.rpartition('@')[2]}" if "@" in server else server))


@dataclass(frozen=True)
class Literals:
    """IP addresses of one server.

    Attributes:
        v4: "1.2.3.4:port", sorted, because the order of DNS responses is arbitrary.
        v6: "[::1]:port", sorted.
    """

    v4: tuple[str, ...]
    v6: tuple[str, ...]

    @classmethod
    def of(cls, v4: Iterable[str], v6: Iterable[str], port: int) -> Literals:
        """Create from IP addresses and a port."""
        return cls(
            tuple(f"{one}:{port}" for one in sorted(v4)),
            tuple(f"[{one}]:{port}" for one in sorted(v6)),
        )

    def __bool__(self) -> bool:
        return bool(self.v4 or self.v6)


def literals_of(address: str) -> Literals | None:
    """Parse an address with an IP address; None for one with a host name.

    Raises:
        ValueError: The address is not host:port.
    """
    host, port = split(address)
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return None
    return Literals.of([host] * (version == 4), [host] * (version == 6), port)


def target_of_one(address: str) -> str:
    """Return the gRPC target of one address.

    Its name is resolved by gRPC, again whenever a connection ends; calls are balanced over all IP
    addresses.

    Raises:
        ValueError: The address is invalid.
    """
    if address.startswith(GRPC_SCHEMES):
        return address
    host, port = split(address)
    return f"dns:///[{host}]:{port}" if ":" in host else f"dns:///{host}:{port}"


def target_of(servers: Sequence[Literals]) -> str:
    """Return the gRPC target of several servers.

    A target has one IP version: the one that all servers have; otherwise IPv6, with IPv4 addresses
    mapped to ::ffff:1.2.3.4.
    """
    if all(one.v4 for one in servers):
        return "ipv4:" + ",".join(dict.fromkeys(ip for one in servers for ip in one.v4))
    if all(one.v6 for one in servers):
        return "ipv6:" + ",".join(dict.fromkeys(ip for one in servers for ip in one.v6))
    mapped = [ip for one in servers for ip in (map(_mapped, one.v4) if one.v4 else one.v6)]
    return "ipv6:" + ",".join(dict.fromkeys(mapped))


def _mapped(address: str) -> str:
    ip, _, port = address.rpartition(":")
    return f"[::ffff:{ip}]:{port}"


def split(address: str) -> tuple[str, int]:
    """Return host and port of "host", "host:port", "1.2.3.4:port" or "[::1]:port".

    Raises:
        ValueError: The address is none of these.
    """
    try:
        return str(ipaddress.ip_address(address.strip("[]"))), DEFAULT_PORT
    except ValueError:
        pass
    if "://" in address and not address.startswith(GRPC_SCHEMES):
        raise ValueError(
            f"server: {_shown(address)} is neither host:port nor unix:PATH; omit the scheme, and"
            " use tls or ca for TLS"
        )
    host, colon, port = address.rpartition(":")
    if not colon and _HOST.fullmatch(address):
        return address, DEFAULT_PORT
    if not (port.isdecimal() and 1 <= int(port) <= 65535 and _HOST.fullmatch(host)):
        raise ValueError(f"server: {_shown(address)} is neither host:port nor unix:PATH")
    return host.strip("[]"), int(port)


def is_local(address: str) -> bool:
    """Return True if traffic to an address stays on this machine; False if unclear.

    "localhost" is local: redirecting that name needs control of the machine.
    """
    if address.startswith(SOCKET_SCHEMES):
        return True
    scheme, colon, rest = address.partition(":")
    if colon and scheme in ("ipv4", "ipv6"):
        return all(map(_is_loopback, rest.removeprefix("///").split(",")))
    if colon and scheme == "dns":
        # "dns:///name" and "dns:name"; another DNS server could resolve localhost to anything.
        rest = rest.removeprefix("///")
        return not rest.startswith("/") and _is_loopback(rest)
    return _is_loopback(address)


def _is_loopback(address: str) -> bool:
    try:
        host, _ = split(address)
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
