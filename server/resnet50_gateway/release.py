"""The version of the gateway."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def release() -> str:
    """Return the version of the installed distribution; "unknown" if there is none."""
    try:
        return version("resnet50-serving")
    except PackageNotFoundError:  # run from its sources
        return "unknown"
