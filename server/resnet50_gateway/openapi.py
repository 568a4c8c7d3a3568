"""`/openapi.json`, and `/docs`, a page of it that needs no script and nothing from elsewhere."""

from __future__ import annotations

import json
from functools import lru_cache
from html import escape
from importlib.resources import files
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from resnet50.oip.messages import message_class
from resnet50.v1 import inference_pb2, variant_pb2

from .images import json_response
from .json_messages import add_schemas
from .release import release

_ANSWERS = (
    inference_pb2.ClassifyResponse,
    inference_pb2.EmbedResponse,
    inference_pb2.ClassifyBatchResponse,
    inference_pb2.EmbedBatchResponse,
    variant_pb2.ListVariantsResponse,
)
_OIP_ANSWERS = (
    *("ServerMetadataResponse", "ModelMetadataResponse", "ModelConfig"),
    *("ModelStatisticsResponse", "RepositoryIndexResponse.ModelIndex"),
)


class OpenApiRoutes:
    """The routes of the description."""

    def routes(self) -> list[BaseRoute]:
        """Return the routes."""
        return [
            Route("/openapi.json", self._description),
            Route("/docs", self._page),
            Route("/docs/style.css", self._style),
        ]

    async def _description(self, _: Request) -> Response:
        return json_response(description())

    async def _page(self, _: Request) -> Response:
        return HTMLResponse(_page_of(description()))

    async def _style(self, _: Request) -> Response:
        return Response(
            files(__package__).joinpath("docs.css").read_text(encoding="utf-8"),
            media_type="text/css",
        )


@lru_cache
def description() -> dict[str, Any]:
    """Return the description of the paths, as OpenAPI 3.1; schemas of answers are the messages'."""
    text = files(__package__).joinpath("openapi.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    found["info"]["version"] = release()
    schemas = found["components"]["schemas"]
    for message in _ANSWERS:
        add_schemas(schemas, message.DESCRIPTOR)
    for name in _OIP_ANSWERS:
        add_schemas(schemas, message_class(name).DESCRIPTOR, original_names=True)
    return found


def _page_of(spec: dict[str, Any]) -> str:
    info = spec["info"]
    sections: dict[str, list[str]] = {tag["name"]: [] for tag in spec["tags"]}
    for path, methods in spec["paths"].items():
        for method, operation in methods.items():
            sections[operation["tags"][0]].append(_operation(path, method, operation, spec))
    body = "".join(
        f"<section><h2>{escape(name)}</h2>{''.join(operations)}</section>"
        for name, operations in sections.items()
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(info['title'])}</title>"
        '<link rel="stylesheet" href="/docs/style.css"></head><body><main>'
        f"<h1>{escape(info['title'])} <small>{escape(info['version'])}</small></h1>"
        f"<p>{escape(info['description'])}</p>"
        '<p><a href="/openapi.json">openapi.json</a></p>'
        f"{body}</main></body></html>"
    )


def _operation(path: str, method: str, operation: dict[str, Any], spec: dict[str, Any]) -> str:
    parameters = [_resolved(one, spec) for one in operation.get("parameters", ())]
    rows = "".join(
        f"<tr><td><code>{escape(one['name'])}</code></td><td>{escape(one['in'])}</td>"
        f"<td>{escape(one.get('description', ''))}</td></tr>"
        for one in parameters
    )
    table = f"<table><tr><th>name</th><th>in</th><th></th></tr>{rows}</table>" if rows else ""
    body = operation.get("requestBody", {})
    bodies = ", ".join(body.get("content", ()))
    about = escape(body.get("description", ""))
    example = operation.get("x-curl", "")
    answers = "".join(
        f"<li><code>{escape(code)}</code> {escape(_resolved(answer, spec)['description'])}</li>"
        for code, answer in operation["responses"].items()
    )
    return (
        f"<article><h3><b>{escape(method.upper())}</b> <code>{escape(path)}</code></h3>"
        f"<p>{escape(operation['summary'])}</p>"
        + (f"<p>Body: <code>{escape(bodies)}</code>. {about}</p>" if bodies else "")
        + table
        + (f"<pre>{escape(example)}</pre>" if example else "")
        + f"<ul>{answers}</ul></article>"
    )


def _resolved(node: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    """Return what a reference within the description refers to."""
    if "$ref" not in node:
        return node
    found: Any = spec
    for part in node["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    resolved: dict[str, Any] = found
    return resolved
