"""Calls of the gateway to servers, of which some fail."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from starlette.requests import Request

from resnet50_gateway.exchange import Exchange
from resnet50_gateway.inference import EMBED, infer_batch
from resnet50_gateway.metrics import Metrics
from resnet50_gateway.problems import Problem
from resnet50_gateway.settings import Settings
from resnet50_gateway.upstream import Upstream

Handle = Callable[[bytes, Any], Awaitable[bytes]]
IMAGE_BYTES = 3000


class AnyMethod(grpc.GenericRpcHandler):
    """Gives the calls of all methods to one function."""

    def __init__(self, handle: Handle) -> None:
        self._handler = grpc.unary_unary_rpc_method_handler(handle)

    def service(self, _: Any) -> Any:
        return self._handler


@contextlib.asynccontextmanager
async def upstream_of(*handles: Handle) -> AsyncIterator[Upstream]:
    """Run a server for each function; yield the gateway's calls to them."""
    servers, addresses = [grpc.aio.server() for _ in handles], []
    for server, handle in zip(servers, handles, strict=True):
        server.add_generic_rpc_handlers((AnyMethod(handle),))
        addresses.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        await server.start()
    upstream = Upstream(Settings(server=addresses), Metrics("0"))
    try:
        yield upstream
    finally:
        await upstream.close()
        for server in servers:
            await server.stop(None)


async def test_a_second_attempt_has_the_rest_of_the_deadline(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(
        "resnet50_gateway.upstream.time", SimpleNamespace(monotonic=lambda: clock.now)
    )
    left_s = []

    async def fail_once(request: bytes, context: Any) -> bytes:
        left_s.append(context.time_remaining())
        if len(left_s) == 1:
            clock.now = 500.0
            await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        return request

    async with upstream_of(fail_once, fail_once) as upstream:
        assert await upstream.call("/any/Method", b"request", (), 800.0) == b"request"
    first, second = left_s
    assert second < 500.0 < first


async def test_a_failed_part_of_a_batch_ends_the_other_parts():
    """Before the request does, which then releases the memory of all images."""
    waiting = asyncio.Event()

    async def handle(request: bytes, context: Any) -> bytes:
        if b"bad" in request:
            await waiting.wait()
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        waiting.set()
        await asyncio.Event().wait()
        return b""

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    async with upstream_of(handle) as upstream:
        request = Request({"type": "http", "headers": [], "client": None}, receive)
        exchange = Exchange(request, upstream, 60.0)
        images = [b"bad".ljust(IMAGE_BYTES), b"good".ljust(IMAGE_BYTES)]
        others = asyncio.all_tasks()
        with pytest.raises(Problem, match="full"):
            await infer_batch(EMBED, images, EMBED.options(), exchange, IMAGE_BYTES + 5000)
        assert not [
            task
            for task in asyncio.all_tasks() - others
            if "of_group" in getattr(task.get_coro(), "__qualname__", "")
        ]
