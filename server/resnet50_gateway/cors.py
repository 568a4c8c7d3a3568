"""Pages of other origins: which may call the gateway from a browser, over HTTP and WebSocket."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import HTTPConnection

from .exchange import FORWARDED, REQUEST_ID, TIMEOUT_HEADER
from .problems import Problem
from .settings import Settings


def cors_middleware(settings: Settings) -> list[Middleware]:
    """Return the middleware that allows requests of the origins in the settings; none, if none."""
    if not settings.cors_origin:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origin,
            allow_methods=["GET", "POST"],
            allow_headers=[
                *("content-type", *FORWARDED, REQUEST_ID, TIMEOUT_HEADER),
                *("connect-protocol-version", "connect-timeout-ms"),
                *("x-grpc-web", "x-user-agent", "grpc-timeout"),
            ],
            expose_headers=[
                *(REQUEST_ID, "retry-after", "grpc-status", "grpc-message"),
                *("grpc-status-details-bin", "x-variant", "x-variant-digest"),
                *("x-embedding-space", "x-embedding-dimension", "x-embedding-count"),
            ],
        )
    ]


def check_origin(socket: HTTPConnection, settings: Settings) -> None:
    """Refuse pages of other origins, which browsers let open a WebSocket.

    Args:
        socket: The WebSocket.
        settings: With the origins that are allowed besides the gateway's own.

    Raises:
        Problem: It is refused.
    """
    origin = socket.headers.get("origin")
    if (
        origin is not None
        and origin not in settings.cors_origin
        and _host_of(origin) != socket.headers.get("host")
    ):
        raise Problem(
            "PERMISSION_DENIED",
            f"origin: pages of {origin[:128]!r} may not open a stream; name it with --cors-origin",
            field="origin",
        )


def _host_of(origin: str) -> str:
    """Return host and port of an origin; "" if it is malformed."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""
