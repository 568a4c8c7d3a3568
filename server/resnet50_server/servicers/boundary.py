"""What every RPC has around it: a request id in, a status out, nothing unexpected in between."""

from __future__ import annotations

import functools
import logging
import re
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any, NoReturn, TypeVar

import grpc

from ..status import DETAILS_KEY, REQUEST_ID_KEY, code_of, to_status

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
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


async def unimplemented(context: Context, method: str) -> NoReturn:
    """Answer a method of the contract whose time has not come."""
    await context.abort(
        grpc.StatusCode.UNIMPLEMENTED,
        f"{method} is in the contract, but this release of the server does not answer it yet",
    )


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
    await context.abort(
        code,
        status.message,
        ((DETAILS_KEY, status.SerializeToString()), (REQUEST_ID_KEY, request_id)),
    )


def _request_id(context: Context) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_KEY and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            return value
    return uuid.uuid4().hex
