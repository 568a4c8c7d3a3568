"""Environment of a benchmark: machine, versions and variant."""

from __future__ import annotations

import dataclasses
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from resnet50_client import __version__
from resnet50_client._channel_config import DISTRIBUTION
from resnet50_client.types import Variant


def machine() -> dict[str, Any]:
    """Return CPU model, usable cores, memory and operating system."""
    import psutil

    try:
        cores = len(os.sched_getaffinity(0))  # respects a container's limit
    except AttributeError:  # not Linux
        cores = os.cpu_count() or 1
    return {
        "cpu": _cpu_model(),
        "cores": cores,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Return the versions of packages that affect a call's cost."""
    names = ("grpcio", "protobuf", "numpy")
    ours = {DISTRIBUTION: __version__}
    return ours | {name: version(name) for name in names} | {"python": platform.python_version()}


def variant_info(variant: Variant) -> dict[str, Any]:
    """Return weights, engine, device and quantization of a variant."""
    names = ("name", "digest", "engine", "device", "precision", "trained")
    quantization = variant.quantization
    return {name: getattr(variant, name) for name in names} | {
        "quantization": dataclasses.asdict(quantization) if quantization is not None else None
    }


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()
