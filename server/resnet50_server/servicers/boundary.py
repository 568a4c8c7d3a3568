"""What every RPC has around it: a request id in, a status out, nothing unexpected in between."""

from __future__ import annotations

import asyncio
import functools
import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from contextvars import ContextVar
from random import getrandbits
from typing import Any, NoReturn, TypeVar

import grpc
from google.protobuf.message import DecodeError

from ..errors import InvalidRequest
from ..status import DETAILS_KEY, REQUEST_ID_KEY, code_of, to_status

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
# What a context's `read` returns after the last message.
EOF = grpc.aio.EOF
Servicer = TypeVar("Servicer")
Request = TypeVar("Request")
Response = TypeVar("Response")

# The id of the call that runs.
REQUEST_ID: ContextVar[str] = ContextVar("request_id")
# What a caller may choose as its request id: it is logged and sent back.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


def answering(
    method: Callable[[Servicer, Request, Context], Awaitable[Response]],
) -> Callable[[Servicer, Request, Context], Awaitable[Response]]:
    """Turn what a method with one response raises into a status with google.rpc details.

    The request id is the caller's `x-request-id`, or a fresh one; it comes back in the trailing
    metadata.
    """

    @functools.wraps(method)
    async def answered(servicer: Servicer, request: Request, context: Context) -> Response:
        request_id = _enter(context)
        try:
            return await method(servicer, request, context)
        except Exception as error:
            await _abort(context, error, request_id)

    return answered


def streaming(
    method: Callable[[Servicer, Request, Context], AsyncGenerator[Response, None]],
) -> Callable[[Servicer, Request, Context], AsyncGenerator[Response, None]]:
    """Do the same for a method with a stream of responses."""

    @functools.wraps(method)
    async def streamed(
        servicer: Servicer, request: Request, context: Context
    ) -> AsyncGenerator[Response, None]:
        request_id = _enter(context)
        try:
            async with aclosing(method(servicer, request, context)) as responses:
                async for response in responses:
                    yield response
        except Exception as error:
            await _abort(context, error, request_id)

    return streamed


class Malformed:
    """Stands for a message that is not what its method takes.

    Args:
        reason: Of protobuf.
    """

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def __getattr__(self, name: str) -> Any:
        # Whatever a method looks at first, it is refused with the same words.
        raise InvalidRequest(
            "message", f"is not the protobuf message that this method takes: {self._reason}"
        )


def add_to_server(
    add: Callable[[Any, Any], None], servicer: object, server: grpc.aio.Server
) -> None:
    """Add a servicer whose methods refuse malformed messages as INVALID_ARGUMENT.

    By itself, grpc.aio answers UNKNOWN and logs a traceback for each.

    Args:
        add: The stubs' `add_…_to_server`.
        servicer: What it adds.
        server: Where to.
    """
    add(servicer, _Registration(server))


class _Registration:
    """Takes the place of the server while the stubs register their methods."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Do nothing: the stubs also register the same methods by name."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Register methods that parse with care."""
        careful = {
            name: handler._replace(request_deserializer=_careful(handler.request_deserializer))
            for name, handler in handlers.items()
        }
        generic = grpc.method_handlers_generic_handler(service, careful)
        self._server.add_generic_rpc_handlers((generic,))


def _careful(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def parse_or_refuse(content: bytes) -> Any:
        try:
            return parse(content)
        except DecodeError as error:
            return Malformed(str(error))

    return parse_or_refuse


def _enter(context: Context) -> str:
    """Give a call its id, for the log and the caller."""
    request_id = _request_id(context)
    REQUEST_ID.set(request_id)
    context.set_trailing_metadata(((REQUEST_ID_KEY, request_id),))
    return request_id


async def _abort(context: Context, error: Exception, request_id: str) -> NoReturn:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    code = code_of(error)
    if code is grpc.StatusCode.INTERNAL:
        log.error("request %s failed", request_id, exc_info=error)
    status = to_status(error, request_id)
    try:
        await context.abort(
            code,
            status.message,
            ((DETAILS_KEY, status.SerializeToString()), (REQUEST_ID_KEY, request_id)),
        )
    except grpc.aio.InternalError:
        # The call is over, its deadline has passed most likely: there is nobody to tell.
        log.debug("request %s ended before it could be refused: %s", request_id, status.message)
        raise asyncio.CancelledError from error


def _request_id(context: Context) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_KEY and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            return value
    # Not uuid4: it asks the kernel, and gives up the GIL for that.
    return f"{getrandbits(128):032x}"
