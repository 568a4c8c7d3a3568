"""`resnet50 top`: what is asked for, and what is said of who does not answer."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc
import pytest

from resnet50_metrics import scrape
from resnet50_metrics.scrape import Endpoint, ScrapeError, fetch
from tests.support.exporting import Exported, exporting


@pytest.mark.parametrize(
    ("text", "name", "url"),
    [
        ("gpu-1:9464", "gpu-1:9464", "http://gpu-1:9464/metrics"),
        ("http://gpu-1:9464", "gpu-1:9464", "http://gpu-1:9464/metrics"),
        ("http://gpu-1/", "gpu-1", "http://gpu-1/metrics"),
        ("[::1]:9464", "[::1]:9464", "http://[::1]:9464/metrics"),
        ("https://edge/one/metrics", "https://edge/one", "https://edge/one/metrics"),
        ("http://gpu-1:9464/m?x=1", "gpu-1:9464/m?x=1", "http://gpu-1:9464/m?x=1"),
    ],
)
def test_endpoints_are_spelled_as_addresses_or_urls(text, name, url):
    assert Endpoint.of(text) == Endpoint(name, url)


@pytest.mark.parametrize(
    "text", ["", "gpu-1", "gpu-1:port", ":9464", "file:///etc/passwd", "http://", "a:1:2"]
)
def test_what_is_no_endpoint_is_refused(text):
    with pytest.raises(ValueError, match="--metrics"):
        Endpoint.of(text)


def test_credentials_in_a_url_are_refused_and_not_repeated():
    with pytest.raises(ValueError, match="user name or password") as caught:
        Endpoint.of("http://me:secret@gpu-1:9464")
    assert "secret" not in str(caught.value)


def test_values_are_read_by_name_and_labels():
    exported = Exported()
    exported.load("digits")
    exported.answer("digits", 8)
    with exporting(exported) as address:
        series = fetch(Endpoint.of(address), 5.0).series
    answered = frozenset({("variant", "digits"), ("outcome", "answered")})
    assert series["resnet50_images_total"] == {answered: 8.0}
    assert series["resnet50_shed_total"] == {}
    assert series["resnet50_ready"] == {frozenset(): 1.0}
    assert not any(name.startswith("python_") for name in series)


@contextlib.contextmanager
def answering(status: int, body: bytes) -> Iterator[Endpoint]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield Endpoint.of(f"127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (404, b"", "HTTP status 404"),
        (200, b"<html>\n<p>hello</p>", "not in Prometheus's text format"),
        (200, b"\xff\xfe", "not text"),
        (200, b"# TYPE go_goroutines gauge\ngo_goroutines 3\n", "is it another program"),
        (200, b"", "is it another program"),
    ],
)
def test_answers_that_are_no_metrics_of_ours_are_told_apart(status, body, reason):
    with answering(status, body) as endpoint, pytest.raises(ScrapeError, match=reason):
        fetch(endpoint, 5.0)


def test_an_answer_without_end_is_given_up(monkeypatch):
    monkeypatch.setattr(scrape, "MOST_BYTES", 100_000)
    with (
        answering(200, b"# \n" * 100_000) as endpoint,
        pytest.raises(ScrapeError, match="larger than"),
    ):
        fetch(endpoint, 5.0)


@contextlib.contextmanager
def raw(*sent: bytes, again: bytes = b"") -> Iterator[Endpoint]:
    """Answer a connection with bytes, then with `again` until it is closed."""
    done = threading.Event()

    def talk() -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            for part in sent:
                connection.sendall(part)
            while not done.wait(0.01) and again:
                connection.sendall(again)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=talk)
        thread.start()
        try:
            yield Endpoint.of(f"127.0.0.1:{listener.getsockname()[1]}")
        finally:
            done.set()
            thread.join()


def test_the_port_of_grpc_is_told_from_that_of_metrics():
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with pytest.raises(ScrapeError, match="is it the metrics port"):
            fetch(Endpoint.of(f"127.0.0.1:{port}"), 5.0)
    finally:
        server.stop(None).wait()


def test_a_server_that_sends_forever_is_given_up_in_time(monkeypatch):
    monkeypatch.setattr(scrape, "MOST_BYTES", 2000)  # five seconds of it
    head = b"HTTP/1.1 200 OK\r\n\r\n"
    with raw(head, again=b"# \n") as endpoint, pytest.raises(ScrapeError, match=r"within 0\.2 s"):
        fetch(endpoint, 0.2)


def test_nobody_there_is_told_in_words():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ScrapeError, match="connection refused"):
        fetch(Endpoint.of(f"127.0.0.1:{port}"), 5.0)
    with pytest.raises(ScrapeError):
        fetch(Endpoint.of("no-such-host.invalid:9464"), 5.0)
