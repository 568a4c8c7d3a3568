"""The error of an installation without the packages of the server."""

from __future__ import annotations


def missing_package(error: ModuleNotFoundError) -> str:
    """Return one line that names the missing package and the extra that has it.

    Raises:
        ModuleNotFoundError: `error` itself, if the module is of this distribution.
    """
    package = (error.name or "").partition(".")[0]
    if package.startswith("resnet50") or not package:
        raise error
    extra = "ray" if package == "ray" else "server"
    return f"resnet50-server needs {package}: install resnet50-serving with the extra [{extra}]"
