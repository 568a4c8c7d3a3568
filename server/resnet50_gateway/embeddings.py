"""`POST /v1/embeddings`, in the form that clients of embedding APIs send, with images as input."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from resnet50.v1 import inference_pb2

from .body import BodyReader
from .exchange import Exchange
from .images import json_response
from .inference import EMBED, infer_batch
from .json_input import decode_image, in_parser_thread, parse_object
from .json_messages import vector_of
from .problems import Problem, invalid, problem_of_status
from .query import parse
from .settings import Settings
from .upstream import Upstream

# Names of the default variant, as a client has to send a model.
DEFAULT_MODELS = ("", "resnet50")
_MEMBERS = ("model", "input", "encoding_format", "dimensions", "user")
_QUERY: dict[str, Callable[[str, str], Any]] = {}
_TYPES = {400: "invalid_request_error", 401: "authentication_error", 429: "rate_limit_error"}


def error_response(problem: Problem) -> Response:
    """Return a problem in the form of embedding APIs, {"error": {"message": "…", …}}."""
    error = {
        "message": problem.message,
        "type": _TYPES.get(problem.status, "server_error"),
        "param": problem.field,
        "code": problem.reason or problem.code,
    }
    response = json_response({"error": error}, problem.headers())
    response.status_code = problem.status
    return response


class EmbeddingRoutes:
    """The route of embeddings.

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
        """Return the route."""
        return [Route("/v1/embeddings", self._serve, methods=["POST"])]

    async def _serve(self, request: Request) -> Response:
        try:
            return await self._embed(request)
        except Problem as problem:
            return error_response(problem)

    async def _embed(self, request: Request) -> Response:
        parse(request.query_params, _QUERY)
        exchange = Exchange(request, self._upstream, self._settings.timeout_s)
        async with self._bodies.read(request, json=True) as body:
            content = await in_parser_thread(_parse, body, self._settings.max_images)
            options = inference_pb2.EmbedOptions(variant=content.variant)
            answer = await exchange.run(
                infer_batch(
                    EMBED, content.images, options, exchange, self._settings.max_message_bytes
                )
            )
        vectors = []
        for index, result in enumerate(answer.results):
            if result.WhichOneof("outcome") == "error":
                problem = problem_of_status(result.error)
                problem.message = f"input[{index}]: {problem.message}"
                problem.field = f"input[{index}]"
                raise problem
            vectors.append(vector_of(result.embedding))
        space = answer.results[0].embedding.space
        if content.dimensions not in (None, len(vectors[0])):
            raise invalid(
                "dimensions", f"is {content.dimensions}; the vectors have {len(vectors[0])} numbers"
            )
        return json_response(
            {
                "object": "list",
                "model": answer.variant.name,
                "space": space,
                "data": [
                    {
                        "object": "embedding",
                        "index": index,
                        "embedding": base64.b64encode(vector.tobytes()).decode()
                        if content.as_base64
                        else vector.tolist(),
                    }
                    for index, vector in enumerate(vectors)
                ],
                "usage": {"prompt_tokens": 0, "total_tokens": 0},
            }
        )


class _EmbeddingRequest:
    """A request, checked.

    Args:
        variant: Its name; "" is the default one.
        images: Image files.
        as_base64: Whether vectors are base64 of float32, little-endian, instead of numbers.
        dimensions: The length of a vector that the client expects.
    """

    def __init__(
        self, variant: str, images: list[bytes], as_base64: bool, dimensions: int | None
    ) -> None:
        self.variant = variant
        self.images = images
        self.as_base64 = as_base64
        self.dimensions = dimensions


def _parse(body: bytes, max_images: int) -> _EmbeddingRequest:
    """Return the request of a body.

    Raises:
        Problem: A member is wrong; names it.
    """
    content = parse_object(body)
    for name in content:
        if name not in _MEMBERS:
            raise invalid(name[:64], f"is no member here; there are {', '.join(_MEMBERS)}")
    model = content.get("model", "")
    if not isinstance(model, str):
        raise invalid("model", "must be the name of a variant")
    form = content.get("encoding_format", "float")
    if form not in ("float", "base64"):
        raise invalid("encoding_format", f"is {str(form)[:32]!r}, must be float or base64")
    dimensions = content.get("dimensions")
    if dimensions is not None and type(dimensions) is not int:
        raise invalid("dimensions", "must be a whole number")
    given = content.get("input")
    listed = isinstance(given, list)
    items = given if isinstance(given, list) else [given]
    if not 1 <= len(items) <= max_images:
        raise invalid(
            "input",
            f"has {len(items)} images, must have 1 to {max_images} (max_images)",
            limit=max_images,
        )
    images = [
        _image(item, f"input[{index}]" if listed else "input") for index, item in enumerate(items)
    ]
    variant = "" if model in DEFAULT_MODELS else model
    return _EmbeddingRequest(variant, images, form == "base64", dimensions)


def _image(item: Any, field: str) -> bytes:
    """Return the image file of an item: a data URI, or an object with a member "image"."""
    if isinstance(item, dict):
        if set(item) != {"image"}:
            raise invalid(field, 'must be {"image": "data:…"}; texts have no embedding here')
        return decode_image(item["image"], f"{field}.image")
    if isinstance(item, str) and not item.startswith("data:") and "://" not in item[:16]:
        raise invalid(
            field, 'is a text, which has no embedding here; send a data URI, or {"image": "…"}'
        )
    return decode_image(item, field)
