"""The HTTP gateway's process; it is not started."""

from __future__ import annotations

import asyncio

from resnet50_server.cli.gateway_process import GatewayProcess
from resnet50_server.settings import Settings


async def test_gateway_that_cannot_be_started_is_tried_again(monkeypatch, caplog):
    attempts, done = [], asyncio.Event()

    async def spawn(*_: object, **__: object) -> asyncio.subprocess.Process:
        attempts.append(1)
        if len(attempts) == 2:
            done.set()
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", spawn)
    monkeypatch.setattr("resnet50_server.cli.gateway_process.MIN_BACKOFF_S", 0.001)
    gateway = await GatewayProcess.open(
        Settings(variants=["IMAGENET1K_V2"], engine="null", http_listen="127.0.0.1:0")
    )
    gateway.start(lambda: None)
    try:
        await asyncio.wait_for(done.wait(), 60)
    finally:
        await gateway.stop()
    assert "cannot be started (Resource temporarily unavailable)" in caplog.text
