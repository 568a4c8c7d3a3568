"""Turns of the comparison: one server at a time, checked first, then loaded."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.compare.answers import check
from benchmarks.compare.load import Load
from benchmarks.compare.peers import Peer
from benchmarks.compare.process import Process, running
from benchmarks.compare.results import CLIENTS, CONCURRENCIES, Result
from benchmarks.compare.wires import WIRES, Answer

WARM_UP_S = 1.0
READY_TIMEOUT_S = 60.0
# Time over which the use by other processes is measured.
IDLE_S = 0.5
# The open loop's share of the slowest server's throughput.
SHARE = 0.7


class Generator:
    """The load generator's process."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child = child

    def run(self, load: Load) -> dict[str, Any]:
        """Return the output for a load.

        Raises:
            RuntimeError: The load could not be run.
        """
        assert self._child.stdin is not None and self._child.stdout is not None  # pipes
        print(load.to_json(), file=self._child.stdin, flush=True)
        output: dict[str, Any] = json.loads(self._child.stdout.readline() or "{}")
        if failure := output.get("failure", "" if output else "the load generator has ended"):
            raise RuntimeError(failure)
        return output


@contextmanager
def generator() -> Iterator[Generator]:
    """Run the load generator until the block ends."""
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.compare.load"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        yield Generator(child)


def percentile(values: list[float], share: float) -> float:
    """Return the value below which a share of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass(frozen=True)
class Bench:
    """Settings that all servers share.

    Attributes:
        generator: The load generator.
        images: JPEG files.
        weights: State dict in a variant's directory.
        expected: Probabilities of each image.
        seconds: Duration of each load of the network; the stub takes half of it, arrivals twice.
        log: File for the output of servers.
    """

    generator: Generator
    images: tuple[str, ...]
    weights: Path
    expected: list[list[float]]
    seconds: float
    log: Path

    def turn(self, peer: Peer, python: Path, result: Result, rate: float) -> None:
        """Start a server, check its answers, load it, and add its figures to `result`.

        Args:
            peer: The server.
            python: Of its environment.
            result: Its result, whose `failure` is set if it fails.
            rate: Poisson arrivals per second; 0 leaves this load out.
        """
        stub = result.network == "stub"
        self.log.write_text("")
        result.add("others_percent", psutil.cpu_percent(IDLE_S))
        try:
            with running(peer, python, self.weights, self.log, stub=stub) as process:
                answers = self._answers(peer, process)
                if not stub:
                    difference = check(answers, self.expected)
                    result.largest_difference = max(result.largest_difference, difference)
                self._measure(peer, process, result, rate)
        # A peer may fail in any way; its row says how, and the others are measured.
        except Exception as error:
            result.failure = f"{type(error).__name__}: {error}"

    def _load(self, peer: Peer, process: Process, seconds: float, **kind: Any) -> dict[str, Any]:
        load = Load(process.address, peer.wire, self.images, seconds, **kind)
        return self.generator.run(load)

    def _answers(self, peer: Peer, process: Process) -> list[Answer]:
        """Return one answer per image; a server that listens may still load, so it is retried."""
        decode = WIRES[peer.wire].decode
        ends = time.monotonic() + READY_TIMEOUT_S
        while True:
            try:
                replies = self._load(peer, process, 0.0)["replies"]
            except RuntimeError as error:
                if time.monotonic() > ends:
                    raise RuntimeError(f"the server does not answer: {error}") from error
                time.sleep(0.5)
            else:
                return [decode(bytes.fromhex(reply)) for reply in replies]

    def _measure(self, peer: Peer, process: Process, result: Result, rate: float) -> None:
        seconds = self.seconds / 2 if result.network == "stub" else self.seconds
        self._load(peer, process, WARM_UP_S, clients=CLIENTS)
        for clients in CONCURRENCIES:
            before = process.cpu_s()
            output = self._load(peer, process, seconds, clients=clients)
            used_s, count = process.cpu_s() - before, len(output["latencies_ms"])
            self._record(result, f"clients_{clients}", output)
            result.add(f"clients_{clients}.per_s", count / output["duration_s"])
            result.add(f"clients_{clients}.cpu_ms", used_s / count * 1e3)
        result.add("memory_mib", process.memory_mib())
        if rate > 0:
            self._record(result, "arrivals", self._load(peer, process, 2 * seconds, rate=rate))

    @staticmethod
    def _record(result: Result, load: str, output: dict[str, Any]) -> None:
        latencies_ms, errors = output["latencies_ms"], output["errors"]
        result.errors += sum(errors.values())
        if not latencies_ms:
            raise RuntimeError(f"no call succeeded: {errors}")
        for share in (50, 99):
            result.add(f"{load}.p{share}_ms", percentile(latencies_ms, share / 100))


def open_rate(results: list[Result]) -> float:
    """Return the arrivals per second that every server sustains; 0 without results."""
    name = f"clients_{CLIENTS}.per_s"
    each = [statistics.median(one.figures[name]) for one in results if one.figures.get(name)]
    return SHARE * min(each) if each else 0.0
