"""The application: routes, and what every request passes through."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from .body import BodyReader
from .cors import cors_middleware
from .embeddings import EmbeddingRoutes
from .embeddings import error_response as embeddings_error
from .exchange import request_id_of
from .images import ImageRoutes
from .live import LiveFigures
from .metrics import Metrics
from .middleware import RequestMiddleware
from .open_inference import OpenInferenceRoutes
from .open_inference import error_response as open_inference_error
from .openapi import OpenApiRoutes
from .problems import ClientDisconnected, Problem
from .rpc import RpcRoutes, connect_error
from .settings import Settings
from .stream import StreamRoutes
from .upstream import Upstream
from .variants import VariantRoutes
from .weaviate import WeaviateRoutes
from .weaviate import error_response as weaviate_error

log = logging.getLogger(__name__)

CONSOLE = Path(__file__).parent / "console"
# Clients of these paths, and of those below the ones that end in "/" or ".", parse errors in a form
# of their own; others get problem details.
_ERROR_FORMS: dict[str, Callable[[Problem], Response]] = {
    "/v1/embeddings": embeddings_error,
    "/vectors": weaviate_error,
    "/.well-known/": weaviate_error,
    "/v2": open_inference_error,
    "/v2/": open_inference_error,
    "/resnet50.v1.": connect_error,
}
_CODES = {404: "NOT_FOUND", 405: "UNIMPLEMENTED", 400: "INVALID_ARGUMENT"}


def routes_of(
    settings: Settings, upstream: Upstream, closing: asyncio.Event
) -> list[Route | WebSocketRoute | Mount]:
    """Return the routes; the arguments are those of `create_app`."""
    bodies = BodyReader(settings)
    routes: list[Any] = [
        *ImageRoutes(settings, upstream, bodies).routes(),
        *VariantRoutes(settings, upstream).routes(),
        *StreamRoutes(settings, upstream).routes(),
        *EmbeddingRoutes(settings, upstream, bodies).routes(),
        *WeaviateRoutes(settings, upstream, bodies).routes(),
        *OpenInferenceRoutes(settings, upstream, bodies).routes(),
        *RpcRoutes(settings, upstream, bodies).routes(),
        *OpenApiRoutes().routes(),
        *LiveFigures(settings, upstream, closing).routes(),
    ]
    if settings.console:
        routes += [
            Route("/", _to_console),
            Route("/console", _to_console),
            Mount("/console", StaticFiles(directory=CONSOLE, html=True)),
        ]
    return routes


def create_app(
    settings: Settings, upstream: Upstream, metrics: Metrics, closing: asyncio.Event
) -> ASGIApp:
    """Return the application.

    Args:
        settings: Of the gateway.
        upstream: The servers.
        metrics: Counts requests.
        closing: Set when the gateway stops; endless responses end then.
    """
    routes = routes_of(settings, upstream, closing)
    app = Starlette(
        routes=routes,
        middleware=cors_middleware(settings),
        exception_handlers={
            Problem: _problem,
            HTTPException: _http_problem,
            ClientDisconnected: _disconnected,
            Exception: _failed,
        },
    )
    # The first path of endpoints with several is the shortest.
    paths = {
        one.app if isinstance(one, Mount) else one.endpoint: one.path for one in reversed(routes)
    }
    return RequestMiddleware(app, settings, metrics, paths, problem_response)


def problem_response(path: str, problem: Problem, request_id: str) -> Response:
    """Return a problem in the form that clients of a path parse.

    Args:
        path: Of the request.
        problem: Why it fails.
        request_id: Connects the response with the server's log.
    """
    for prefix, form in _ERROR_FORMS.items():
        if path == prefix or (prefix[-1] in "/." and path.startswith(prefix)):
            return form(problem)
    return problem.response(request_id)


def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    log.debug("%s %s: %s", request.method, request.url.path, error)
    return problem_response(request.url.path, error, request_id_of(request))


def _http_problem(request: Request, error: Exception) -> Response:
    """Return the problem of a path or a method that there is not."""
    assert isinstance(error, HTTPException)
    code = _CODES.get(error.status_code, "UNKNOWN")
    what = {
        404: f"path: {request.url.path[:128]!r} does not exist; /openapi.json lists the paths",
        405: f"method: {request.method} is not allowed here",
    }.get(error.status_code, error.detail)
    problem = Problem(code, what, status=error.status_code)
    response = problem_response(request.url.path, problem, request_id_of(request))
    response.headers.update(error.headers or {})
    return response


def _failed(request: Request, _: Exception) -> Response:
    """Return the response to an error of the gateway itself, whose reason is logged."""
    request_id = request_id_of(request)
    message = f"internal error; the gateway's log has the reason under request id {request_id}"
    return problem_response(request.url.path, Problem("INTERNAL", message), request_id)


def _disconnected(request: Request, _: Exception) -> Response:
    """Return a response that is never sent."""
    log.debug("%s %s: the client has disconnected", request.method, request.url.path)
    return Response(status_code=499)


async def _to_console(_: Request) -> Response:
    return RedirectResponse("/console/", 307)
