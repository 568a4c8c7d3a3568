"""`GET /v1/variants` and the gateway's health."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from resnet50.v1 import variant_pb2

from .exchange import Exchange
from .images import json_response
from .json_messages import to_json
from .query import parse
from .settings import Settings
from .upstream import Upstream

LIST_VARIANTS = "/resnet50.v1.VariantService/ListVariants"


class VariantRoutes:
    """The routes of variants and health.

    Args:
        settings: Timeouts.
        upstream: The servers.
    """

    def __init__(self, settings: Settings, upstream: Upstream) -> None:
        self._settings = settings
        self._upstream = upstream

    def routes(self) -> list[BaseRoute]:
        """Return the routes."""
        return [
            Route("/v1/variants", self._list),
            Route("/healthz", self._healthy),
            Route("/readyz", self._ready),
        ]

    async def _list(self, request: Request) -> Response:
        parse(request.query_params, {})
        exchange = Exchange(request, self._upstream, self._settings.timeout_s)
        content = await exchange.run(exchange.call(LIST_VARIANTS, b""))
        return json_response(to_json(variant_pb2.ListVariantsResponse.FromString(content)))

    async def _healthy(self, _: Request) -> Response:
        """Respond: the gateway's event loop runs."""
        return PlainTextResponse("ok\n")

    async def _ready(self, _: Request) -> Response:
        """Respond whether a server is serving."""
        if await self._upstream.serving():
            return PlainTextResponse("ready\n")
        return PlainTextResponse("no server is serving\n", 503)
