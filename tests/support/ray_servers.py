"""Servers on a Ray cluster of this machine: deployments, their processes, load."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from ray import serve
from ray.exceptions import RayError

from resnet50_client import Client
from resnet50_client.ray import RayServers
from resnet50_server.ray.application import build
from resnet50_server.ray.options import RayOptions
from resnet50_server.ray.yaml_file import application_yaml
from tests.support.pictures import encode, photo_like

WAIT_S = 180.0
TIMEOUT_S = 90.0
IMAGE = encode(photo_like(64, 48), "JPEG")
# Nodes listen on an address of the machine that others may reach, too.
PLAINTEXT = {"allow_plaintext": True}
# Each batch takes 2 ms, and 3 ms for each image.
TIMED = PLAINTEXT | {
    "engine": "timed",
    "timed_alpha_ms": 2,
    "timed_beta_ms": 3,
    "variants": ["one=random:1", "two=random:2"],
}


def deploy(app: str, **options: Any) -> None:
    """Deploy servers, or change those of an earlier deployment, and wait until they are ready."""
    found: dict[str, Any] = {"num_cpus": 0.4, "settings": TIMED} | options
    found["settings"] = PLAINTEXT | found["settings"]
    serve.run(build(RayOptions(**found)), name=app, route_prefix=None)


def serve_deploy(dashboard: str, app: str, options: RayOptions) -> None:
    """Apply the printed file by Ray's own command, which does not wait for the servers."""
    command = [str(Path(sys.executable).with_name("serve")), "deploy", "--address", dashboard]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(application_yaml(app, options))
        file.flush()
        subprocess.run([*command, file.name], check=True, timeout=WAIT_S)


def wait_until(condition: Callable[[], object], limit_s: float = WAIT_S) -> float:
    """Wait until a condition holds; return the seconds that it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < limit_s, "it did not happen in time"
        time.sleep(0.05)
    return time.monotonic() - began


def processes(word: str) -> list[psutil.Process]:
    return [
        one
        for one in psutil.process_iter(["cmdline", "status"])
        if one.info["status"] != psutil.STATUS_ZOMBIE
        and any(word in part for part in one.info["cmdline"] or ())
    ]


def server_processes() -> list[psutil.Process]:
    return processes("--stop-with-stdin")


def replica_processes() -> list[psutil.Process]:
    return processes("ServeReplica:shop")


def ready(app: str) -> list[str]:
    """Return the addresses in the directory; none while it is being started, or started again."""
    with suppress(RayError, LookupError):
        return RayServers(app)()
    return []


def wait_for_servers(app: str, count: int) -> float:
    return wait_until(lambda: len(ready(app)) == count)


class Load:
    """Calls from several threads, until it is stopped; each has a deadline.

    Attributes:
        variants: Name of the variant of each result.
        errors: Failed calls.
    """

    def __init__(self, client: Client, callers: int = 4) -> None:
        self._client = client
        self._stopping = threading.Event()
        self.variants: list[str] = []
        self.errors: list[Exception] = []
        self._threads = [threading.Thread(target=self._call) for _ in range(callers)]

    def _call(self) -> None:
        while not self._stopping.is_set():
            try:
                result = self._client.classify(IMAGE, timeout_s=TIMEOUT_S)
            except Exception as error:
                self.errors.append(error)
            else:
                self.variants.append(result.variant.name)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        self.wait_for(20)
        return self

    def wait_for(self, count: int) -> None:
        """Wait for further results."""
        known = len(self.variants)
        wait_until(lambda: len(self.variants) >= known + count or self.errors)

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        assert self.errors == []
        print(f"{len(self.variants)} calls, none failed")
