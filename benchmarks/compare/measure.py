"""Turns of the comparison: one server at a time, checked first, then loaded."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.compare.answers import WrongAnswer, check
from benchmarks.compare.load import Load
from benchmarks.compare.peers import Peer, Process, running
from benchmarks.compare.wires import WIRES, Answer

CLIENTS = 16
WARM_UP_S = 2.0


@dataclass
class Figures:
    """Figures of one server with one network, a value per turn.

    Attributes:
        one_p50_ms: Median latency with one client.
        one_p99_ms: 99th percentile with one client.
        per_s: Responses a second with `CLIENTS` clients.
        p50_ms: Median latency with them.
        p99_ms: 99th percentile with them.
        cpu_ms: CPU time of all processes of the server per response, with them.
        memory_mib: Memory of all processes of the server, after that load.
        open_p50_ms: Median latency under Poisson arrivals.
        open_p99_ms: 99th percentile under Poisson arrivals.
        errors: Failed calls.
    """

    one_p50_ms: list[float] = field(default_factory=list)
    one_p99_ms: list[float] = field(default_factory=list)
    per_s: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)
    open_p50_ms: list[float] = field(default_factory=list)
    open_p99_ms: list[float] = field(default_factory=list)
    errors: int = 0


@dataclass
class Result:
    """Outcome of one server with one network.

    Attributes:
        name: The server's.
        network: "resnet50" or "stub".
        settings: The server's.
        versions: Of its packages.
        largest_difference: Between its probabilities and PyTorch's.
        failure: Reason why it could not be installed, started or compared; "" if it was.
        figures: The figures.
    """

    name: str
    network: str
    settings: str
    versions: str = ""
    largest_difference: float = 0.0
    failure: str = ""
    figures: Figures = field(default_factory=Figures)


def to_json(results: list[Result]) -> list[dict[str, Any]]:
    """Return results as JSON values."""
    return [asdict(result) for result in results]


def from_json(values: list[dict[str, Any]]) -> list[Result]:
    """Return results of JSON values."""
    return [Result(**(value | {"figures": Figures(**value["figures"])})) for value in values]


def generate(load: Load) -> dict[str, Any]:
    """Run the load generator; return its output."""
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.compare.load"],
        input=load.to_json(),
        capture_output=True,
        text=True,
        check=True,
    )
    output: dict[str, Any] = json.loads(ran.stdout)
    return output


def percentile(values: list[float], share: float) -> float:
    """Return the value below which a share of the values lies; nan of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


@dataclass(frozen=True)
class Bench:
    """Settings that all servers share.

    Attributes:
        images: JPEG files.
        weights: State dict in a variant's directory.
        expected: Probabilities of each image.
        seconds: Duration of each load.
        log: File for the output of servers.
    """

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
        try:
            with running(peer, python, self.weights, self.log, stub=stub) as process:
                if not stub:
                    difference = check(self._answers(peer, process), self.expected)
                    result.largest_difference = max(result.largest_difference, difference)
                self._measure(peer, process, result.figures, rate)
        except (WrongAnswer, RuntimeError, subprocess.CalledProcessError) as error:
            result.failure = f"{type(error).__name__}: {error}"

    def _load(self, peer: Peer, process: Process, seconds: float, **kind: Any) -> dict[str, Any]:
        return generate(Load(process.address, peer.wire, self.images, seconds, **kind))

    def _answers(self, peer: Peer, process: Process) -> list[Answer]:
        """Return one answer per image; a server that listens may still load, so it is retried."""
        decode = WIRES[peer.wire].decode
        last: list[str] = []
        for _ in range(20):
            try:
                replies = self._load(peer, process, 0.0)["replies"]
            except subprocess.CalledProcessError as error:
                last = error.stderr.strip().splitlines()[-1:]
                time.sleep(2.0)
            else:
                return [decode(bytes.fromhex(reply)) for reply in replies]
        raise RuntimeError(f"the server does not answer: {''.join(last)}")

    def _measure(self, peer: Peer, process: Process, figures: Figures, rate: float) -> None:
        self._load(peer, process, WARM_UP_S, clients=CLIENTS)
        one = self._load(peer, process, self.seconds)
        before = process.cpu_s()
        many = self._load(peer, process, self.seconds, clients=CLIENTS)
        used_s, count = process.cpu_s() - before, len(many["latencies_ms"])
        figures.memory_mib.append(process.memory_mib())
        figures.one_p50_ms.append(percentile(one["latencies_ms"], 0.5))
        figures.one_p99_ms.append(percentile(one["latencies_ms"], 0.99))
        figures.per_s.append(count / many["duration_s"])
        figures.p50_ms.append(percentile(many["latencies_ms"], 0.5))
        figures.p99_ms.append(percentile(many["latencies_ms"], 0.99))
        figures.cpu_ms.append(used_s / count * 1e3 if count else float("nan"))
        loads = [one, many]
        if rate > 0:
            arrivals = self._load(peer, process, self.seconds, rate=rate)
            figures.open_p50_ms.append(percentile(arrivals["latencies_ms"], 0.5))
            figures.open_p99_ms.append(percentile(arrivals["latencies_ms"], 0.99))
            loads.append(arrivals)
        figures.errors += sum(sum(load["errors"].values()) for load in loads)


def open_rate(results: list[Result]) -> float:
    """Return 60% of the lowest throughput, which every server can sustain; 0 without results."""
    each = [statistics.median(result.figures.per_s) for result in results if result.figures.per_s]
    return 0.6 * min(each) if each else 0.0
