"""A running server of the comparison: how it starts, is measured and ends (Linux)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.compare.environments import CACHE
from benchmarks.compare.peers import Peer
from resnet50_server.runtime.cpus import cpus

SERVERS = Path(__file__).resolve().parent / "servers"
MAX_BATCH_SIZE = 16
START_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Process:
    """A running server: its address and its root process."""

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
    environment = _environment(peer) | {"NETWORK": "stub" if stub else str(weights)}
    if peer.ours:
        command = [sys.executable, "-m", "resnet50_server", "serve", "--log-level", "error"]
        command += ["--listen", f"127.0.0.1:{port}", "--variants", f"compared={weights.parent}"]
        command += ["--max-batch-size", str(MAX_BATCH_SIZE), "--engine-threads", str(cpus())]
        command += ["--graph-cache-dir", str(CACHE / "graphs"), "--no-listen-while-loading"]
        command += ("--engine", "null") if stub else peer.arguments
    else:
        command = [str(python), str(SERVERS / peer.script), str(port), *peer.arguments]
    with tempfile.TemporaryDirectory(prefix="compare-", ignore_cleanup_errors=True) as scratch:
        with log.open("ab") as output:
            child = subprocess.Popen(
                command,
                env=environment | {"SCRATCH": scratch},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        process = Process(f"127.0.0.1:{port}", psutil.Process(child.pid))
        try:
            _wait_until_listening(child, port, log)
            yield process
        finally:
            _end(process, child)


def _environment(peer: Peer) -> dict[str, str]:
    """Return the variables of a server's process, without the network."""
    threads = str(cpus())
    variables = os.environ | {
        "THREADS": threads,
        "MAX_BATCH_SIZE": str(MAX_BATCH_SIZE),
        "OMP_NUM_THREADS": threads,
        # OpenMP's threads that wait by spinning take the cores that the load generator shares.
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    if not peer.ours:
        variables.pop("PYTHONPATH", None)
    return variables | dict(peer.environment)


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
        time.sleep(0.1)
    ended = "" if child.returncode is None else f": it ended with status {child.returncode}"
    lines = log.read_text(errors="replace").strip().splitlines() or ["(no output)"]
    raise RuntimeError(f"the server does not listen{ended}; its last output: {lines[-1]}")


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
