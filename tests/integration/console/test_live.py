"""`GET /v1/live`: figures of the servers, once a second."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import pytest

from resnet50_client import Client
from resnet50_gateway.live import MAX_LISTENERS
from resnet50_server.cli.main import main
from tests.support.gateways import GatewayProcess, client, gateway, problem
from tests.support.pictures import encode, picture
from tests.support.serving import server_processes

IMAGE = encode(picture())


@pytest.fixture(scope="module")
def server():
    """Yield the addresses of a server: of gRPC, and of its metrics."""
    with server_processes() as start:
        process = start(
            *("--variants", "IMAGENET1K_V2", "--engine", "null"),
            *("--metrics-listen", "127.0.0.1:0", "--no-listen-while-loading"),
        )
        address = process.wait_until_listening()
        metrics = process.process.stdout.readline().split()[-1]
        yield address, f"{metrics}/metrics"


@contextlib.contextmanager
def figures(http: httpx2.Client) -> Iterator[Iterator[dict[str, Any]]]:
    """Yield the objects of the events."""
    with http.stream("GET", "/v1/live") as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = (line for line in response.iter_lines() if line)
        yield (json.loads(line.removeprefix("data: ")) for line in lines)


@contextlib.contextmanager
def metrics_of(*texts: str) -> Iterator[str]:
    """Serve texts as metrics, one after the other and then the last; yield the URL."""
    left = list(reversed(texts))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = left.pop() if len(left) > 1 else left[0]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{served.server_port}/metrics"
        served.shutdown()
        thread.join()


def test_figures_have_rates_latency_and_variants(server):
    address, metrics = server
    with (
        gateway(address, options=("--metrics", metrics)) as url,
        client(url) as http,
        Client(address) as caller,
        figures(http) as events,
    ):
        first = next(events)
        assert first["servers"] == [
            {"name": metrics.removeprefix("http://").removesuffix("/metrics"), "failure": ""}
        ]
        assert first["total"]["images_per_s"] is None  # a rate needs two scrapes
        caller.classify(IMAGE)
        for event in events:
            if event["total"]["images_per_s"]:
                break
        (variant,) = event["total"]["variants"]
        assert variant["name"] == "IMAGENET1K_V2"
        assert variant["batch_mean"] == 1.0
        assert variant["stages"]["total"]["p50_ms"] > 0.0


def test_several_listeners_get_the_same_figures(server):
    address, metrics = server
    with (
        gateway(address, options=("--metrics", metrics)) as url,
        client(url) as http,
        figures(http) as first,
        figures(http) as second,
    ):
        ours, theirs = next(first), next(second)
        while ours["time"] < theirs["time"]:
            ours = next(first)
        while theirs["time"] < ours["time"]:
            theirs = next(second)
        assert ours == theirs


def test_unreachable_metrics_are_named_and_the_others_shown(server):
    address, metrics = server
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{closed.getsockname()[1]}"
        options = ("--metrics", metrics, "--metrics", f"http://{dead}/metrics")
        with gateway(address, options=options) as url, client(url) as http, figures(http) as events:
            event = next(events)
    assert event["servers"][1] == {"name": dead, "failure": "connection refused"}
    assert event["total"]["versions"]


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ("up 1\n", "exports no resnet50_ metrics; is it another program?"),
        ("resnet50_ready {", "the response is not in Prometheus's text format"),
    ],
)
def test_metrics_of_another_program_are_a_failure(server, text, failure):
    address, _ = server
    with (
        metrics_of(text) as metrics,
        gateway(address, options=("--metrics", metrics)) as url,
        client(url) as http,
        figures(http) as events,
    ):
        event = next(events)
    assert event["servers"][0]["failure"] == failure
    assert event["total"] is None


def test_figures_go_on_after_some_that_cannot_be_computed(server):
    address, _ = server
    busy = "# TYPE resnet50_engine_busy_seconds counter\nresnet50_engine_busy_seconds_total {}\n"
    texts = [busy.format(0), busy.format(1e308)]  # whose mean over two servers is beyond a float
    with metrics_of(*texts) as one, metrics_of(*texts) as two:
        options = ("--metrics", one, "--metrics", two)
        with gateway(address, options=options) as url, client(url) as http, figures(http) as events:
            times = [next(events)["time"] for _ in range(3)]
    assert times == sorted(set(times))


def test_figures_need_a_token_that_the_server_accepts(tmp_path):
    path = tmp_path / "tokens.toml"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["tokens", "new", "charts", "--file", str(path)]) == 0
    token = printed.getvalue().strip()
    with server_processes() as start:
        server = start(
            *("--variants", "IMAGENET1K_V2", "--engine", "null", "--tokens-file", str(path)),
            *("--metrics-listen", "127.0.0.1:0", "--no-listen-while-loading"),
        )
        address = server.wait_until_listening()
        metrics = f"{server.process.stdout.readline().split()[-1]}/metrics"
        with gateway(address, options=("--metrics", metrics)) as url:
            with client(url) as http:
                assert problem(http.get("/v1/live"))["reason"] == "TOKEN_MISSING"
            with client(url, headers={"authorization": f"Bearer {'x' * 48}"}) as http:
                assert problem(http.get("/v1/live"))["reason"] == "TOKEN_UNKNOWN"
            allowed = client(url, headers={"authorization": f"Bearer {token}"})
            with allowed as http, figures(http) as events:
                assert next(events)["total"]["variants"][0]["name"] == "IMAGENET1K_V2"


def test_gateway_without_metrics_says_how_to_name_them(server):
    address, _ = server
    with gateway(address) as url, client(url) as http:
        response = http.get("/v1/live")
        assert response.status_code == 404
        assert "--metrics URL" in problem(response)["detail"]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("metrics", "lacks a port: HOST:PORT"),
        ("ftp://127.0.0.1/metrics", "neither HOST:PORT nor an http(s) URL"),
        ("http://user:secret@127.0.0.1/metrics", "must not contain a user name or password"),
    ],
)
def test_address_of_metrics_that_is_wrong_ends_the_gateway(url, reason):
    code, errors = GatewayProcess("--metrics", url).wait_until_ended()
    assert code == 2
    assert errors.startswith("resnet50-gateway: metrics: ") and reason in errors
    assert "secret" not in errors


def test_listeners_beyond_the_limit_are_refused(server):
    address, metrics = server
    with (
        gateway(address, options=("--metrics", metrics)) as url,
        client(url, limits=httpx2.Limits(max_connections=None)) as http,
        contextlib.ExitStack() as listening,
    ):
        for _ in range(MAX_LISTENERS):
            next(listening.enter_context(figures(http)))
        response = http.get("/v1/live")
        assert response.status_code == 429
        assert problem(response)["limit"] == MAX_LISTENERS


def test_listeners_that_have_left_do_not_count(server):
    address, metrics = server
    with gateway(address, options=("--metrics", metrics)) as url, client(url) as http:
        for _ in range(MAX_LISTENERS + 2):
            with figures(http) as events:
                next(events)


def test_gateway_stops_while_a_client_listens(server):
    address, metrics = server
    with contextlib.ExitStack() as listening:
        with gateway(address, options=("--metrics", metrics)) as url:
            http = listening.enter_context(client(url))
            events = listening.enter_context(figures(http))
            next(events)
        for _ in events:
            pass
