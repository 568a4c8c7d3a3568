"""The CPU budget: how many processors this process may use.

A container started with `--cpus=2` sees all processors of its machine, and may run on all of them:
the limit is a quota of CPU time. The kernel enforces it by throttling all threads for the rest of
each period (0.1 s), so a batch on more threads than the quota has CPUs is interrupted.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path

from .cgroups import lines, smallest


@dataclass(frozen=True)
class CpuBudget:
    """The number of processors that this process may use, and its limits.

    Attributes:
        affinity: Processors that the process may run on (`taskset`, cpusets).
        quota: CPU time per time that its cgroups allow: 1.5 is one and a half processors. None
            without a quota.
        source: The file with the quota; None without a quota.
    """

    affinity: int
    quota: float | None = None
    source: Path | None = None

    @property
    def cpus(self) -> int:
        """Whole processors, at least 1.

        A quota is rounded down: the threads of a batch wait for each other at every layer, so one
        thread too many has all of them throttled. The rest of the quota is for the event loop,
        decoding and the interpreter.
        """
        if self.quota is None:
            return self.affinity
        return max(1, min(self.affinity, int(self.quota)))

    def __str__(self) -> str:
        quota = "no cgroup quota"
        if self.quota is not None:
            quota = f"cgroup quota {self.quota:g} ({self.source})"
        return f"{self.cpus} CPUs ({self.affinity} by affinity, {quota})"


@dataclass(frozen=True)
class CpuPlan:
    """How CPU engines use the budget.

    Attributes:
        instances: Batches computed concurrently.
        threads: Threads per batch.
    """

    instances: int
    threads: int

    @classmethod
    def divide(cls, cpus: int, instances: int | None, threads: int | None) -> CpuPlan:
        """Return the plan for a budget; by default one instance per 8 CPUs, with all CPUs in use.

        ResNet50 at small batches gains little from more threads than that; this is a rule of thumb,
        not measured here on a machine with that many CPUs.
        """
        count = instances or max(1, cpus // 8)
        return cls(count, threads or max(1, cpus // count))


@functools.cache
def cpu_budget() -> CpuBudget:
    """Return the budget of this process; read once, at the start."""
    return read_cpu_budget(_affinity())


def cpus() -> int:
    """Return how many processors this process may use, at least 1."""
    return cpu_budget().cpus


def read_cpu_budget(affinity: int, root: Path = Path("/")) -> CpuBudget:
    """Return the smallest of the affinity and of the quotas of all cgroups of this process.

    Args:
        affinity: Processors that the process may run on.
        root: Directory with `proc/self/cgroup`, `proc/self/mountinfo` and their mount points.
    """
    found = smallest(root, "cpu", _v2, _v1)
    return CpuBudget(affinity) if found is None else CpuBudget(affinity, *found)


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _v2(folder: Path) -> tuple[float | None, Path]:
    """Return the quota of `cpu.max`, e.g. "max 100000" or "150000 100000", and the file."""
    file = folder / "cpu.max"
    return _ratio(" ".join(lines(file)).split()), file


def _v1(folder: Path) -> tuple[float | None, Path]:
    """Return the quota of `cpu.cfs_quota_us`, -1 for none, over its period, and the file."""
    file = folder / "cpu.cfs_quota_us"
    return _ratio([*lines(file), *lines(folder / "cpu.cfs_period_us")]), file


def _ratio(numbers: list[str]) -> float | None:
    """Return quota / period; None if the numbers are not a quota."""
    if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
        return None
    quota, period = map(int, numbers)
    return quota / period if quota and period else None
