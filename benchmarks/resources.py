"""Resources of a server's process over a trial: memory, threads, files; and permits."""

from __future__ import annotations

import asyncio
import statistics
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.process import open_files, resident_kib, threads

# Metrics that are 0 once every call has been answered.
PLACES = (
    "resnet50_in_flight_requests",
    "resnet50_in_flight_bytes",
    "resnet50_open_streams",
    "resnet50_decode_queue_calls",
    "resnet50_decode_threads_busy",
    "resnet50_decode_threads_stuck",
    "resnet50_queue_images",
)
# How long the last calls may take to leave the server.
SETTLE_S = 10.0
# So many standard errors to each side hold 95% of a normal distribution.
NORMAL_95 = 1.96


@dataclass(frozen=True)
class Sample:
    """Resources of a process at one time.

    Attributes:
        at_s: When (`time.monotonic`), in seconds.
        mib: Resident memory.
        threads: How many.
        files: Open files and connections.
    """

    at_s: float
    mib: float
    threads: int
    files: int

    @classmethod
    def of(cls, pid: int) -> Sample:
        """Take one."""
        return cls(time.monotonic(), resident_kib(pid) / 1024, threads(pid), open_files(pid))


class Samples:
    """Samples of a process, taken at intervals.

    Args:
        pid: Of the process.
        every_s: How often.
    """

    def __init__(self, pid: int, every_s: float) -> None:
        self.taken: list[Sample] = []
        self._pid = pid
        self._every_s = every_s

    async def go_on(self) -> None:
        """Take them until cancelled."""
        while True:
            self.taken.append(Sample.of(self._pid))
            await asyncio.sleep(self._every_s)

    def after(self, share: float) -> list[Sample]:
        """Return those taken after a share of the time: what a warm server holds."""
        return self.taken[int(share * len(self.taken)) :]


@dataclass(frozen=True)
class Slope:
    """How memory grows, by least squares over its floor.

    Attributes:
        per_hour: Growth, in MiB/h.
        error: Half the width of its 95% confidence interval, in MiB/h.
        scatter: Standard deviation of the floor around the line, in MiB.
        floors: How many values the floor has.
    """

    per_hour: float
    error: float
    scatter: float
    floors: int

    @classmethod
    def of(cls, samples: list[Sample], period_s: float) -> Slope:
        """Return the slope of the memory's floor: the lowest sample of each period.

        Peaks come and go: a variant that is being replaced is there twice. A leak raises the
        floor as well, which scatters far less. Neighbouring values are alike, which would make
        the error seem small: they count as n (1 - r) / (1 + r) independent ones, r being the
        autocorrelation of the residuals at lag 1 (Bartlett 1935).

        Args:
            samples: In the order of their times; they span three periods at least.
            period_s: Longer than the time between two peaks, in seconds.
        """
        floor: dict[int, Sample] = {}
        for one in samples:
            period = int((one.at_s - samples[0].at_s) / period_s)
            if period not in floor or one.mib < floor[period].mib:
                floor[period] = one
        hours = np.array([one.at_s for one in floor.values()]) / 3600.0
        mib = np.array([one.mib for one in floor.values()])
        hours -= hours.mean()
        per_hour = float((hours * mib).sum() / (hours**2).sum())
        residuals = mib - mib.mean() - per_hour * hours
        scatter = float(np.std(residuals))
        squares = float((residuals**2).sum())
        correlation = float((residuals[1:] * residuals[:-1]).sum()) / squares if squares else 0.0
        correlation = min(0.99, max(0.0, correlation))
        independent = max(3.0, len(mib) * (1 - correlation) / (1 + correlation))
        error = NORMAL_95 * scatter / (float(np.std(hours)) * (independent - 2) ** 0.5)
        return cls(per_hour, error, scatter, len(mib))


def tenths(samples: list[Sample], what: Callable[[Sample], float]) -> tuple[float, float]:
    """Return the medians of the first and of the last tenth."""
    count = max(1, len(samples) // 10)
    first, last = samples[:count], samples[-count:]
    return statistics.median(map(what, first)), statistics.median(map(what, last))


async def open_places(metrics_url: str) -> dict[str, float]:
    """Return the permits still taken in an idle server, by its metrics' names."""
    ends = time.monotonic() + SETTLE_S
    while True:
        found = {name: value for name, value in await scraped(metrics_url) if value}
        if not found or time.monotonic() > ends:
            return found
        await asyncio.sleep(0.1)


async def scraped(metrics_url: str) -> list[tuple[str, float]]:
    """Return the values of `PLACES`."""

    def fetch() -> str:
        with urllib.request.urlopen(f"{metrics_url}/metrics", timeout=30) as response:
            text: str = response.read().decode()
        return text

    families = text_string_to_metric_families(await asyncio.to_thread(fetch))
    samples = [sample for family in families for sample in family.samples]
    missing = set(PLACES) - {sample.name for sample in samples}
    assert not missing, f"the server does not export {missing}"
    return [(sample.name, sample.value) for sample in samples if sample.name in PLACES]
