"""Requests reach the server with their metadata, and end with their client."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
import signal

import httpx2
import pytest
import websockets

from resnet50_gateway.app import routes_of
from resnet50_gateway.metrics import Metrics
from resnet50_gateway.openapi import description
from resnet50_gateway.settings import Settings
from resnet50_gateway.upstream import Upstream
from resnet50_server.cli.main import main
from resnet50_server.events import ServerEvents
from tests.support.gateways import TIMEOUT_S, GatewayProcess, client, gateway, problem
from tests.support.serving import server_processes, serving, until

SLOW = {"engine": "timed", "timed_alpha_ms": 5_000.0, "timed_beta_ms": 0.0}


class Calls(ServerEvents):
    """Keeps the calls of a server, and the codes of those that have ended."""

    def __init__(self) -> None:
        self.started = []
        self.codes = []

    def call_started(self, call) -> None:
        self.started.append(call)

    def call_ended(self, call, code, error) -> None:
        self.codes.append(code)


async def in_thread(function, *arguments, **options):
    return await asyncio.to_thread(function, *arguments, **options)


async def test_metadata_reaches_the_server(photo):
    headers = {
        "x-request-id": "mine-2",
        "x-priority": "bulk",
        "x-caller-key": "user-7",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }
    calls = Calls()
    async with serving() as server:
        server.parts.events.add(calls)
        with gateway(server.addresses[0]) as url, client(url) as http:
            await in_thread(http.post, "/v1/classify", content=photo, headers=headers)
            await in_thread(http.post, "/v1/classify", content=photo)
    first, second = (dict(call.metadata) for call in calls.started)
    assert {name: first[name] for name in headers} == headers
    assert calls.started[0].request_id == "mine-2"
    assert second["x-caller-key"] == "address:127.0.0.1"


async def test_a_disconnected_client_cancels_its_call(photo):
    calls = Calls()
    async with serving(**SLOW) as server:
        server.parts.events.add(calls)
        with gateway(server.addresses[0]) as url:
            host, _, port = url.removeprefix("http://").rpartition(":")
            _, writer = await asyncio.open_connection(host, int(port))
            head = f"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(photo)}\r\n\r\n"
            writer.write(head.encode() + photo)
            await until(lambda: calls.started)
            writer.close()
            await until(lambda: calls.codes)
    assert calls.codes == ["CANCELLED"]


async def test_a_deadline_reaches_the_server(photo):
    async with serving(**SLOW) as server:
        with gateway(server.addresses[0]) as url, client(url) as http:
            headers = {"x-timeout-ms": "300"}
            response = await in_thread(http.post, "/v1/classify", content=photo, headers=headers)
    assert (problem(response)["status"], problem(response)["code"]) == (504, "DEADLINE_EXCEEDED")


def test_a_killed_server_costs_no_request(photo):
    with server_processes() as start:
        servers = [start("--variants", "IMAGENET1K_V2", "--engine", "null") for _ in range(2)]
        addresses = [server.wait_until_listening() for server in servers]
        with gateway(*addresses) as url, client(url) as http:
            for number in range(60):
                if number == 20:
                    servers[0].process.send_signal(signal.SIGKILL)
                assert http.post("/v1/classify", content=photo).status_code == 200
            assert http.get("/readyz").status_code == 200
            servers[1].process.send_signal(signal.SIGKILL)
            servers[1].process.wait(60)
            response = http.post("/v1/classify", content=photo)
            assert http.get("/readyz").status_code == 503
            assert http.get("/.well-known/ready").status_code == 503
            assert http.get("/healthz").status_code == 200
    found = problem(response)
    assert found["code"] == "UNAVAILABLE"
    assert found["detail"].startswith("server: does not respond, see whether it is running")


@pytest.fixture(scope="module")
def secured(tmp_path_factory):
    """The URL of a gateway before a server with tokens; a token to infer, and one for admin."""
    path = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    tokens = []
    for flags in (("cameras",), ("operator", "--scope", "admin")):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            assert main(["tokens", "new", *flags, "--file", str(path)]) == 0
        tokens.append(printed.getvalue().strip())
    with server_processes() as start:
        address = start(
            *("--variants", "IMAGENET1K_V2", "--engine", "null"), "--tokens-file", str(path)
        ).wait_until_listening()
        with gateway(address) as url:
            yield url, *tokens


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def test_tokens_decide_about_each_method(secured, photo):
    url, infer, admin = secured
    with client(url) as http:
        missing = http.post("/v1/classify", content=photo)
        found = problem(missing)
        assert (found["status"], found["reason"]) == (401, "TOKEN_MISSING")
        assert missing.headers["www-authenticate"] == "Bearer"
        vectors = http.post("/vectors", json={"id": "1", "image": "/9j/"})
        assert (vectors.status_code, list(vectors.json())) == (401, ["error"])
        unknown = http.post("/v1/classify", content=photo, headers=bearer("x" * 48))
        assert problem(unknown)["reason"] == "TOKEN_UNKNOWN"
        right = http.post("/v1/classify", content=photo, headers=bearer(infer))
        assert right.status_code == 200
        splits = "/resnet50.v1.VariantService/ListTrafficSplits"
        assert http.post(splits, json={}, headers=bearer(infer)).status_code == 403
        assert http.post(splits, json={}, headers=bearer(admin)).json() == {}
        not_ascii = http.post("/v1/classify", content=photo, headers={"authorization": b"\xe9"})
        assert problem(not_ascii)["field"] == "authorization"


async def test_a_stream_takes_its_token_from_the_first_message(secured, photo):
    url, infer, _ = secured
    address = f"{url.replace('http', 'ws', 1)}/v1/stream"
    frame = (1).to_bytes(8, "big") + photo
    async with websockets.connect(address, proxy=None, open_timeout=TIMEOUT_S) as socket:
        await socket.send(json.dumps({"token": infer}))
        await socket.send(frame)
        assert "result" in json.loads(await socket.recv())
    async with websockets.connect(address, proxy=None, open_timeout=TIMEOUT_S) as socket:
        await socket.send(frame)
        assert json.loads(await socket.recv())["error"]["reason"] == "TOKEN_MISSING"
        with pytest.raises(websockets.ConnectionClosed):
            await socket.recv()
    assert socket.close_code == 1008


def test_the_log_has_a_line_for_each_request_at_debug(address, photo):
    running = GatewayProcess("--server", address, "--log-level", "debug")
    with client(running.wait_until_listening()) as http:
        http.post("/v1/classify", content=photo, headers={"x-request-id": "mine-3"})
    code, errors = running.terminate()
    (line,) = [line for line in errors.splitlines() if "mine-3" in line]
    assert "POST /v1/classify: 200 in " in line
    assert code == 0


def test_other_origins_are_allowed_by_name_only(address, photo):
    origin = "https://app.example"
    with gateway(address, options=("--cors-origin", origin)) as url, client(url) as http:
        asked = {"access-control-request-method": "POST", "access-control-request-headers": "x-a"}
        allowed = http.post("/v1/classify", content=photo, headers={"origin": origin})
        other = http.post("/v1/classify", content=photo, headers={"origin": "https://evil.example"})
        refused = http.options("/v1/classify", headers={"origin": "https://evil.example", **asked})
    assert allowed.headers["access-control-allow-origin"] == origin
    assert "access-control-allow-origin" not in other.headers
    assert "access-control-allow-origin" not in refused.headers


def test_no_origin_is_allowed_by_default(http, photo):
    headers = {"origin": "https://app.example"}
    response = http.post("/v1/classify", content=photo, headers=headers)
    assert "access-control-allow-origin" not in response.headers


async def test_the_description_has_every_path():
    settings = Settings(console=False)
    upstream = Upstream(settings, Metrics("1"))
    paths = {
        (route.path, method)
        for route in routes_of(settings, upstream, asyncio.Event())
        for method in getattr(route, "methods", {"GET"}) - {"HEAD"}
    }
    await upstream.close()
    undescribed = {"/openapi.json", "/docs", "/docs/style.css", "/vectors/"}
    described = {
        (path, method.upper())
        for path, methods in description()["paths"].items()
        for method in methods
    }
    assert described == {one for one in paths if one[0] not in undescribed}


def test_the_page_of_the_description_loads_nothing_from_elsewhere(http):
    spec = http.get("/openapi.json").json()
    assert spec["openapi"].startswith("3.1")
    page: httpx2.Response = http.get("/docs")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert re.findall(r'(?:src|href)="(?!/)', page.text) == []
    assert "<script" not in page.text
    assert http.get("/docs/style.css").headers["content-type"].startswith("text/css")
    for path in spec["paths"]:
        assert f"<code>{path}</code>" in page.text
