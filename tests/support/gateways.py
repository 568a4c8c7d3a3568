"""Gateways as processes of their own, in front of real servers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import httpx2

from tests.support import processes

# Of requests that succeed, on a loaded machine.
TIMEOUT_S = 60.0


class GatewayProcess:
    """`resnet50-gateway` as a process; `url` is known once it is ready.

    It is a fork of one that has imported the gateway (`processes`).

    Args:
        arguments: Of the command.
        environment: Beside this process's own.
    """

    def __init__(self, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self.process = processes.start(
            "resnet50-gateway",
            *("--listen", "127.0.0.1:0", *arguments),
            environment=os.environ | (environment or {}),
        )

    def wait_until_listening(self) -> str:
        """Return the URL that it prints."""
        assert self.process.stdout is not None and self.process.stderr is not None
        line = self.process.stdout.readline()
        assert line.startswith("listening on "), line + self.process.stderr.read()
        return line.removeprefix("listening on ").strip()

    def wait_until_ended(self) -> tuple[int, str]:
        """Wait for its own end; return the exit code and what was written to stderr."""
        _, errors = self.process.communicate(timeout=60)
        assert self.process.returncode is not None
        return self.process.returncode, errors

    def terminate(self) -> tuple[int, str]:
        """Send SIGTERM; return the exit code and what was written to stderr."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait_until_ended()


@contextlib.contextmanager
def gateway(*servers: str, options: tuple[str, ...] = ()) -> Iterator[str]:
    """Run a gateway in front of servers; yield its URL."""
    named = [argument for server in servers for argument in ("--server", server)]
    running = GatewayProcess(*named, *options)
    try:
        yield running.wait_until_listening()
    finally:
        code, errors = running.terminate()
        print(errors, file=sys.stderr)
    assert code == 0


def client(url: str, **options: Any) -> httpx2.Client:
    """Return an HTTP client of a gateway."""
    return httpx2.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False, **options)


def problem(response: httpx2.Response) -> dict[str, Any]:
    """Return problem details, with what all have checked."""
    content: dict[str, Any] = json.loads(response.content)
    assert response.headers["content-type"] == "application/problem+json"
    assert content["status"] == response.status_code
    assert content["requestId"] == response.headers["x-request-id"]
    assert "\n" not in content["detail"]
    return content
