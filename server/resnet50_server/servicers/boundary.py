"""What every RPC has around it: a request id in, a status out, nothing unexpected in between."""

from __future__ import annotations

import functools
import logging
import re
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar

import grpc

from ..status import DETAILS_KEY, REQUEST_ID_KEY, code_of, to_status

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Servicer = TypeVar("Servicer")
Request = TypeVar("Request")
Response = TypeVar("Response")

# What a caller may choose as its request id: it is logged and sent back.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


def answering(
    method: Callable[[Servicer, Request, Context], Awaitable[Response]],
) -> Callable[[Servicer, Request, Context], Awaitable[Response]]:
    """Turn what a unary method raises into a status with google.rpc details.

    The request id is the caller's `x-request-id`, or a fresh one; it comes back in the trailing
    metadata.
    """

    @functools.wraps(method)
    async def answered(servicer: Servicer, request: Request, context: Context) -> Response:
        request_id = _request_id(context)
        context.set_trailing_metadata(((REQUEST_ID_KEY, request_id),))
        try:
            return await method(servicer, request, context)
        except Exception as error:
            if isinstance(error, grpc.aio.AbortError):
                raise
            code = code_of(error)
            if code is grpc.StatusCode.INTERNAL:
                log.exception("request %s failed", request_id)
            status = to_status(error, request_id)
            await context.abort(
                code,
                status.message,
                ((DETAILS_KEY, status.SerializeToString()), (REQUEST_ID_KEY, request_id)),
            )

    return answered


async def unimplemented(context: Context, method: str) -> NoReturn:
    """Answer a method of the contract whose time has not come."""
    await context.abort(
        grpc.StatusCode.UNIMPLEMENTED,
        f"{method} is in the contract, but this release of the server does not answer it yet",
    )


def _request_id(context: Context) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_KEY and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            return value
    return uuid.uuid4().hex
