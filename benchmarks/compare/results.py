"""Results of the comparison, and the file that keeps them."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

CONCURRENCIES = (1, 4, 16)
# Clients of the load that the CPU per image and the rate of arrivals come from.
CLIENTS = CONCURRENCIES[-1]


@dataclass
class Result:
    """Outcome of one server with one network.

    Attributes:
        name: The server's.
        network: "resnet50" or "stub".
        settings: The server's.
        versions: Of its packages.
        measured: Time of the first turn, ISO 8601 without seconds, UTC.
        largest_difference: Between its probabilities and PyTorch's.
        failure: Reason why it could not be installed, started or compared; "" if it was.
        errors: Failed calls.
        figures: By name, a value per turn: `clients_N.{per_s,cpu_ms,p50_ms,p99_ms}` of N clients in
            a closed loop, `arrivals.{p50_ms,p99_ms}`, `memory_mib`; `others_percent`, the
            use of the processor by other processes before the server started.
    """

    name: str
    network: str
    settings: str
    versions: str = ""
    measured: str = ""
    largest_difference: float = 0.0
    failure: str = ""
    errors: int = 0
    figures: dict[str, list[float]] = field(default_factory=dict)

    def add(self, figure: str, value: float) -> None:
        """Add the value of a turn."""
        self.figures.setdefault(figure, []).append(round(value, 3))

    def median(self, figure: str) -> float:
        """Return the median over the turns; nan if the figure was not measured."""
        values = self.figures.get(figure)
        return statistics.median(values) if values else math.nan

    def range(self, figure: str) -> tuple[float, float]:
        """Return the least and the greatest value of a turn; nan if it was not measured."""
        values = self.figures.get(figure) or [math.nan]
        return min(values), max(values)


@dataclass(frozen=True)
class Run:
    """Circumstances of the results.

    Attributes:
        command: Command that made them.
        machine: Processor, cores, memory and system, as a sentence.
        versions: Packages that all servers share.
        threads: PyTorch's threads, in each server.
        seconds: Duration of each load of the network.
        rates: Poisson arrivals per second, by network.
    """

    command: str
    machine: str
    versions: str
    threads: int
    seconds: float
    rates: dict[str, float] = field(default_factory=dict)


def save(path: Path, results: list[Result], run: Run) -> None:
    """Write results as JSON."""
    values: dict[str, Any] = {"run": asdict(run), "results": [asdict(one) for one in results]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1) + "\n")


def load(path: Path) -> tuple[list[Result], Run]:
    """Return what `save` wrote."""
    values = json.loads(path.read_text())
    return [Result(**one) for one in values["results"]], Run(**values["run"])
