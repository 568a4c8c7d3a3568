"""HTTP port: liveness and readiness, independent of stalled clients."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from urllib.parse import urlsplit

import pytest
from pydantic import ValidationError

from resnet50_client import AsyncClient, Resnet50Error
from resnet50_server.batching.failed_batches import MAX_CONSECUTIVE_FAILURES
from resnet50_server.server import Server
from resnet50_server.settings import Settings
from resnet50_server.telemetry import http_server
from tests.support.pictures import encode, picture
from tests.support.scrape import ON, Scrape, fetch, get, scrape
from tests.support.serving import engines_of, gate, server_processes, serving, until

PNG = encode(picture())
RAW = b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"


async def health(server: Server) -> tuple[int, int, float]:
    """Return what /livez, /readyz and resnet50_ready say."""
    live, ready = [(await get(server, path))[0] for path in ("/livez", "/readyz")]
    return live, ready, (await scrape(server)).one("resnet50_ready")


async def test_server_is_live_at_once_and_ready_when_loaded():
    settings = Settings(
        listen=["127.0.0.1:0"],
        variants=["IMAGENET1K_V2", "IMAGENET1K_V1"],
        engine="timed",
        timed_alpha_ms=300.0,  # warming up takes twice as long, for each
        metrics_listen="127.0.0.1:0",
    )
    server = Server(settings)
    starting = asyncio.create_task(server.start())
    try:
        await until(lambda: server.metrics_url or starting.done())
        assert await health(server) == (200, 503, 0)
        assert await get(server, "/readyz") == (503, "the variants are being loaded\n")
        await starting
        assert await health(server) == (200, 200, 1)
    finally:
        await server.stop()


async def test_server_that_drains_is_alive_and_not_ready():
    async with serving(**ON) as server, AsyncClient(server.addresses[0]) as client:
        opened = gate(server)
        url = server.metrics_url
        call = asyncio.ensure_future(client.classify(PNG))
        await until(lambda: server.snapshot().requests == 1)
        stopping = asyncio.create_task(server.stop())
        await until(lambda: server.snapshot().draining)
        assert await health(server) == (200, 503, 0)
        assert await get(server, "/readyz") == (503, "the server is shutting down\n")
        opened.set()
        assert (await call).top
        await stopping
        with pytest.raises(OSError, match="refused"):
            await asyncio.to_thread(fetch, url + "/livez")
    assert not [one for one in threading.enumerate() if one.name.startswith("metrics")]


async def test_server_whose_engine_broke_is_not_alive():
    async with serving(**ON) as server, AsyncClient(server.addresses[0]) as client:
        (engine,) = engines_of(server)

        def fail(*_):
            raise RuntimeError("the device is lost")

        engine.run = fail
        for _ in range(MAX_CONSECUTIVE_FAILURES):
            assert await health(server) == (200, 200, 1)
            with pytest.raises(Resnet50Error):
                await client.classify(PNG)
        assert await health(server) == (503, 503, 0)
        code, said = await get(server, "/livez")
        assert (code, said.startswith("every variant on cpu fails")) == (503, True)


async def test_server_whose_event_loop_is_stuck_is_not_alive(monkeypatch):
    monkeypatch.setattr(http_server, "LIVE_TIMEOUT_S", 0.1)
    monkeypatch.setattr("resnet50_server.telemetry.gauges.READ_TIMEOUT_S", 0.1)
    async with serving(**ON) as server:
        answers = {}

        def ask() -> None:
            for path in ("/livez", "/readyz", "/metrics"):
                answers[path] = fetch(server.metrics_url + path)

        asking = threading.Thread(target=ask)
        asking.start()
        asking.join()  # the loop does nothing else meanwhile
        stuck = (503, "the event loop has not responded for 0.1 s\n")
        assert answers["/livez"] == answers["/readyz"] == stuck
        # The counts are still exported.
        status, text = answers["/metrics"]
        assert status == 200
        assert ("resnet50_shed_total", frozenset({("limit", "deadline")})) in Scrape(text)
        assert "resnet50_queue_images" not in text
        assert await health(server) == (200, 200, 1)


async def test_probes_answer_again_once_threads_can_be_started(monkeypatch):
    start = threading.Thread.start

    def fail(thread: threading.Thread) -> None:
        if "process_request_thread" in thread.name:
            raise RuntimeError("can't start new thread")
        start(thread)

    async with serving(**ON) as server:
        with monkeypatch.context() as without_threads:
            without_threads.setattr(threading.Thread, "start", fail)
            for _ in range(http_server.MAX_CONNECTIONS + 1):
                with pytest.raises(OSError):  # closed in one way or another
                    await asyncio.to_thread(fetch, f"{server.metrics_url}/livez")
        assert await health(server) == (200, 200, 1)


async def test_other_paths_and_methods_are_refused():
    async with serving(**ON) as server:
        assert (await get(server, "/"))[0] == 404
        assert (await get(server, "/metrics/x"))[0] == 404
        # A scraper may have parameters.
        assert (await get(server, "/metrics?name[]=resnet50_ready"))[0] == 200
        where = urlsplit(server.metrics_url)
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        writer.write(b"POST /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.0 501")
        writer.close()
        assert await health(server) == (200, 200, 1)


async def test_stalled_clients_are_bounded_and_block_no_others(monkeypatch):
    monkeypatch.setattr(http_server, "CLIENT_TIMEOUT_S", 300)  # they are not cut by themselves
    async with serving(**ON) as server, contextlib.AsyncExitStack() as stalled:
        where = urlsplit(server.metrics_url)
        for start in (b"", b"GET /met", RAW[:-2]) * 20:
            one = stalled.enter_context(socket.create_connection((where.hostname, where.port)))
            one.sendall(start)
        assert await health(server) == (200, 200, 1)
        threads = [one for one in threading.enumerate() if one.name.startswith("metrics-")]
        assert len(threads) <= http_server.MAX_CONNECTIONS


async def test_stalled_connection_is_closed(monkeypatch):
    monkeypatch.setattr(http_server, "CLIENT_TIMEOUT_S", 0.1)
    async with serving(**ON) as server:
        where = urlsplit(server.metrics_url)
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        writer.write(b"GET /met")
        assert await asyncio.wait_for(reader.read(), 30) == b""
        writer.close()


def test_port_in_use_stops_the_start_and_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken, server_processes() as start:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        process = start(
            "--variants", "IMAGENET1K_V2", "--engine", "null", "--metrics-listen", address
        ).process
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 1
        assert f"metrics_listen: cannot listen on {address}: Address already in use" in errors
        assert "--metrics-listen" in errors
        assert output == ""


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
async def test_ipv4_ipv6_and_names_are_listened_on(host):
    async with serving(metrics_listen=f"{host}:0") as server:
        assert server.metrics_url.startswith(f"http://{host}:")
        assert await health(server) == (200, 200, 1)


@pytest.mark.parametrize("address", ["9090", "127.0.0.1", "127.0.0.1:x", ":1", "a:70000", "unix:x"])
def test_invalid_address_is_rejected(address):
    with pytest.raises(ValidationError, match="is not host:port, such as"):
        Settings(variants=["IMAGENET1K_V2"], metrics_listen=address)
