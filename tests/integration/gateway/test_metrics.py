"""`--metrics-listen`: the gateway's own metrics."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import pytest
import websockets

from tests.support.gateways import TIMEOUT_S, GatewayProcess, client
from tests.support.scrape import Scrape, fetch
from tests.support.serving import until_result

REQUESTS, CALLS = "resnet50_gateway_requests_total", "resnet50_gateway_server_calls_total"


@contextlib.contextmanager
def measured(*arguments: str) -> Iterator[tuple[str, str]]:
    """Run a gateway; yield its URL and that of its metrics."""
    running = GatewayProcess("--metrics-listen", "127.0.0.1:0", *arguments)
    try:
        url = running.wait_until_listening()
        line = running.process.stdout.readline()
        assert line.startswith("metrics on ")
        yield url, line.removeprefix("metrics on ").strip()
    finally:
        code, errors = running.terminate()
    assert (code, errors) == (0, "")


def scrape(metrics: str) -> Scrape:
    status, text = fetch(f"{metrics}/metrics")
    assert status == 200, text
    return Scrape(text)


async def counted(metrics: str, name: str, *labels: str, least: int) -> dict:
    """Return a name's samples once their sum is at least a number."""

    async def found() -> Scrape:
        return scrape(metrics)

    shown = await until_result(found, lambda one: sum(one.of(name, *labels).values()) >= least)
    return shown.of(name, *labels)


async def test_requests_are_counted_by_route_and_status(address, photo):
    with measured("--server", address) as (url, metrics), client(url) as http:
        for content in (photo, photo, b"no image"):
            http.post("/v1/classify", content=content)
        http.get("/v1/classify")
        http.get("/made/up")
        http.post("/resnet50.v1.VariantService/ListVariants", json={})
        http.get("/console/console.js")
        assert await counted(metrics, REQUESTS, "route", "status", least=7) == {
            ("/v1/classify", "200"): 2,
            ("/v1/classify", "400"): 1,
            ("/v1/classify", "405"): 1,
            ("other", "404"): 1,
            ("/resnet50.v1.VariantService/{method}", "200"): 1,
            ("/console", "200"): 1,
        }
        shown = scrape(metrics)
    durations = shown.of("resnet50_gateway_request_duration_seconds_count", "route")
    assert durations["/v1/classify"] == 2
    received = shown.of("resnet50_gateway_received_bytes_total", "route")
    assert received["/v1/classify"] == 2 * len(photo) + len(b"no image")
    assert shown.of("resnet50_gateway_sent_bytes_total", "route")["/v1/classify"] > 0
    assert shown.one("resnet50_gateway_in_flight_requests") == 0


async def test_calls_are_counted_by_server_and_code(address, photo):
    servers = ("--server", "127.0.0.1:1", "--server", address)
    with measured(*servers) as (url, metrics), client(url) as http:
        for _ in range(2):
            assert http.post("/v1/classify", content=photo).status_code == 200
        http.post("/v1/classify", content=b"no image")
        found = await counted(metrics, CALLS, "server", "code", least=4)
    assert found[address, "OK"] == 2
    assert found[address, "INVALID_ARGUMENT"] == 1
    assert found["127.0.0.1:1", "UNAVAILABLE"] >= 1


async def test_streams_are_counted_by_their_end(address, photo):
    frame = (1).to_bytes(8, "big") + photo
    with measured("--server", address) as (url, metrics):
        stream = f"{url.replace('http', 'ws', 1)}/v1/stream"
        async with websockets.connect(stream, proxy=None, open_timeout=TIMEOUT_S) as socket:
            await socket.send(frame)
            answer = await socket.recv()
            assert "result" in json.loads(answer)
            assert scrape(metrics).one("resnet50_gateway_open_streams") == 1
            await socket.send('{"end": true}')
            with pytest.raises(websockets.ConnectionClosed):
                await socket.recv()
        async with websockets.connect(stream, proxy=None, open_timeout=TIMEOUT_S) as socket:
            await socket.send(frame)
            second = await socket.recv()  # of other timings, so of another length
        ended = await counted(metrics, "resnet50_gateway_streams_total", "code", least=2)
        assert ended == {"1000": 1, "disconnected": 1}
        shown = scrape(metrics)
    assert shown.one("resnet50_gateway_open_streams") == 0
    assert shown.one("resnet50_gateway_received_bytes_total", route="/v1/stream") > 2 * len(frame)
    assert shown.one("resnet50_gateway_sent_bytes_total", route="/v1/stream") >= (
        len(answer) + len(second)
    )
    assert shown.of(CALLS, "code") == {"OK": 1, "CANCELLED": 1}


async def test_requests_beyond_a_limit_are_counted(address, photo):
    options = ("--server", address, "--max-requests", "1")
    with measured(*options) as (url, metrics), client(url) as http, client(url) as other:

        def slow() -> Iterator[bytes]:
            yield photo[:100]
            assert other.post("/v1/classify", content=photo).status_code == 503
            yield photo[100:]

        assert http.post("/v1/classify", content=slow()).status_code == 200
        found = await counted(metrics, REQUESTS, "route", "status", least=2)
    assert found == {("/v1/classify", "200"): 1, ("other", "503"): 1}


def test_metrics_are_on_their_own_address_only(address):
    with measured("--server", address) as (url, metrics):
        assert fetch(f"{url}/metrics")[0] == 404
        assert fetch(f"{metrics}/v1/variants")[0] == 404
        shown = scrape(metrics)
    assert shown.of("resnet50_gateway_build_info", "version")


def test_metrics_address_in_use_is_named(address):
    with measured("--server", address) as (_, metrics):
        taken = metrics.removeprefix("http://")
        code, errors = GatewayProcess(
            "--server", address, "--metrics-listen", taken
        ).wait_until_ended()
    assert code == 2
    assert f"metrics_listen: cannot listen on {taken}" in errors
    assert "--metrics-listen" in errors
