"""Returns unused memory of the allocator to the system."""

from __future__ import annotations

import ctypes
import sys


def return_memory() -> None:
    """Return freed memory to the system; glibc keeps it otherwise."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
