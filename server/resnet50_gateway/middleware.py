"""ASGI middleware of all requests: limits of their number, headers, metrics, a debug log."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .exchange import REQUEST_ID, request_id_of
from .metrics import OTHER, Metrics
from .problems import Problem
from .settings import Settings

log = logging.getLogger(__name__)

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src 'self' blob: data:; media-src 'self' blob:; font-src 'self'; manifest-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Of a request whose client has disconnected before there was a response.
_NO_RESPONSE = 499


class RequestMiddleware:
    """Counts requests and rejects those beyond the limits; adds headers to every response.

    Args:
        app: Gets the other requests.
        settings: Limits.
        metrics: Counts requests and WebSockets.
        paths: The paths of the routes by their endpoints.
        problem_response: Returns the response of a path, a problem and a request's ID.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        metrics: Metrics,
        paths: Mapping[Any, str],
        problem_response: Callable[[str, Problem, str], Response],
    ) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._paths = paths
        self._problem_response = problem_response
        self._requests = 0
        self._by_client: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request; the limits of WebSockets are those of their route."""
        if scope["type"] == "websocket":
            await self._stream(scope, receive, send)
            return
        request = HTTPConnection(scope)
        request_id = request_id_of(request)
        in_console = scope["path"].startswith(("/console", "/docs"))
        started, status, received, sent = time.perf_counter(), 0, 0, 0

        async def counting_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        async def send_with_headers(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = request_id
                headers["x-content-type-options"] = "nosniff"
                if in_console:
                    headers["content-security-policy"] = CONTENT_SECURITY_POLICY
                    headers["referrer-policy"] = "no-referrer"
            else:
                sent += len(message.get("body", b""))
            await send(message)

        client = request.client.host if request.client is not None else ""
        problem = self._over_limit(client)
        if problem is not None:
            response = self._problem_response(scope["path"], problem, request_id)
            await response(scope, receive, send_with_headers)
            self._metrics.request_rejected(OTHER, status)
            return
        self._requests += 1
        self._by_client[client] += 1
        self._metrics.request_started()
        try:
            await self._app(scope, counting_receive, send_with_headers)
        except Exception:
            # Starlette has responded with 500 before it raises, unless the response had begun.
            log.exception("request %s failed", request_id)
        finally:
            took_s = time.perf_counter() - started
            status = status or _NO_RESPONSE
            if log.isEnabledFor(logging.DEBUG):
                path = scope["raw_path"][:256].decode("latin-1")  # has no control characters
                log.debug(
                    "%s %s: %d in %.1f ms, request %s",
                    scope["method"],
                    path,
                    status,
                    took_s * 1e3,
                    request_id,
                )
            self._metrics.request_ended(self._path(scope), status, took_s, received, sent)
            self._requests -= 1
            self._by_client[client] -= 1
            if not self._by_client[client]:
                del self._by_client[client]

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        received, sent = 0, 0
        code: int | None = None

        async def counting_receive() -> Message:
            nonlocal received
            message = await receive()
            received += _size(message)
            return message

        async def counting_send(message: Message) -> None:
            nonlocal sent, code
            await send(message)
            sent += _size(message)
            if message["type"] == "websocket.close":
                code = message.get("code", 1000)

        self._metrics.stream_opened()
        try:
            await self._app(scope, counting_receive, counting_send)
        finally:
            self._metrics.stream_ended(self._path(scope), code, received, sent)

    def _path(self, scope: Scope) -> str:
        """Return the path of the route that has served a request."""
        return self._paths.get(scope.get("endpoint"), OTHER)

    def _over_limit(self, client: str) -> Problem | None:
        for count, setting in (
            (self._requests, "max_requests"),
            (self._by_client[client], "max_requests_per_client"),
        ):
            limit: int = getattr(self._settings, setting)
            if count >= limit:
                return Problem(
                    "RESOURCE_EXHAUSTED",
                    f"{setting}: {limit} requests are in flight; retry in 1 s",
                    limit=limit,
                    retry_after_s=1.0,
                    status=503,
                )
        return None


def _size(message: Message) -> int:
    """Return the size of a WebSocket's message, in bytes."""
    return len(message.get("bytes") or (message.get("text") or "").encode())
