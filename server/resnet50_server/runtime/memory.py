"""Memory of this process: how much it has and may have, and what it returns to the system."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from .cgroups import lines, smallest

# Of mallopt(3): blocks from this size on are mapped by themselves, and a heap keeps so much free at
# its end. They are the largest values that glibc would reach by itself, as large blocks are freed.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MMAP_THRESHOLD_BYTES = 32 * 2**20
TRIM_THRESHOLD_BYTES = 2 * MMAP_THRESHOLD_BYTES
# With one of these in the environment, its owner has chosen.
MALLOC_VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
# Version 1 of cgroups writes the largest number of pages where there is no limit.
NO_LIMIT_BYTES = 2**60


def keep_freed_memory() -> None:
    """Keep freed memory for the next messages, of which glibc returns the most at once.

    It would return the memory of each message of more than 64 KB, and the kernel would clear the
    pages of the next one: up to a tenth of the CPU time of a request (docs/adr/0009). To be called
    before other threads start. Has no effect on other C libraries.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None and not any(name in os.environ for name in MALLOC_VARIABLES):
        mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
        mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)


def return_memory() -> None:
    """Return freed memory to the system; glibc keeps it otherwise."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def resident_bytes() -> tuple[int, int] | None:
    """Return the memory that this process has now and at most had, in bytes; None if unknown."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:  # not Linux
        return None
    found = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB$", status, re.MULTILINE))
    return int(found["VmRSS"]) * 1024, int(found["VmHWM"]) * 1024


@dataclass(frozen=True)
class MemoryLimit:
    """The most memory that the cgroups of this process allow.

    Attributes:
        size: In bytes.
        source: The file that says so.
    """

    size: int
    source: Path

    def __str__(self) -> str:
        return f"{self.size // 2**20} MiB ({self.source})"


def read_memory_limit(root: Path = Path("/")) -> MemoryLimit | None:
    """Return the smallest limit of all cgroups of this process; None if there is none.

    Args:
        root: Directory with `proc/self/cgroup`, `proc/self/mountinfo` and their mount points.
    """
    found = smallest(root, "memory", _memory_max, _limit_in_bytes)
    return None if found is None else MemoryLimit(int(found[0]), found[1])


def _memory_max(folder: Path) -> tuple[float | None, Path]:
    """Return the bytes of `memory.max`, which is "max" for no limit, and the file."""
    return _bytes(folder / "memory.max")


def _limit_in_bytes(folder: Path) -> tuple[float | None, Path]:
    """Return the bytes of version 1's file, a number near 2^63 for no limit, and the file."""
    return _bytes(folder / "memory.limit_in_bytes")


def _bytes(file: Path) -> tuple[float | None, Path]:
    content = "".join(lines(file)).strip()
    size = int(content) if content.isdecimal() else 0
    return (size if 0 < size < NO_LIMIT_BYTES else None), file
