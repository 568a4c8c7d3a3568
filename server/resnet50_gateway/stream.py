"""`WS /v1/stream`: frames over a WebSocket, each answered with JSON.

A client may first send a text message {"token": "..."}. Each frame is a binary message: its number
in 8 bytes, big-endian, then an encoded image. The text message {"end": true} ends the frames; the
remaining answers arrive and the WebSocket closes with 1000.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections import Counter
from contextlib import suppress
from typing import Any

import grpc
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from resnet50.v1 import image_pb2, inference_pb2

from . import query
from .cors import check_origin
from .exchange import metadata_of
from .inference import CLASSIFY, EMBED, Task
from .json_messages import to_json
from .problems import Problem, invalid, problem_of
from .settings import Settings
from .upstream import Upstream

log = logging.getLogger(__name__)

FRAME_ID_BYTES = 8
MAX_TEXT = 4096
# How long a client may take to send its first message.
FIRST_MESSAGE_S = 30.0
# WebSocket close codes: done, the client's error, the server's error, try again later.
DONE, POLICY, SERVER_ERROR, TRY_AGAIN = 1000, 1008, 1011, 1013
_TASKS = {"classify": CLASSIFY, "embed": EMBED}
_PARSERS = {CLASSIFY.name: query.CLASSIFY, EMBED.name: query.EMBED}
_TOKEN = re.compile(r"[!-~]{1,512}")


class StreamRoutes:
    """The route of frames.

    Args:
        settings: Limits, and the origins whose pages may open one.
        upstream: The servers.
    """

    def __init__(self, settings: Settings, upstream: Upstream) -> None:
        self._settings = settings
        self._upstream = upstream
        self._by_client: Counter[str] = Counter()

    def routes(self) -> list[BaseRoute]:
        """Return the route."""
        return [WebSocketRoute("/v1/stream", self._serve)]

    async def _serve(self, socket: WebSocket) -> None:
        await socket.accept()
        client = socket.client.host if socket.client is not None else ""
        self._by_client[client] += 1
        try:
            check_origin(socket, self._settings)
            self._check_limit("max_streams", sum(self._by_client.values()))
            self._check_limit("max_streams_per_client", self._by_client[client])
            await self._run(socket)
        except Problem as problem:
            with suppress(WebSocketDisconnect, RuntimeError):
                await socket.send_text(json.dumps({"error": problem.to_json()}))
                await socket.close(_close_code(problem), problem.code)
        except WebSocketDisconnect:
            pass
        finally:
            self._by_client[client] -= 1
            if not self._by_client[client]:
                del self._by_client[client]

    def _check_limit(self, setting: str, count: int) -> None:
        """Refuse a stream beyond a limit.

        Raises:
            Problem: It is refused.
        """
        limit: int = getattr(self._settings, setting)
        if count > limit:
            raise Problem(
                "RESOURCE_EXHAUSTED",
                f"{setting}: {limit} streams are open; retry in 1 s",
                limit=limit,
                retry_after_s=1.0,
            )

    async def _run(self, socket: WebSocket) -> None:
        """Open a stream at a server and forward both ways until one side ends."""
        task, config = _config(socket)
        first: dict[str, Any] | None = await _receive(socket, FIRST_MESSAGE_S)
        token = _token(first)
        if token is not None:
            first = None
        server = self._upstream.next_server()
        call = server.stream(task.path("Stream"), metadata_of(socket, token))
        sending = asyncio.ensure_future(self._forward_frames(socket, call, task, config, first))
        answering = asyncio.ensure_future(_forward_answers(socket, call, task))
        code = grpc.StatusCode.CANCELLED
        try:
            await asyncio.wait((sending, answering), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()  # raises if the client has disconnected, or sent what is wrong
                await answering
            answering.result()
            code = grpc.StatusCode.OK
            await socket.close(DONE)
        except grpc.aio.AioRpcError as error:
            code = error.code()
            raise problem_of(error) from None
        finally:
            call.cancel()
            sending.cancel()
            answering.cancel()
            await asyncio.gather(sending, answering, return_exceptions=True)
            server.count(code)

    async def _forward_frames(
        self,
        socket: WebSocket,
        call: Any,
        task: Task,
        config: Any,
        message: dict[str, Any] | None,
    ) -> None:
        """Send the frames of a client to the server until the client ends them."""
        request, idle_s = task.message("StreamRequest"), self._settings.stream_idle_timeout_s
        try:
            await call.write(request(config=config).SerializeToString())
            while True:
                message = message or await _receive(socket, idle_s)
                if (content := message.get("bytes")) is None:
                    _require_end(message.get("text") or "")
                    await call.done_writing()
                    return
                frame = _frame(content)
                message = None
                await call.write(request(frame=frame).SerializeToString())
        except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
            return  # the server has ended the stream; its answers have the reason


async def _forward_answers(socket: WebSocket, call: Any, task: Task) -> None:
    """Send the answers of the server to the client until the server ends them.

    Raises:
        grpc.aio.AioRpcError: It ends them with an error.
    """
    response = task.message("StreamResponse")
    while (content := await call.read()) is not grpc.aio.EOF:
        await socket.send_text(json.dumps(_answer(response.FromString(content))))
    code = await call.code()
    if code is not grpc.StatusCode.OK:
        raise grpc.aio.AioRpcError(
            code,
            await call.initial_metadata(),
            await call.trailing_metadata(),
            details=await call.details(),
        )


def _answer(response: Any) -> dict[str, Any]:
    """Return the answer to a frame: its number, and a result, an error, or its replacement."""
    content = to_json(response)
    frame_id = content.pop("frameId")
    if (error := content.pop("error", None)) is not None:
        return {"frameId": frame_id, "error": error}
    if (dropped := content.pop("dropped", None)) is not None:
        return {"frameId": frame_id, "dropped": dropped}
    return {"frameId": frame_id, "result": content}


def _config(socket: WebSocket) -> tuple[Task, Any]:
    """Return the task and the first message of a stream, from the query.

    Raises:
        Problem: A parameter is wrong.
    """
    name = socket.query_params.get("task", "classify")
    if name not in _TASKS:
        raise invalid("task", f"is {name[:32]!r}, must be classify or embed")
    task = _TASKS[name]
    parsers = {**_PARSERS[task.name], **query.STREAM}
    values = query.parse(socket.query_params, parsers, ("task",))
    stream = {key: values.pop(key) for key in query.STREAM if key in values}
    return task, task.message("StreamConfig")(options=task.options(**values), **stream)


async def _receive(socket: WebSocket, timeout_s: float) -> dict[str, Any]:
    """Return the next message.

    Raises:
        Problem: There is none in time.
        WebSocketDisconnect: The client has disconnected.
    """
    try:
        message = await asyncio.wait_for(socket.receive(), timeout_s)
    except asyncio.TimeoutError:
        raise Problem(
            "DEADLINE_EXCEEDED", f"no message within {timeout_s:g} s; send a token or a frame"
        ) from None
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", DONE))
    return dict(message)


def _token(message: dict[str, Any] | None) -> str | None:
    """Return the token of a first message; None if it is a frame or the end.

    Raises:
        Problem: It is a text without one.
    """
    content = _object(message.get("text")) if message else None
    if content is None or "end" in content:
        return None
    token = content.get("token")
    if set(content) != {"token"} or not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise invalid("token", 'the first text message must be {"token": "TOKEN"}')
    return token


def _require_end(text: str) -> None:
    content = _object(text)
    if content != {"end": True}:
        raise invalid(
            "message", 'texts after the first message must be {"end": true}; send frames as binary'
        )


def _object(text: str | None) -> dict[str, Any] | None:
    """Return the object of a text message; None if there is no text."""
    if text is None:
        return None
    if len(text) > MAX_TEXT:
        raise invalid("message", f"has {len(text)} characters, the limit is {MAX_TEXT}")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise invalid("message", "is a text that is no JSON object; send frames as binary messages")
    return content


def _frame(content: bytes) -> Any:
    if len(content) <= FRAME_ID_BYTES:
        raise invalid(
            "message",
            f"has {len(content)} bytes, must have {FRAME_ID_BYTES} with the number of the frame,"
            " big-endian, and an encoded image",
        )
    frame_id = int.from_bytes(content[:FRAME_ID_BYTES], "big")
    image = image_pb2.Image(encoded=content[FRAME_ID_BYTES:])
    return inference_pb2.Frame(frame_id=frame_id, image=image)


def _close_code(problem: Problem) -> int:
    if problem.code in ("UNAVAILABLE", "RESOURCE_EXHAUSTED"):
        return TRY_AGAIN
    return POLICY if problem.status < 500 else SERVER_ERROR
