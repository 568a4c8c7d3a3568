"""`POST /v1/classify`, `/v1/embed` and their batches: image files in, JSON or float32 out."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from .body import MULTIPART, BodyReader, parts_of
from .exchange import Exchange
from .inference import CLASSIFY, EMBED, Task, infer, infer_batch
from .json_messages import to_json, vector_of
from .problems import Problem, invalid
from .query import CLASSIFY as CLASSIFY_QUERY
from .query import EMBED as EMBED_QUERY
from .query import parse
from .settings import Settings
from .upstream import Upstream

PART = "image"
OCTET_STREAM = "application/octet-stream"


class ImageRoutes:
    """The routes of images.

    Args:
        settings: Limits and timeouts.
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
            Route("/v1/classify", self._classify, methods=["POST"]),
            Route("/v1/embed", self._embed, methods=["POST"]),
            Route("/v1/classify:batch", self._classify_batch, methods=["POST"]),
            Route("/v1/embed:batch", self._embed_batch, methods=["POST"]),
        ]

    async def _classify(self, request: Request) -> Response:
        return json_response(to_json(await self._one(CLASSIFY, request, CLASSIFY_QUERY)))

    async def _embed(self, request: Request) -> Response:
        response = await self._one(EMBED, request, EMBED_QUERY)
        if not _wants_bytes(request):
            return json_response(to_json(response))
        embedding = response.embedding
        return Response(
            vector_of(embedding).astype("<f4", copy=False).tobytes(),
            media_type=OCTET_STREAM,
            headers=_embedding_headers(response.variant, embedding),
        )

    async def _classify_batch(self, request: Request) -> Response:
        return json_response(to_json(await self._several(CLASSIFY, request, CLASSIFY_QUERY)))

    async def _embed_batch(self, request: Request) -> Response:
        response = await self._several(EMBED, request, EMBED_QUERY)
        if not _wants_bytes(request):
            return json_response(to_json(response))
        for index, result in enumerate(response.results):
            if result.WhichOneof("outcome") == "error":
                raise invalid(
                    f"image[{index}]",
                    f"{result.error.message}; an array has no place for an error: leave the image"
                    " out, or accept application/json",
                )
        vectors = np.stack([vector_of(result.embedding) for result in response.results])
        headers = _embedding_headers(response.variant, response.results[0].embedding)
        headers["x-embedding-count"] = str(len(vectors))
        return Response(
            vectors.astype("<f4", copy=False).tobytes(), media_type=OCTET_STREAM, headers=headers
        )

    async def _one(self, task: Task, request: Request, parsers: Any) -> Any:
        options = task.options(**parse(request.query_params, parsers))
        exchange = self._exchange(request)
        async with self._bodies.read(request) as body:
            images = self._images(body, request, 2)
            if len(images) > 1:
                raise invalid(
                    "body",
                    f"has several parts {PART!r}; send one, or all to {request.url.path}:batch",
                    limit=1,
                )
            return await exchange.run(
                infer(task, images[0], options, exchange, self._settings.max_message_bytes)
            )

    async def _several(self, task: Task, request: Request, parsers: Any) -> Any:
        options = task.options(**parse(request.query_params, parsers))
        exchange = self._exchange(request)
        async with self._bodies.read(request) as body:
            images = self._images(body, request, self._settings.max_images)
            return await exchange.run(
                infer_batch(task, images, options, exchange, self._settings.max_message_bytes)
            )

    def _exchange(self, request: Request) -> Exchange:
        return Exchange(request, self._upstream, self._settings.timeout_s)

    def _images(self, body: bytes, request: Request, max_parts: int) -> list[bytes]:
        """Return the images of a body: its parts, or the body itself.

        Raises:
            Problem: There is none, or a part has another name.
        """
        content_type = request.headers.get("content-type", "")
        media_type = content_type.partition(";")[0].strip().lower()
        if media_type == "application/json":
            raise Problem(
                "INVALID_ARGUMENT",
                "content-type: is application/json; send the image file as the body, or as"
                f" {MULTIPART} with the part {PART!r}",
                field="content-type",
                status=415,
            )
        if media_type != MULTIPART:
            if not body:
                raise invalid("body", "is empty; send an image file")
            return [body]
        images: list[bytes] = []
        for name, content in parts_of(body, content_type, max_parts):
            if name != PART:
                raise invalid(
                    "body",
                    f"has a part {name[:64]!r}; name image files {PART!r}, and send options in the"
                    " query",
                )
            if not content:
                raise invalid(f"{PART}[{len(images)}]", "is empty; send an image file")
            images.append(content)
        if not images:
            raise invalid("body", f"has no part {PART!r}; send one with an image file")
        return images


def json_response(content: Any, headers: dict[str, str] | None = None) -> Response:
    """Return a response of JSON."""
    text = json.dumps(content, separators=(",", ":"))
    return Response(text, media_type="application/json", headers=headers)


def _wants_bytes(request: Request) -> bool:
    return OCTET_STREAM in request.headers.get("accept", "")


def _embedding_headers(variant: Any, embedding: Any) -> dict[str, str]:
    return {
        "x-variant": variant.name,
        "x-variant-digest": variant.digest,
        "x-embedding-space": embedding.space,
        "x-embedding-dimension": str(embedding.dimension),
    }
