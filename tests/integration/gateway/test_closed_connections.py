"""Requests whose connection ends before their response."""

from __future__ import annotations

import asyncio
import logging
import socket

import uvloop

from resnet50_gateway.process import GatewayServer
from resnet50_gateway.settings import Settings

PIPELINED = b"GET /one HTTP/1.1\r\nhost: a\r\n\r\nGET /two HTTP/1.1\r\nhost: a\r\n\r\n"


def test_pipelined_request_is_told_of_the_lost_connection(caplog):
    """uvicorn tells the last request that arrived, and lets others write to the closed one."""
    started: list[str] = []
    seen: list[str] = []

    async def app(scope, receive, send):
        started.append(scope["path"])
        arrived.set()
        while not seen or seen[-1] != "http.disconnect":
            seen.append((await asyncio.wait_for(receive(), 60))["type"])
        await asyncio.sleep(0)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"image"})
        ended.set()

    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            serving = asyncio.create_task(server.run_on(listener, None, []))
            _, writer = await asyncio.open_connection(*listener.getsockname())
            writer.write(PIPELINED)
            await asyncio.wait_for(arrived.wait(), 60)
            writer.transport.abort()
            try:
                await asyncio.wait_for(ended.wait(), 60)
            finally:
                server.should_exit = True
                await serving

    server = GatewayServer(Settings(server=["127.0.0.1:1"]), app)
    arrived, ended = asyncio.Event(), asyncio.Event()
    loop = uvloop.new_event_loop()
    with caplog.at_level(logging.DEBUG):
        try:
            loop.run_until_complete(run())
        finally:
            loop.close()
    assert started == ["/one"]
    assert seen[-1] == "http.disconnect"
    assert not [record for record in caplog.records if record.exc_info]
