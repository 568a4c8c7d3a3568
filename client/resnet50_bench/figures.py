"""Figures of runs, and their medians and spreads over repeated runs of a load."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

from .plan import Load
from .run import STAGES, Run

Figure = Callable[[Run], float | None]


def _stage_p50(stage: str, run: Run) -> float | None:
    return run.stages_ms[stage].p50


FIGURES: dict[str, Figure] = {
    "calls/s": lambda run: run.offered_per_s,
    "answers/s": lambda run: run.throughput_per_s,
    "in time/s": lambda run: run.goodput_per_s,
    "p50 ms": lambda run: run.latency_ms.p50,
    "p90 ms": lambda run: run.latency_ms.p90,
    "p99 ms": lambda run: run.latency_ms.p99,
    "p99.9 ms": lambda run: run.latency_ms.p99_9,
    "max ms": lambda run: run.latency_ms.max,
    "failed": lambda run: float(sum(run.errors.values())),
    "dropped": lambda run: float(run.dropped),
    "batch": lambda run: run.mean_batch_size,
    **{f"{one} p50 ms": partial(_stage_p50, one) for one in STAGES},
    "generator CPU, cores": lambda run: run.generator.cpu_share,
    "server CPU ms": lambda run: run.server.cpu_ms_per_answer if run.server else None,
    "server cores": lambda run: run.server.cores if run.server else None,
    "peak RSS MiB": lambda run: run.server.peak_rss_mib if run.server else None,
}


@dataclass(frozen=True)
class Spread:
    """A figure over the runs of a load; runs without the figure do not count.

    Attributes:
        median: The median; of an even number of runs, the mean of the two in the middle.
        lowest: The lowest value.
        highest: The highest value.
    """

    median: float
    lowest: float
    highest: float

    def overlaps(self, other: Spread) -> bool:
        """Return True if the two ranges have a value in common."""
        return self.lowest <= other.highest and other.lowest <= self.highest


@dataclass(frozen=True)
class LoadRuns:
    """The runs of one load, at least one."""

    load: Load
    runs: tuple[Run, ...]

    def spread(self, figure: Figure) -> Spread | None:
        """Return a figure's median, lowest and highest value; None if no run has it."""
        values = [value for value in map(figure, self.runs) if value is not None]
        return Spread(statistics.median(values), min(values), max(values)) if values else None

    def median(self, figure: Figure) -> float | None:
        """Return a figure's median; None if no run has it."""
        spread = self.spread(figure)
        return spread.median if spread is not None else None

    def spreads(self) -> dict[str, dict[str, float]]:
        """Return median, lowest and highest value by name of a figure, for JSON."""
        found = {name: self.spread(figure) for name, figure in FIGURES.items()}
        return {name: asdict(spread) for name, spread in found.items() if spread is not None}

    @property
    def calls(self) -> int:
        """Number of calls of all runs."""
        return sum(run.calls for run in self.runs)

    @property
    def answered(self) -> int:
        """Number of successful calls of all runs."""
        return sum(run.answered for run in self.runs)

    @property
    def in_time(self) -> float:
        """Number of calls of all runs that completed within their deadlines."""
        return sum(run.good_share * run.calls for run in self.runs)

    @property
    def dropped(self) -> int:
        """Number of dropped frames of all runs."""
        return sum(run.dropped for run in self.runs)

    @property
    def errors(self) -> Counter[str]:
        """Failed calls of all runs by gRPC status code."""
        return sum((Counter(run.errors) for run in self.runs), Counter())

    @property
    def batch_sizes(self) -> Counter[int]:
        """Responses of all runs by batch size, by increasing size."""
        sizes: Counter[int] = sum((Counter(run.batch_sizes) for run in self.runs), Counter())
        return Counter(dict(sorted(sizes.items())))
