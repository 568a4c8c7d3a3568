"""Memory of this process: how much it has, and what it returns to the system."""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path


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
