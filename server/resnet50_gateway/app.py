"""The application: routes, and what every request passes through."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from pathlib import Path

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .body import BodyReader
from .embeddings import EmbeddingRoutes
from .exchange import FORWARDED, REQUEST_ID, TIMEOUT_HEADER, request_id_of
from .images import ImageRoutes
from .live import LiveFigures
from .open_inference import OpenInferenceRoutes
from .openapi import OpenApiRoutes
from .problems import ClientDisconnected, Problem
from .rpc import RpcRoutes
from .settings import Settings
from .stream import StreamRoutes
from .upstream import Upstream
from .variants import VariantRoutes
from .weaviate import WeaviateRoutes

log = logging.getLogger(__name__)

CONSOLE = Path(__file__).parent / "console"
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src 'self' blob: data:; media-src 'self' blob:; font-src 'self'; manifest-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_CODES = {404: "NOT_FOUND", 405: "UNIMPLEMENTED", 400: "INVALID_ARGUMENT"}


def routes_of(settings: Settings, upstream: Upstream, closing: asyncio.Event) -> list[BaseRoute]:
    """Return the routes; the arguments are those of `create_app`."""
    bodies = BodyReader(settings)
    routes: list[BaseRoute] = [
        *ImageRoutes(settings, upstream, bodies).routes(),
        *VariantRoutes(settings, upstream).routes(),
        *StreamRoutes(settings, upstream).routes(),
        *EmbeddingRoutes(settings, upstream, bodies).routes(),
        *WeaviateRoutes(settings, upstream, bodies).routes(),
        *OpenInferenceRoutes(settings, upstream, bodies).routes(),
        *RpcRoutes(settings, upstream, bodies).routes(),
        *OpenApiRoutes().routes(),
        *LiveFigures(settings.metrics, closing).routes(),
    ]
    if settings.console:
        routes += [
            Route("/", _to_console),
            Route("/console", _to_console),
            Mount("/console", StaticFiles(directory=CONSOLE, html=True)),
        ]
    return routes


def create_app(settings: Settings, upstream: Upstream, closing: asyncio.Event) -> ASGIApp:
    """Return the application.

    Args:
        settings: Of the gateway.
        upstream: The servers.
        closing: Set when the gateway stops; endless responses end then.
    """
    middleware = []
    if settings.cors_origin:
        middleware.append(
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
        )
    app = Starlette(
        routes=routes_of(settings, upstream, closing),
        middleware=middleware,
        exception_handlers={
            Problem: _problem,
            HTTPException: _http_problem,
            ClientDisconnected: _disconnected,
            Exception: _failed,
        },
    )
    return RequestGate(app, settings)


class RequestGate:
    """Counts requests and rejects those beyond the limits; adds headers to every response.

    Args:
        app: Gets the other requests.
        settings: Limits.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._requests = 0
        self._by_client: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request; WebSockets are counted by their route."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = HTTPConnection(scope)
        request_id = request_id_of(request)
        in_console = scope["path"].startswith(("/console", "/docs"))
        started, status = time.perf_counter(), 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = request_id
                headers["x-content-type-options"] = "nosniff"
                if in_console:
                    headers["content-security-policy"] = CONTENT_SECURITY_POLICY
                    headers["referrer-policy"] = "no-referrer"
            await send(message)

        client = request.client.host if request.client is not None else ""
        problem = self._over_limit(client)
        if problem is not None:
            await problem.response(request_id)(scope, receive, send_with_headers)
            return
        self._requests += 1
        self._by_client[client] += 1
        try:
            await self._app(scope, receive, send_with_headers)
        except Exception:
            # Starlette has responded with 500 before it raises, unless the response had begun.
            log.exception("request %s failed", request_id)
        finally:
            if log.isEnabledFor(logging.DEBUG):
                path = scope["raw_path"][:256].decode("latin-1")  # has no control characters
                took_ms = (time.perf_counter() - started) * 1e3
                log.debug(
                    "%s %s: %d in %.1f ms, request %s",
                    scope["method"],
                    path,
                    status,
                    took_ms,
                    request_id,
                )
            self._requests -= 1
            self._by_client[client] -= 1
            if not self._by_client[client]:
                del self._by_client[client]

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


def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    log.debug("%s %s: %s", request.method, request.url.path, error)
    return error.response(request_id_of(request))


def _http_problem(request: Request, error: Exception) -> Response:
    """Return the problem of a path or a method that there is not."""
    assert isinstance(error, HTTPException)
    code = _CODES.get(error.status_code, "UNKNOWN")
    what = {
        404: f"path: {request.url.path[:128]!r} does not exist; /openapi.json lists the paths",
        405: f"method: {request.method} is not allowed here",
    }.get(error.status_code, error.detail)
    response = Problem(code, what, status=error.status_code).response(request_id_of(request))
    response.headers.update(error.headers or {})
    return response


def _failed(request: Request, _: Exception) -> Response:
    """Return the response to an error of the gateway itself, whose reason is logged."""
    request_id = request_id_of(request)
    message = f"internal error; the gateway's log has the reason under request id {request_id}"
    return Problem("INTERNAL", message).response(request_id)


def _disconnected(request: Request, _: Exception) -> Response:
    """Return a response that is never sent."""
    log.debug("%s %s: the client has disconnected", request.method, request.url.path)
    return Response(status_code=499)


async def _to_console(_: Request) -> Response:
    return RedirectResponse("/console/", 307)
