"""Where and with what a benchmark was made: without it, its figures mean nothing."""

from __future__ import annotations

import dataclasses
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ...connection import DISTRIBUTION
from ...results import Variant


def machine() -> dict[str, Any]:
    """Return CPU model, cores that may be used, memory and operating system."""
    import psutil

    try:
        cores = len(os.sched_getaffinity(0))  # a container's share of them
    except AttributeError:  # not Linux
        cores = os.cpu_count() or 1
    return {
        "cpu": _cpu_model(),
        "cores": cores,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Return the versions that matter for the cost of a call."""
    names = (DISTRIBUTION, "grpcio", "protobuf", "numpy")
    return {name: version(name) for name in names} | {"python": platform.python_version()}


def facts(variant: Variant) -> dict[str, Any]:
    """Return what the server says of the weights that answer, and of what runs them."""
    names = ("name", "digest", "engine", "device", "precision", "trained")
    made = variant.quantization
    return {name: getattr(variant, name) for name in names} | {
        "quantization": dataclasses.asdict(made) if made is not None else None
    }


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()
