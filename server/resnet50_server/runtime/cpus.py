"""The CPU budget: how many processors this process may use.

A container started with `--cpus=2` sees all processors of its machine, and may run on all of them:
the limit is a quota of CPU time. The kernel enforces it by throttling all threads for the rest of
each period (0.1 s), so a batch on more threads than the quota has CPUs is interrupted.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeAlias

_Read: TypeAlias = Callable[[Path], tuple[float | None, Path]]


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
    quotas = [
        (quota, file)
        for folder, read in _cgroups(root)
        for quota, file in [read(folder)]
        if quota is not None
    ]
    if not quotas:
        return CpuBudget(affinity)
    quota, file = min(quotas)
    return CpuBudget(affinity, quota, Path("/") / file.relative_to(root))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cgroups(root: Path) -> Iterator[tuple[Path, _Read]]:
    """Yield the directories of this process's cgroup and its ancestors, each with its reader."""
    paths = _cgroup_paths(root)
    for line in _lines(root / "proc/self/mountinfo"):
        # 31 23 0:28 / /sys/fs/cgroup rw,relatime shared:1 - cgroup2 cgroup2 rw
        before, _, after = line.partition(" - ")
        mount, kind = before.split(), after.split()
        if len(mount) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2":
            path, read = paths.get(""), _v2
        elif kind[0] == "cgroup" and "cpu" in kind[2].split(","):
            path, read = paths.get("cpu"), _v1
        else:
            continue
        shown, point = PurePosixPath(_unescaped(mount[3])), _unescaped(mount[4])
        top = root / point.lstrip("/")
        below = PurePosixPath()
        # A path outside the mount belongs to a namespace that is invisible here; then the top of
        # the mount is the nearest directory that can be read.
        if path is not None and ".." not in path.parts and path.is_relative_to(shown):
            below = path.relative_to(shown)
        for folder in (below, *below.parents) if below.parts else (below,):
            yield top / folder, read


def _cgroup_paths(root: Path) -> dict[str, PurePosixPath]:
    """Return the paths of this process's cgroups by their v1 controller; v2 has the key ""."""
    paths = {}
    for line in _lines(root / "proc/self/cgroup"):
        # 0::/kubepods/pod1, or 4:cpu,cpuacct:/docker/1
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(","):
            paths[controller] = PurePosixPath(path)
    return paths


def _v2(folder: Path) -> tuple[float | None, Path]:
    """Return the quota of `cpu.max`, e.g. "max 100000" or "150000 100000", and the file."""
    file = folder / "cpu.max"
    return _ratio(" ".join(_lines(file)).split()), file


def _v1(folder: Path) -> tuple[float | None, Path]:
    """Return the quota of `cpu.cfs_quota_us`, -1 for none, over its period, and the file."""
    file = folder / "cpu.cfs_quota_us"
    return _ratio([*_lines(file), *_lines(folder / "cpu.cfs_period_us")]), file


def _ratio(numbers: list[str]) -> float | None:
    """Return quota / period; None if the numbers are not a quota."""
    if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
        return None
    quota, period = map(int, numbers)
    return quota / period if quota and period else None


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except (OSError, ValueError):  # not Linux, or not readable
        return []


def _unescaped(path: str) -> str:
    """Return a path of mountinfo, which writes special characters as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)
