"""The Open Inference Protocol v2 over REST, with its binary extension; servers need `--oip`."""

from __future__ import annotations

import json
import re
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from resnet50.oip.messages import METHODS, message_class

from .body import BodyReader
from .exchange import Exchange
from .images import OCTET_STREAM, json_response
from .json_input import in_parser_thread, parse_object
from .json_messages import to_json
from .problems import Problem, invalid
from .settings import Settings
from .tensors import request_message, response_parts
from .upstream import Upstream

HEADER_LENGTH = "inference-header-content-length"
_MODEL = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
_LENGTH = re.compile(r"[0-9]{1,9}")
_NO_OIP = "the server does not speak the Open Inference Protocol; start it with --oip"


def error_response(problem: Problem) -> Response:
    """Return a problem in the protocol's form, {"error": "..."}."""
    message = problem.message
    if problem.code == "UNIMPLEMENTED" and message == "Method not found!":
        message = _NO_OIP
    response = json_response({"error": message}, problem.headers())
    response.status_code = problem.status
    return response


class OpenInferenceRoutes:
    """The routes of the protocol. Errors are {"error": "..."}, as its clients expect.

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
        routes: list[BaseRoute] = [
            self._route("/v2", self._server),
            self._route("/v2/health/live", self._live),
            self._route("/v2/health/ready", self._ready),
            self._route("/v2/models/stats", self._statistics),
            self._route("/v2/repository/index", self._index, "POST"),
            self._route("/v2/repository/models/{model}/load", self._load, "POST"),
            self._route("/v2/repository/models/{model}/unload", self._unload, "POST"),
        ]
        for path in _MODEL:
            routes += [
                self._route(f"{path}/infer", self._infer, "POST"),
                self._route(f"{path}/ready", self._model_ready),
                self._route(f"{path}/config", self._config),
                self._route(f"{path}/stats", self._statistics),
                self._route(path, self._model),
            ]
        return routes

    def _route(self, path: str, handle: Any, method: str = "GET") -> Route:
        async def endpoint(request: Request) -> Response:
            try:
                response: Response = await handle(request)
                return response
            except Problem as problem:
                return error_response(problem)

        return Route(path, endpoint, methods=[method])

    async def _server(self, request: Request) -> Response:
        return json_response(_snake(await self._call(request, "ServerMetadata")))

    async def _live(self, _: Request) -> Response:
        return json_response({"live": True})

    async def _ready(self, request: Request) -> Response:
        answer = await self._call(request, "ServerReady")
        response = json_response({"ready": answer.ready})
        response.status_code = 200 if answer.ready else 503
        return response

    async def _model_ready(self, request: Request) -> Response:
        answer = await self._call(request, "ModelReady", **_named(request))
        return Response(status_code=200 if answer.ready else 503)

    async def _model(self, request: Request) -> Response:
        return json_response(_snake(await self._call(request, "ModelMetadata", **_named(request))))

    async def _config(self, request: Request) -> Response:
        answer = await self._call(request, "ModelConfig", **_named(request))
        return json_response(_snake(answer.config))

    async def _statistics(self, request: Request) -> Response:
        answer = await self._call(request, "ModelStatistics", **_named(request))
        return json_response(_snake(answer))

    async def _index(self, request: Request) -> Response:
        async with self._bodies.read(request, json=True) as body:
            content = parse_object(body) if body else {}
        ready = content.get("ready", False)
        if not isinstance(ready, bool):
            raise invalid("ready", "must be true or false")
        answer = await self._call(request, "RepositoryIndex", ready=ready)
        return json_response([_snake(one) for one in answer.models])

    async def _load(self, request: Request) -> Response:
        return await self._change(request, "RepositoryModelLoad")

    async def _unload(self, request: Request) -> Response:
        return await self._change(request, "RepositoryModelUnload")

    async def _change(self, request: Request, method: str) -> Response:
        async with self._bodies.read(request, json=True) as body:
            content = parse_object(body) if body else {}
        parameters = content.get("parameters") or {}
        if not isinstance(parameters, dict):
            raise invalid("parameters", "must be an object")
        if unknown := [name for name in parameters if name != "unload_dependents"]:
            raise invalid(
                f"parameters.{unknown[0][:64]}",
                "is not supported; a variant is loaded as its directory describes it",
            )
        await self._call(request, method, model_name=request.path_params["model"])
        return json_response({})

    async def _infer(self, request: Request) -> Response:
        exchange = Exchange(request, self._upstream, self._settings.timeout_s)
        length = request.headers.get(HEADER_LENGTH)
        async with self._bodies.read(request, json=length is None) as body:
            header, binary = _split(body, length, self._settings.max_json_bytes)
            message, as_binary = await in_parser_thread(_parse, request, header, binary)
            content = message.SerializeToString()
            limit = self._settings.max_message_bytes
            if len(content) > limit:
                raise Problem(
                    "INVALID_ARGUMENT",
                    f"inputs: the request has {len(content)} bytes as a gRPC message, the limit is"
                    f" {limit} (max_message_bytes); send fewer images",
                    field="inputs",
                    limit=limit,
                    status=413,
                )
            answer = await exchange.run(exchange.call(f"/{METHODS['ModelInfer']}", content))
        response = message_class("ModelInferResponse").FromString(answer)
        header_out, contents = response_parts(response, as_binary)
        if not contents:
            return json_response(header_out)
        text = json.dumps(header_out, separators=(",", ":")).encode()
        return Response(
            b"".join((text, *contents)),
            media_type=OCTET_STREAM,
            headers={HEADER_LENGTH: str(len(text))},
        )

    async def _call(self, request: Request, method: str, **fields: Any) -> Any:
        exchange = Exchange(request, self._upstream, self._settings.timeout_s)
        content = message_class(f"{method}Request")(**fields).SerializeToString()
        repeatable = method not in ("RepositoryModelLoad", "RepositoryModelUnload")
        answer = await exchange.run(
            exchange.call(f"/{METHODS[method]}", content, repeatable=repeatable)
        )
        return message_class(f"{method}Response").FromString(answer)


def _named(request: Request) -> dict[str, str]:
    """Return model and version of a path."""
    path = request.path_params
    return {"name": path.get("model", ""), "version": path.get("version", "")}


def _parse(request: Request, header: bytes, binary: bytes) -> tuple[Any, dict[str, bool]]:
    names = _named(request)
    return request_message(names["name"], names["version"], parse_object(header), binary)


def _split(body: bytes, length: str | None, max_json_bytes: int) -> tuple[bytes, bytes]:
    """Return the JSON of a body, and the tensors behind it.

    Raises:
        Problem: The length of the JSON is wrong.
    """
    if length is None:
        return body, b""
    if not _LENGTH.fullmatch(length) or int(length) > min(len(body), max_json_bytes):
        raise invalid(
            HEADER_LENGTH,
            f"is {length[:32]!r}, must be the length of the JSON: up to {len(body)}, the body's,"
            f" and {max_json_bytes} (max_json_bytes)",
        )
    return body[: int(length)], body[int(length) :]


def _snake(message: Any) -> dict[str, Any]:
    return to_json(message, original_names=True)
