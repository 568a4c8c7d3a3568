"""Connections, headers and bodies that are too large, too slow or too many."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import time

import httpx2
import pytest
import trustme

from tests.support.certs import authority, issue
from tests.support.gateways import GatewayProcess, client, gateway, problem


@pytest.fixture(scope="module")
def gateway_options():
    return (
        *("--header-timeout-s", "1", "--body-idle-timeout-s", "1", "--body-timeout-s", "60"),
        *("--max-body-bytes", "1000000", "--max-bodies-bytes", "1500000"),
        *("--max-connections", "40", "--max-requests-per-client", "8", "--keep-alive-s", "60"),
    )


@contextlib.contextmanager
def connection(url: str):
    host, _, port = url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=60) as opened:
        yield opened


def read_to_end(opened: socket.socket) -> bytes:
    """Return all that the gateway sends until it closes the connection."""
    content = b""
    with contextlib.suppress(ConnectionResetError):
        while part := opened.recv(65536):
            content += part
    return content


def head(path: str = "/v1/classify", length: int | None = None) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: image/jpeg"]
    lines.append("Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}")
    return "\r\n".join([*lines, "", ""]).encode()


@pytest.mark.parametrize(
    "sent", [b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ", b"\x16\x03\x01"]
)
def test_headers_that_do_not_arrive_close_the_connection(url, sent):
    with connection(url) as opened:
        opened.sendall(sent)
        answer = read_to_end(opened)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400")


def test_a_body_that_pauses_is_refused(url):
    with connection(url) as opened:
        opened.sendall(head(length=1000) + b"x" * 10)
        answer = read_to_end(opened)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"body_idle_timeout_s" in answer


@pytest.mark.parametrize("headers", [b"X-Long: " + b"a" * 20_000, b"X: y\r\n" * 4000 + b"Z: z"])
def test_large_headers_are_refused(url, headers):
    with connection(url) as opened:
        opened.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n\r\n")
        answer = read_to_end(opened)
    assert answer.startswith(b"HTTP/1.1 431")
    assert b"max_header_bytes" in answer


def test_endless_headers_are_refused(url):
    with connection(url) as opened:
        opened.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
        limit = time.monotonic() + 60
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            while time.monotonic() < limit:
                opened.sendall(b"a" * 65536)


def test_an_announced_body_is_refused_before_it_arrives(url):
    with connection(url) as opened:
        opened.sendall(head(length=1_000_001))
        answer = read_to_end(opened)
    assert answer.startswith(b"HTTP/1.1 413")
    content = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert (content["field"], content["limit"]) == ("body", 1_000_000)


def test_a_chunked_body_is_refused_at_the_limit(url):
    with connection(url) as opened:
        opened.sendall(head())
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(16):
                opened.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        assert read_to_end(opened).startswith(b"HTTP/1.1 413")


def test_bodies_share_a_limit_of_memory(url, http):
    limit = time.monotonic() + 60
    response = None
    while response is None or response.status_code != 503:
        assert time.monotonic() < limit
        with connection(url) as waiting:
            waiting.sendall(head(length=900_001) + bytes(900_000))
            response = http.post("/v1/classify", content=bytes(700_000))
    found = problem(response)
    assert (found["field"], found["limit"]) == ("body", 1_500_000)
    assert response.headers["retry-after"] == "1"
    # The memory is free again as soon as that client has gone.
    while http.post("/v1/classify", content=bytes(700_000)).status_code == 503:
        assert time.monotonic() < limit


def test_requests_of_one_client_are_limited(url, http):
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(connection(url)).sendall(head(length=10) + b"x")
        limit = time.monotonic() + 60
        while (response := http.get("/healthz")).status_code == 200:
            assert time.monotonic() < limit
        # Each way in gets the form of error that its clients parse.
        texts = (
            problem(response)["detail"],
            http.post("/v1/embeddings", json={}).json()["error"]["message"],
            http.post("/vectors", json={}).json()["error"],
            http.get("/.well-known/ready").json()["error"],
            http.get("/v2").json()["error"],
            http.post("/resnet50.v1.InferenceService/Embed", json={}).json()["message"],
        )
    for text in texts:
        assert text.startswith("max_requests_per_client: 8")


def test_connections_are_limited_and_free_again(url):
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(connection(url)) for _ in range(60)]
        assert opened[-1].recv(100) == b""  # closed at once
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        with contextlib.suppress(httpx2.TransportError), client(url) as http:
            if http.get("/healthz").status_code == 200:
                return
    raise AssertionError("connections that have ended still count")


def test_a_flood_of_pipelined_requests_is_refused(url):
    with connection(url) as opened:
        opened.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 5000)
        answer = read_to_end(opened)
    assert answer.count(b"HTTP/1.1 200") < 5000


def test_a_refused_request_leaves_its_connection_usable(http):
    for _ in range(3):
        assert http.post("/v1/classify?top_k=x", content=bytes(500_000)).status_code == 400
        assert http.get("/healthz").status_code == 200


def test_malformed_http_is_refused(url):
    for sent in (
        b"\r\n\r\n\r\n garbage",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\0" * 100,
        b"PRI * HTTP/2.0\r\n\r\n",
    ):
        with connection(url) as opened:
            opened.sendall(sent)
            answer = read_to_end(opened)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 400"), sent


@pytest.mark.parametrize(
    ("header", "status"),
    [(b"Content-Length: 99999999", b"400"), (b"X-Long: " + b"a" * 20_000, b"431")],
)
def test_an_upgrade_with_a_body_or_large_headers_is_refused(url, header, status):
    with connection(url) as opened:
        opened.sendall(
            b"GET /v1/stream HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            + header
            + b"\r\n\r\n"
        )
        assert read_to_end(opened).startswith(b"HTTP/1.1 " + status)


def test_a_gateway_drains(address, photo):
    running = GatewayProcess("--server", address)
    url = running.wait_until_listening()
    with connection(url) as opened:
        opened.sendall(head(length=len(photo)) + photo[:100])
        with client(url) as http:
            assert http.get("/healthz").status_code == 200
        running.process.terminate()
        opened.sendall(photo[100:])
        answer = opened.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200")
    assert running.process.wait(60) == 0
    running.process.communicate()


def test_https_with_client_certificates_and_a_new_certificate(address, tmp_path, photo):
    ca = authority()
    cert, key, trusted = (tmp_path / name for name in ("cert.pem", "key.pem", "ca.pem"))

    def write(leaf: trustme.LeafCert) -> None:
        cert.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        key.write_bytes(leaf.private_key_pem.bytes())

    write(issue(ca, "127.0.0.1"))
    ca.cert_pem.write_to_path(str(trusted))
    options = ("--tls-cert", str(cert), "--tls-key", str(key), "--tls-client-ca", str(trusted))
    context = ssl.create_default_context(cafile=str(trusted))
    with gateway(address, options=options) as url:
        assert url.startswith("https://")
        with client(url, verify=context) as http, pytest.raises(httpx2.TransportError):
            http.get("/healthz")
        mine = tmp_path / "mine.pem"
        issue(ca, "client.example").private_key_and_cert_chain_pem.write_to_path(str(mine))
        context.load_cert_chain(mine)
        with client(url, verify=context) as http:
            assert http.post("/v1/classify", content=photo).status_code == 200
        before = serial(url, context)
        write(issue(ca, "127.0.0.1"))
        limit = time.monotonic() + 60
        while serial(url, context) == before:
            assert time.monotonic() < limit


def serial(url: str, context: ssl.SSLContext) -> object:
    """Return the serial number of the gateway's certificate."""
    host, _, port = url.removeprefix("https://").rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=60) as plain,
        context.wrap_socket(plain, server_hostname=host) as encrypted,
    ):
        return encrypted.getpeercert()["serialNumber"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--listen", "nowhere"), "listen: 'nowhere' is not host:port"),
        (("--listen", "0.0.0.0:0"), "would be plain HTTP"),
        (("--server", "x"), "server: 'x' is neither host:port nor unix:PATH"),
        (("--cors-origin", "app.example"), "is no origin"),
        (("--tls-cert", "x.pem"), "tls_cert: needs tls_key"),
        (("--max-images", "0"), "max_images: Input should be greater than or equal to 1"),
        (("--tls-cert", "/none.pem", "--tls-key", "/none.key"), "No such file"),
    ],
)
def test_settings_that_cannot_be_used_are_named(arguments, text):
    running = GatewayProcess(*arguments)
    _, errors = running.process.communicate(timeout=60)
    assert running.process.returncode == 2
    assert text in errors
    assert "Traceback" not in errors
