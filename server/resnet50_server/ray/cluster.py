"""The connection of this process to a Ray cluster."""

from __future__ import annotations

import logging
import os
import socket
from typing import Any

import ray
from ray.exceptions import RayError

CONNECT_TIMEOUT_S = 10.0
# Of Ray: whether a process proves itself with the token in ~/.ray/auth_token.
TOKEN_MODE = "RAY_AUTH_MODE"


class Unreachable(Exception):
    """A cluster cannot be reached; the text says why."""


def connect(address: str, **options: Any) -> None:
    """Connect to a cluster.

    Args:
        address: HOST:PORT; "auto" for the one of this machine, "local" to start one.
        **options: Arguments of `ray.init`.

    Raises:
        Unreachable: There is none.
    """
    _check_reachable(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, RayError, ValueError) as error:
        # Ray sends the token of ~/.ray without being told to "auto" alone.
        asked = TOKEN_MODE in os.environ or address == "auto"
        advice = "" if asked else f", set {TOKEN_MODE}=token if it has token authentication"
        raise _unreachable(address, error, advice) from error


def last_line(text: str) -> str:
    """Return the last line of a text that is not empty; Ray's errors have their reason there."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _check_reachable(address: str) -> None:
    """Check that a cluster accepts connections: Ray ends the process if it does not.

    Raises:
        Unreachable: It does not.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        return  # "auto"
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise _unreachable(address, error) from error


def _unreachable(address: str, error: Exception, advice: str = "") -> Unreachable:
    reason = last_line(str(error)) or type(error).__name__
    return Unreachable(
        f"no Ray cluster at {address} ({reason}); start one with `ray start --head`{advice}"
    )
