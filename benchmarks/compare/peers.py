"""The servers that are compared: their packages, processes and settings."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.compare.environments import CACHE
from resnet50_server.runtime.cpus import cpus

SERVERS = Path(__file__).resolve().parent / "servers"
MAX_BATCH_SIZE = 16
START_TIMEOUT_S = 180.0


@dataclass(frozen=True)
class Peer:
    """A server that is compared.

    Attributes:
        name: Its name in tables.
        wire: Key of `wires.WIRES`.
        packages: Requirements of its environment; none for ours.
        script: File in `servers/`; "" for ours.
        flags: Of our server, with the real network.
        settings: Its settings, for the page.
    """

    name: str
    wire: str
    packages: tuple[str, ...] = ()
    script: str = ""
    flags: tuple[str, ...] = ()
    settings: str = ""

    @property
    def key(self) -> str:
        """Return its name on the command line and of its environment."""
        return re.sub("[^a-z0-9]+", "-", self.name.lower()).strip("-")

    @property
    def ours(self) -> bool:
        """Return whether it is this project's server."""
        return not self.script


PEERS = (
    Peer(
        "this (torch)",
        "resnet50",
        flags=("--engine", "torch"),
        settings="`--engine torch`, one decode thread; batches of at most 16",
    ),
    Peer(
        "this (default engine)",
        "resnet50",
        settings="`--engine auto`, otherwise the same",
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
        settings="one worker, `max_batch_size=16`, `batch_timeout=0`; base64 in JSON",
    ),
    Peer(
        "mosec",
        "body",
        ("mosec>=0.9",),
        "mosec_server.py",
        settings="one worker, `max_batch_size=16`, `max_wait_time=1` ms",
    ),
)


@dataclass(frozen=True)
class Process:
    """A running server: its address, its root process, and how it is measured (Linux)."""

    address: str
    root: psutil.Process = field(repr=False)

    def members(self) -> list[psutil.Process]:
        """Return the server's process and all below it."""
        return [self.root, *self.root.children(recursive=True)]

    def cpu_s(self) -> float:
        """Return the CPU time of all members, and of the children that have ended, in seconds."""
        total = 0.0
        for member in self.members():
            try:
                times = member.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
            total += times.children_user + times.children_system
        return total

    def memory_mib(self) -> float:
        """Return the memory of all members, shared pages counted once (PSS), in MiB."""
        total = 0
        for member in self.members():
            try:
                total += member.memory_full_info().pss
            except psutil.NoSuchProcess:
                continue
        return total / 2**20


@contextmanager
def running(peer: Peer, python: Path, weights: Path, log: Path, *, stub: bool) -> Iterator[Process]:
    """Run a server until the block ends.

    Args:
        peer: The server.
        python: Of its environment.
        weights: State dict in a variant's directory.
        log: File for its output.
        stub: Whether it serves constant probabilities instead of the network.

    Raises:
        RuntimeError: It does not listen within `START_TIMEOUT_S`, or has ended.
    """
    port = _free_port()
    threads = cpus()
    environment = os.environ | {
        "NETWORK": "stub" if stub else str(weights),
        "THREADS": str(threads),
        "MAX_BATCH_SIZE": str(MAX_BATCH_SIZE),
        "OMP_NUM_THREADS": str(threads),
        # OpenMP's threads that wait by spinning take the cores that the load generator shares.
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    if peer.ours:
        command = [sys.executable, "-m", "resnet50_server", "serve", "--log-level", "error"]
        command += ["--listen", f"127.0.0.1:{port}", "--variants", f"compared={weights.parent}"]
        command += ["--max-batch-size", str(MAX_BATCH_SIZE), "--engine-threads", str(threads)]
        command += ["--graph-cache-dir", str(CACHE / "graphs"), "--no-listen-while-loading"]
        command += ("--engine", "null") if stub else peer.flags
    else:
        command = [str(python), str(SERVERS / peer.script), str(port)]
        environment.pop("PYTHONPATH", None)
    with log.open("ab") as output:
        child = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    process = Process(f"127.0.0.1:{port}", psutil.Process(child.pid))
    try:
        _wait_until_listening(child, port, log)
        yield process
    finally:
        _end(process, child)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _wait_until_listening(child: subprocess.Popen, port: int, log: Path) -> None:
    ends = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < ends:
        if child.poll() is not None:
            break
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", port)):
                return
        time.sleep(0.2)
    raise RuntimeError(f"the server does not listen; its output ends: {log.read_text()[-2000:]}")


def _end(process: Process, child: subprocess.Popen) -> None:
    try:
        members = process.members()
    except psutil.NoSuchProcess:
        members = []
    child.send_signal(signal.SIGTERM)
    psutil.wait_procs(members, timeout=20)
    for member in members:
        if member.is_running():
            member.kill()
    child.wait()
