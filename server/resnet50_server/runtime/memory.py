"""Memory that the allocator keeps for itself."""

from __future__ import annotations

import ctypes
import sys


def return_memory() -> None:
    """Give what was used and freed back to the system; glibc would keep it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
