"""The servers that are compared: their packages, wires and settings."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Peer:
    """A server that is compared.

    Attributes:
        name: Its name in tables.
        wire: Key of `wires.WIRES`.
        packages: Requirements of its environment; none for ours.
        script: File in `servers/`; "" for ours.
        arguments: Of the script, after the port; of our server, with the real network.
        environment: Variables of its process, as name and value.
        settings: Its settings, for the page.
    """

    name: str
    wire: str
    packages: tuple[str, ...] = ()
    script: str = ""
    arguments: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    settings: str = ""

    @property
    def key(self) -> str:
        """Return its name on the command line."""
        return re.sub("[^a-z0-9]+", "-", self.name.lower()).strip("-")

    @property
    def ours(self) -> bool:
        """Return whether it is this project's server."""
        return not self.script


# High throughput as the manual names it; no token in the home folder, no report of usage.
RAY = (
    ("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1"),
    ("RAY_AUTH_MODE", "disabled"),
    ("RAY_USAGE_STATS_ENABLED", "0"),
)
PEERS = (
    Peer(
        "this (torch)",
        "resnet50",
        arguments=("--engine", "torch"),
        settings="gRPC; `--engine torch`, `--max-batch-size 16`, `--engine-threads 2`, one decode"
        " thread",
    ),
    Peer(
        "this (default engine)",
        "resnet50",
        settings="`--engine auto`: the fastest that is installed, otherwise the same",
    ),
    Peer(
        "grpc.aio",
        "grpc",
        ("grpcio>=1.72.1,<2", "uvloop>=0.21"),
        "grpc_aio.py",
        settings="one image per call in one worker thread, no batching; uvloop",
    ),
    Peer(
        "LitServe",
        "base64",
        ("litserve>=0.2.13",),
        "litserve_server.py",
        settings="HTTP, base64 in JSON; one worker, `max_batch_size=16`, `batch_timeout=0.002`,"
        " `fast_queue=True`",
    ),
    Peer(
        "mosec",
        "body",
        ("mosec>=0.9",),
        "mosec_server.py",
        settings="HTTP, the body is the JPEG; one worker, `max_batch_size=16`,"
        " `max_wait_time=1` ms",
    ),
    Peer(
        "BentoML",
        "base64-list",
        ("bentoml>=1.4",),
        "bentoml_server.py",
        settings="HTTP, base64 in JSON; one worker, `batchable=True`, `max_batch_size=16`,"
        " `max_latency_ms=60000`",
    ),
    Peer(
        "Ray Serve (HTTP)",
        "body",
        ("ray[serve]>=2.50",),
        "ray_server.py",
        ("http",),
        RAY,
        settings="HTTP, the body is the JPEG; one replica, `@serve.batch(max_batch_size=16,"
        " batch_wait_timeout_s=0.001)`, computed in a thread;"
        " `RAY_SERVE_THROUGHPUT_OPTIMIZED=1`",
    ),
    Peer(
        "Ray Serve (gRPC)",
        "wrapped",
        ("ray[serve]>=2.50",),
        "ray_server.py",
        ("grpc",),
        RAY,
        settings="the gRPC proxy, otherwise the same",
    ),
    Peer(
        "PyTriton",
        "triton",
        ("nvidia-pytriton>=0.7",),
        "pytriton_server.py",
        settings="Triton's HTTP with a BYTES tensor; one Python function, `max_batch_size=16`,"
        " `max_queue_delay_microseconds=1000`",
    ),
)
