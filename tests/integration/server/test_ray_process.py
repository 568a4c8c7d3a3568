"""The child process of a Ray replica: started, watched, stopped, and ended with its parent."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys

import psutil
import pytest

from resnet50_client import AsyncClient
from resnet50_server.ray.options import RayOptions
from resnet50_server.ray.process import ServerEnded, ServerProcess
from tests.support.pictures import encode, photo_like
from tests.support.serving import until

NULL = {"engine": "null", "variants": ["a=random:1"]}


def process_of(tmp_path, port: int = 0, **settings) -> ServerProcess:
    flags = RayOptions(settings=NULL | settings).flags()
    return ServerProcess(flags, "127.0.0.1", port, str(tmp_path / "server.sock"))


async def test_server_serves_on_its_address_and_its_socket(tmp_path):
    process = process_of(tmp_path)
    await process.start()
    try:
        image = encode(photo_like(64, 48), "JPEG")
        for address in (process.address, f"unix:{tmp_path / 'server.sock'}"):
            async with AsyncClient(address) as client:
                await client.classify(image, timeout_s=60)
        assert process.metrics_url.startswith("http://127.0.0.1:")
    finally:
        await process.stop(60)
    assert not process.running
    assert "exit code 0" in await process.wait()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"engine": "torch", "device": "cuda:99"}, "exit code 1: .*cuda:99"),
        ({"variants": ["a=/missing"]}, "exit code [12]: .*/missing"),
    ],
    ids=["device", "weights"],
)
async def test_server_that_cannot_start_says_why(tmp_path, settings, reason):
    process = process_of(tmp_path, **settings)
    with pytest.raises(ServerEnded, match=reason):
        await process.start()


async def test_port_in_use_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        process = process_of(tmp_path, port)
        with pytest.raises(ServerEnded, match=f"listen: cannot listen on 127.0.0.1:{port}"):
            await process.start()


async def test_killed_server_is_noticed_with_its_signal(tmp_path):
    process = process_of(tmp_path)
    await process.start()
    os.kill(process.pid, signal.SIGKILL)
    assert "killed by signal 9" in await process.wait()
    await process.start()  # again
    await process.stop(60)


PARENT = """
import asyncio, sys
from resnet50_server.ray.process import ServerProcess

async def main():
    process = ServerProcess(sys.argv[2:], "127.0.0.1", 0, sys.argv[1])
    await process.start()
    print(process.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_server_ends_with_a_parent_that_is_killed(tmp_path):
    flags = RayOptions(settings=NULL).flags()
    arguments = [sys.executable, "-c", PARENT, str(tmp_path / "server.sock"), *flags]
    parent = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(await asyncio.to_thread(parent.stdout.readline))
    parent.kill()
    parent.communicate()
    await until(lambda: not psutil.pid_exists(pid))
