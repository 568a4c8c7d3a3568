"""Every method with one request and one response over Connect and gRPC-Web.

Messages of protobuf are forwarded unparsed; JSON is translated.
Protocols: https://connectrpc.com/docs/protocol and gRPC's PROTOCOL-WEB.md.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import quote

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from resnet50.v1 import inference_pb2, variant_pb2

from .body import BodyReader
from .exchange import Exchange
from .json_input import in_parser_thread
from .problems import DETAILS_KEY, Problem, invalid
from .settings import Settings
from .upstream import Upstream

CONNECT_TIMEOUT = "connect-timeout-ms"
GRPC_TIMEOUT = "grpc-timeout"
JSON, PROTO = "application/json", "application/proto"
GRPC_WEB = ("application/grpc-web", "application/grpc-web+proto")
GRPC_WEB_TEXT = ("application/grpc-web-text", "application/grpc-web-text+proto")
# Larger JSON is parsed in a thread.
INLINE_BYTES = 64 * 1024
_HEADER_BYTES, _TRAILERS = 5, 0x80
_REPEATABLE = ("Classify", "Embed", "List", "Get")
_GRPC_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])")
_UNIT_MS = {"H": 3_600_000.0, "M": 60_000.0, "S": 1000.0, "m": 1.0, "u": 1e-3, "n": 1e-6}
_SERVICES = (
    inference_pb2.DESCRIPTOR.services_by_name["InferenceService"],
    variant_pb2.DESCRIPTOR.services_by_name["VariantService"],
)


class RpcRoutes:
    """The routes of methods.

    Args:
        settings: Limits and timeouts.
        upstream: The servers.
        bodies: Reads bodies.
    """

    def __init__(self, settings: Settings, upstream: Upstream, bodies: BodyReader) -> None:
        self._settings = settings
        self._upstream = upstream
        self._bodies = bodies
        self._methods: dict[str, MethodDescriptor] = {
            f"/{service.full_name}/{method.name}": method
            for service in _SERVICES
            for method in service.methods
        }

    def routes(self) -> list[BaseRoute]:
        """Return a route for each service."""
        # Endpoints of their own: metrics tell the services apart by them.
        return [
            Route(f"/{service.full_name}/{{method}}", partial(self._serve), methods=["POST"])
            for service in _SERVICES
        ]

    async def _serve(self, request: Request) -> Response:
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type in GRPC_WEB + GRPC_WEB_TEXT:
            return await self._grpc_web(request, content_type)
        try:
            return await self._connect(request, content_type)
        except Problem as problem:
            return connect_error(problem)

    async def _connect(self, request: Request, content_type: str) -> Response:
        method = self._method(request)
        if content_type not in (JSON, PROTO):
            raise Problem(
                "INVALID_ARGUMENT",
                f"content-type: is {content_type[:64]!r}, must be {JSON}, {PROTO} or {GRPC_WEB[0]}",
                field="content-type",
                status=415,
            )
        exchange = Exchange(request, self._upstream, self._settings.timeout_s, CONNECT_TIMEOUT)
        as_json = content_type == JSON
        async with self._bodies.read(request, json=as_json) as body:
            message = await _in_thread_if_large(_from_json, method, body) if as_json else body
            content = await self._call(method, message, exchange)
        if as_json:
            content = await _in_thread_if_large(_to_json, method, content)
        return Response(content, media_type=content_type)

    async def _grpc_web(self, request: Request, content_type: str) -> Response:
        text = content_type in GRPC_WEB_TEXT
        try:
            method = self._method(request)
            exchange = Exchange(request, self._upstream, _grpc_timeout_s(request, self._settings))
            async with self._bodies.read(request) as body:
                message = _unframed(body, text=text)
                content = await self._call(method, message, exchange)
        except Problem as problem:
            headers = {name: value for name, value in _grpc_status(problem)}
            return Response(b"", media_type=content_type, headers=headers)
        framed = _framed(0, content) + _framed(_TRAILERS, b"grpc-status: 0\r\n")
        return Response(base64.b64encode(framed) if text else framed, media_type=content_type)

    async def _call(self, method: MethodDescriptor, message: bytes, exchange: Exchange) -> bytes:
        if len(message) > self._settings.max_message_bytes:
            limit = self._settings.max_message_bytes
            raise Problem(
                "INVALID_ARGUMENT",
                f"message: has {len(message)} bytes, the limit is {limit} (max_message_bytes);"
                " send larger images to /v1/classify or /v1/embed",
                field="message",
                limit=limit,
                status=413,
            )
        path = f"/{method.containing_service.full_name}/{method.name}"
        repeatable = method.name.startswith(_REPEATABLE)
        return await exchange.run(exchange.call(path, message, repeatable=repeatable))

    def _method(self, request: Request) -> MethodDescriptor:
        method = self._methods.get(request.url.path)
        if method is None:
            raise Problem("UNIMPLEMENTED", f"path: {request.url.path[:128]!r} is no method")
        if method.client_streaming or method.server_streaming:
            raise Problem(
                "UNIMPLEMENTED",
                f"path: {method.name} is a stream, which HTTP/1.1 cannot carry; use /v1/classify or"
                " /v1/embed for large images, and the WebSocket /v1/stream for frames",
            )
        return method


async def _in_thread_if_large(
    function: Callable[[MethodDescriptor, bytes], bytes], method: MethodDescriptor, content: bytes
) -> bytes:
    if len(content) <= INLINE_BYTES:
        return function(method, content)
    return await in_parser_thread(function, method, content)


def _from_json(method: MethodDescriptor, content: bytes) -> bytes:
    """Return the serialized request of JSON.

    Raises:
        Problem: It is malformed; names the member.
    """
    try:
        message = json_format.Parse(content or b"{}", GetMessageClass(method.input_type)())
    except (json_format.ParseError, ValueError, RecursionError) as error:
        raise invalid(
            "body", f"is no {method.input_type.name} as JSON: {_one_line(error)}"
        ) from None
    return message.SerializeToString()


def _to_json(method: MethodDescriptor, content: bytes) -> bytes:
    message = GetMessageClass(method.output_type).FromString(content)
    return json_format.MessageToJson(message, indent=None).encode()


def connect_error(problem: Problem) -> Response:
    """Return a problem in the form of Connect, {"code": "…", "message": "…", "details": […]}."""
    details = [
        {
            "type": detail.type_url.rpartition("/")[2],
            "value": base64.b64encode(detail.value).decode().rstrip("="),
        }
        for detail in problem.details or _own_details(problem)
    ]
    content = {
        "code": "canceled" if problem.code == "CANCELLED" else problem.code.lower(),
        "message": problem.message,
        "details": details,
    }
    return Response(json.dumps(content), problem.status, media_type=JSON, headers=problem.headers())


def _own_details(problem: Problem) -> tuple[Any, ...]:
    """Return the details of a problem of the gateway itself, as a server would send them."""
    status = status_pb2.Status()
    if problem.field is not None:
        description = problem.message.removeprefix(f"{problem.field}: ")
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=problem.field, description=description
        )
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    return tuple(status.details)


def _grpc_status(problem: Problem) -> list[tuple[str, str]]:
    """Return the headers of a failed call of gRPC-Web."""
    number = grpc.StatusCode[problem.code].value[0]
    status = status_pb2.Status(
        code=number, message=problem.message, details=problem.details or _own_details(problem)
    )
    details = base64.b64encode(status.SerializeToString()).decode().rstrip("=")
    return [
        ("grpc-status", str(number)),
        ("grpc-message", quote(problem.message, safe=" !\"#$&'()*+,-./:;<=>?@[]^_`{|}~")),
        (DETAILS_KEY, details),
    ]


def _grpc_timeout_s(request: Request, settings: Settings) -> float:
    given = request.headers.get(GRPC_TIMEOUT)
    if given is None:
        return settings.timeout_s
    found = _GRPC_TIMEOUT.fullmatch(given)
    if found is None:
        raise invalid(GRPC_TIMEOUT, f"is {given[:32]!r}, must be 1 to 8 digits and a unit")
    return int(found[1]) * _UNIT_MS[found[2]] / 1e3


def _framed(flags: int, content: bytes) -> bytes:
    return bytes([flags]) + len(content).to_bytes(4, "big") + content


def _unframed(body: bytes, *, text: bool) -> bytes:
    """Return the one message of a gRPC-Web body.

    Raises:
        Problem: It is malformed, compressed, or has another number of messages.
    """
    if text:
        try:
            body = base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError) as error:
            raise invalid("body", f"is no base64: {error}") from None
    if len(body) < _HEADER_BYTES:
        raise invalid("body", f"has {len(body)} bytes, a frame of gRPC-Web has 5 or more")
    if body[0] != 0:
        raise Problem(
            "UNIMPLEMENTED", f"body: the frame has flags {body[0]:#x}; send it uncompressed, 0x0"
        )
    if len(body) != _HEADER_BYTES + int.from_bytes(body[1:_HEADER_BYTES], "big"):
        raise invalid("body", "the length of its frame is not that of the body; send one message")
    return body[_HEADER_BYTES:]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:512] or type(error).__name__
