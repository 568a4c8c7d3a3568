"""Addresses of the gateway and of servers."""

from __future__ import annotations

import ipaddress


def split_address(address: str) -> tuple[str, int]:
    """Return host, without the brackets of IPv6, and port of "host:port"."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def is_host_and_port(address: str) -> bool:
    """Return whether an address is "host:port"."""
    host, colon, port = address.rpartition(":")
    return bool(colon and host and port.isdecimal() and int(port) <= 65535)


def is_local(address: str) -> bool:
    """Return whether only this machine can reach "host:port"; of names only localhost is."""
    host, _ = split_address(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def inherited_file(address: str) -> int | None:
    """Return the number of "fd:N", a listening socket inherited from the server; None of others.

    The server has checked its address.
    """
    number = address.removeprefix("fd:")
    return int(number) if number != address and number.isdecimal() else None
