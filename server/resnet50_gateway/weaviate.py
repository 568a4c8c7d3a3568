"""The API of Weaviate's `img2vec-neural` inference container.

Weaviate asks `/.well-known/ready` when it starts, then sends each image to `/vectors`. It parses
every answer as JSON, errors included.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from resnet50.v1 import inference_pb2

from .body import BodyReader
from .exchange import Exchange
from .images import json_response
from .inference import EMBED, infer
from .json_input import decode_image, in_parser_thread, parse_object
from .json_messages import vector_of
from .problems import Problem, invalid
from .settings import Settings
from .upstream import Upstream

MAX_ID_LENGTH = 512


def error_response(problem: Problem) -> Response:
    """Return a problem in the form of the container, {"error": "…"}."""
    response = json_response({"error": problem.message}, problem.headers())
    response.status_code = problem.status
    return response


class WeaviateRoutes:
    """The routes that Weaviate calls.

    Args:
        settings: Limits, timeouts, and the variant that computes the vectors.
        upstream: The servers.
        bodies: Reads bodies.
    """

    def __init__(self, settings: Settings, upstream: Upstream, bodies: BodyReader) -> None:
        self._settings = settings
        self._upstream = upstream
        self._bodies = bodies

    def routes(self) -> list[BaseRoute]:
        """Return the routes."""
        return [
            Route("/.well-known/live", self._live),
            Route("/.well-known/ready", self._ready),
            Route("/vectors", self._vectors, methods=["POST"]),
            Route("/vectors/", self._vectors, methods=["POST"]),
        ]

    async def _live(self, _: Request) -> Response:
        return Response(status_code=204)

    async def _ready(self, _: Request) -> Response:
        if await self._upstream.serving():
            return Response(status_code=204)
        return error_response(Problem("UNAVAILABLE", "no server is serving"))

    async def _vectors(self, request: Request) -> Response:
        try:
            exchange = Exchange(request, self._upstream, self._settings.timeout_s)
            async with self._bodies.read(request, json=True) as body:
                name, image = await in_parser_thread(_parse, body)
                options = inference_pb2.EmbedOptions(variant=self._settings.weaviate_variant or "")
                answer = await exchange.run(
                    infer(EMBED, image, options, exchange, self._settings.max_message_bytes)
                )
        except Problem as problem:
            return error_response(problem)
        vector = vector_of(answer.embedding)
        return json_response({"id": name, "vector": vector.tolist(), "dim": len(vector)})


def _parse(body: bytes) -> tuple[str, bytes]:
    """Return ID and image of a request.

    Raises:
        Problem: A member is wrong; names it.
    """
    content = parse_object(body)
    name: Any = content.get("id", "")
    if not isinstance(name, str) or len(name) > MAX_ID_LENGTH:
        raise invalid("id", f"must be a text of up to {MAX_ID_LENGTH} characters")
    return name, decode_image(content.get("image"), "image")
