"""Optional packages, which some commands need."""

from __future__ import annotations

import importlib.util
from typing import NoReturn

import typer

from .output import WRONG_USAGE, print_note

# Names in package registries that differ from the name of the module.
_PACKAGES = {"PIL": "pillow", "prometheus_client": "prometheus-client"}


def require(command: str, extra: str, *modules: str) -> None:
    """Exit with status 2 and one sentence on stderr unless all modules are installed.

    Args:
        command: The command that needs them, e.g. "bench".
        extra: The extra of this distribution that installs them.
        modules: Names of modules, which are not imported.

    Raises:
        typer.Exit: One is not installed.
    """
    for name in modules:
        if importlib.util.find_spec(name) is None:
            exit_missing(command, extra, name)


def exit_missing(command: str, extra: str, module: str | None) -> NoReturn:
    """Exit with status 2 and one sentence on stderr: a module is not installed.

    Args:
        command: The command that needs it.
        extra: The extra of this distribution that installs it.
        module: Name of the module; None if unknown.

    Raises:
        typer.Exit: Always.
    """
    package = _PACKAGES.get(module or "", module or f"the extra [{extra}]")
    print_note(
        f"resnet50 {command} needs {package}: install resnet50-serving with the extra [{extra}]"
    )
    raise typer.Exit(WRONG_USAGE)
