"""Servers behind a load balancer that are stopped and started."""

from __future__ import annotations

import signal
import subprocess
import sys

from resnet50_client import Client
from tests.e2e.proxies.callers import NotAsPromised
from tests.e2e.proxies.waiting import PATIENCE_S


class Backend:
    """One of the servers, with fixed ports; its answers have its name as their variant's.

    Args:
        name: "one" or "two".
        port: Where it listens.
        metrics: Where its HTTP listens.
    """

    def __init__(self, name: str, port: int, metrics: int) -> None:
        self.name = name
        self._address, self._metrics = f"127.0.0.1:{port}", f"127.0.0.1:{metrics}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; `wait` tells when it is ready."""
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "resnet50_server", "serve", "--listen", self._address),
                *("--variants", "one=random:0", "--variants", "two=random:0"),
                *("--default-variant", self.name, "--no-listen-while-loading"),
                *("--engine", "timed", "--timed-alpha-ms", "4", "--drain-timeout-s", "20"),
                *("--metrics-listen", self._metrics, "--log-level", "warning"),
            ],
            stdout=subprocess.DEVNULL,
        )

    def wait(self) -> None:
        """Wait until it is ready."""
        with Client(self._address) as client:
            client.wait_until_ready(timeout_s=PATIENCE_S)

    def drain(self) -> None:
        """Stop it as a supervisor does."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(PATIENCE_S)
        if status != 0:
            raise NotAsPromised(f"server {self.name} ended with {status} instead of 0")

    def kill(self) -> None:
        """End it without a word."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
