"""One HTTP request and the gRPC calls made for it: metadata, deadline, cancellation."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Sequence
from random import getrandbits
from typing import Any, TypeVar

from starlette.requests import HTTPConnection, Request

from .problems import ClientDisconnected, Problem, invalid
from .upstream import Metadata, Upstream

REQUEST_ID = "x-request-id"
# Passed on to the server as metadata.
FORWARDED = (
    "authorization",
    "x-priority",
    "x-caller-key",
    "traceparent",
    "tracestate",
)
TIMEOUT_HEADER = "x-timeout-ms"
MAX_TIMEOUT_MS = 10**9
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_PRINTABLE = re.compile(r"[ -~]*")
_NUMBER = re.compile(r"[0-9]{1,10}")

Value = TypeVar("Value")


def request_id_of(connection: HTTPConnection) -> str:
    """Return the client's x-request-id if it is valid, or a generated one; always the same."""
    known: str | None = getattr(connection.state, "request_id", None)
    if known is None:
        given = connection.headers.get(REQUEST_ID, "")
        known = given if _REQUEST_ID.fullmatch(given) else f"{getrandbits(128):032x}"
        connection.state.request_id = known
    return known


def metadata_of(connection: HTTPConnection, token: str | None = None) -> Metadata:
    """Return the metadata of the calls for a request.

    Without a token or an x-caller-key the client's IP address is the key of traffic splits; all
    clients of a gateway have one address for the server.

    Args:
        connection: The request.
        token: Replaces the authorization header.

    Raises:
        Problem: A header has characters that are not printable ASCII.
    """
    pairs = [(REQUEST_ID, request_id_of(connection))]
    for name in FORWARDED:
        for value in connection.headers.getlist(name):
            if not _PRINTABLE.fullmatch(value):
                raise invalid(name, "has characters that are not printable ASCII; remove them")
            if name != "authorization" or token is None:
                pairs.append((name, value))
    if token is not None:
        pairs.append(("authorization", f"Bearer {token}"))
    names = {name for name, _ in pairs}
    if connection.client is not None and names.isdisjoint(("authorization", "x-caller-key")):
        pairs.append(("x-caller-key", f"address:{connection.client.host}"))
    return tuple(pairs)


class Exchange:
    """The gRPC calls made for an HTTP request. They end when its client disconnects.

    Args:
        request: Its body has been read.
        upstream: The servers.
        timeout_s: From the request's arrival, in seconds; the default of the gateway.
        timeout_header: Name of the header with the client's timeout in milliseconds.

    Raises:
        Problem: A header of the request is wrong.
    """

    def __init__(
        self,
        request: Request,
        upstream: Upstream,
        timeout_s: float,
        timeout_header: str = TIMEOUT_HEADER,
    ) -> None:
        self._receive = request.receive
        self._upstream = upstream
        self._metadata = metadata_of(request)
        if (given := request.headers.get(timeout_header)) is not None:
            timeout_s = _milliseconds(timeout_header, given) / 1e3
        self._due = time.monotonic() + timeout_s
        self._calls: list[Any] = []

    async def call(self, method: str, request: bytes, *, repeatable: bool = True) -> bytes:
        """Return the response of a method with one request; see `Upstream.call`."""
        return await self._upstream.call(
            method,
            request,
            self._metadata,
            self._left_s(),
            repeatable=repeatable,
            on_call=self._calls.append,
        )

    async def upload(self, method: str, messages: Sequence[bytes]) -> bytes:
        """Return the response of a method with several requests; see `Upstream.upload`."""
        return await self._upstream.upload(
            method, messages, self._metadata, self._left_s(), on_call=self._calls.append
        )

    async def run(self, work: Awaitable[Value]) -> Value:
        """Return the result of work that makes calls; cancel them if the client disconnects.

        Raises:
            ClientDisconnected: It has.
        """
        watch = asyncio.ensure_future(self._disconnected())
        watch.add_done_callback(self._cancel_calls)
        try:
            return await work
        except asyncio.CancelledError:
            if watch.done() and not watch.cancelled():
                raise ClientDisconnected from None
            raise
        finally:
            watch.cancel()

    async def _disconnected(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def _cancel_calls(self, watch: asyncio.Future[None]) -> None:
        if not watch.cancelled():
            for call in self._calls:
                call.cancel()

    def _left_s(self) -> float:
        left_s = self._due - time.monotonic()
        if left_s <= 0:
            raise Problem("DEADLINE_EXCEEDED", "the deadline has passed; allow more time")
        return left_s


def _milliseconds(header: str, text: str) -> int:
    if not _NUMBER.fullmatch(text) or not 0 < int(text) <= MAX_TIMEOUT_MS:
        raise invalid(
            header,
            f"is {text[:32]!r}, must be a number of milliseconds, 1 to {MAX_TIMEOUT_MS}",
            limit=MAX_TIMEOUT_MS,
        )
    return int(text)
