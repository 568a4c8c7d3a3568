"""Servers with a stub engine start, and answer, without an import of torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

BLOCKED = """
import asyncio, io, sys
sys.modules["torch"] = sys.modules["torchvision"] = None  # an import of them raises ImportError
import numpy as np
from PIL import Image
from resnet50_server.server import Server
from resnet50_server.settings import Settings
from resnet50_client._async_client import AsyncClient

photo = io.BytesIO()
Image.fromarray(np.zeros((300, 400, 3), dtype=np.uint8)).save(photo, "JPEG")

async def run():
    variants = ["IMAGENET1K_V2", "untrained=random:0"]
    settings = Settings(listen=["127.0.0.1:0"], variants=variants, engine=sys.argv[1])
    server = Server(settings)
    await server.start()
    async with AsyncClient(server.addresses[0]) as client:
        print(len(await client.classify(photo.getvalue(), top_k=3)))
    await server.stop()

asyncio.run(run())
"""


@pytest.mark.parametrize("engine", ["null", "timed"])
def test_stub_engines_serve_without_torch(engine):
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, engine], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "3\n"
