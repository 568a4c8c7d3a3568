"""`resnet50-server serve --http-listen`: a gateway that is started, restarted and stopped."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from resnet50_client import Client
from tests.support.gateways import client
from tests.support.serving import server_processes


def children(pid: int) -> list[int]:
    """Return the process IDs of a process's children."""
    listed = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in listed.stdout.split()]


def gateway_of(pid: int) -> int:
    """Return the process ID of a server's gateway, once it has one."""
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        for child in children(pid):
            if b"resnet50_gateway" in Path(f"/proc/{child}/cmdline").read_bytes():
                return child
        time.sleep(0.05)
    raise AssertionError("the server has no gateway")


@pytest.fixture
def served():
    """A server with a gateway: the server, its gRPC address, the gateway's URL."""
    with server_processes() as start:
        server = start(
            *("--variants", "IMAGENET1K_V2", "--engine", "null"), "--http-listen", "127.0.0.1:0"
        )
        lines = [f"listening on {server.wait_until_listening()}"]
        while not lines[-1].startswith("http on "):
            lines.append(server.process.stdout.readline().strip())
        yield server, lines[0].removeprefix("listening on "), lines[-1].removeprefix("http on ")


def test_serve_starts_a_gateway_and_stops_it(served, photo):
    server, _, url = served
    with client(url) as http:
        assert http.post("/v1/classify", content=photo).status_code == 200
        assert http.get("/readyz").status_code == 200
    gateway = gateway_of(server.process.pid)
    code, _ = server.terminate()
    assert code == 0
    assert not Path(f"/proc/{gateway}").exists()


def test_grpc_callers_see_nothing_of_a_killed_gateway(served, photo):
    server, address, url = served
    ended, failures, answers = threading.Event(), [], []

    def call() -> None:
        with Client(address, timeout_s=60) as grpc_client:
            while not ended.is_set():
                try:
                    answers.append(grpc_client.classify(photo))
                except Exception as error:
                    failures.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    try:
        with client(url) as http:
            assert http.post("/v1/classify", content=photo).status_code == 200
        killed = gateway_of(server.process.pid)
        os.kill(killed, signal.SIGKILL)
        before = len(answers)
        # The server keeps the address: this connection waits until the next gateway accepts it.
        with client(url) as http:
            assert http.post("/v1/classify", content=photo).status_code == 200
        assert gateway_of(server.process.pid) != killed
        assert len(answers) > before
    finally:
        ended.set()
        caller.join()
    assert failures == []


def test_a_gateway_ends_with_a_killed_server(served):
    server, _, _ = served
    gateway = gateway_of(server.process.pid)
    handle = os.pidfd_open(gateway)  # readable once the process has ended
    try:
        server.process.kill()
        assert select.select([handle], [], [], 60)[0]
    finally:
        os.close(handle)


def test_an_address_in_use_is_named(served):
    _, _, url = served
    with server_processes() as start:
        other = start(
            *("--variants", "IMAGENET1K_V2", "--engine", "null"),
            *("--http-listen", url.removeprefix("http://")),
        )
        code, errors = other.wait_until_ended()
    assert code == 2
    assert "http_listen: cannot listen on" in errors


def test_plaintext_http_on_the_network_is_refused():
    with server_processes() as start:
        server = start(
            *("--variants", "IMAGENET1K_V2", "--engine", "null"), "--http-listen", "0.0.0.0:0"
        )
        code, errors = server.wait_until_ended()
    assert code == 2
    assert "http_listen: 0.0.0.0:0 is reachable from other machines" in errors
