"""Runs a command line; wrong usage and wrong settings are messages on stderr and exit code 2."""

from __future__ import annotations

import sys
from typing import Any

import typer

from .flags import WrongSettings

# The class above the usage errors of typer, which does not export it.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


def run_command(app: typer.Typer, name: str, arguments: list[str] | None) -> int:
    """Run a command line; return the exit code.

    Args:
        app: Its commands return an exit code, or None for 0.
        name: Of the program.
        arguments: Without the program's name; default: those of the process.
    """
    try:
        status = app(arguments, prog_name=name, standalone_mode=False)
    except WrongSettings as error:
        for problem in error.problems:
            print(f"{name}: {problem}", file=sys.stderr)
        return 2
    except _UsageError as error:
        print(f"{name}: {_message(error, name)}", file=sys.stderr)
        return 2
    return int(status or 0)


def _message(error: Any, name: str) -> str:
    """Return the message of a usage error, on one line."""
    text = error.format_message().rstrip(".").replace("\n", " ")
    command = error.ctx.command_path if error.ctx is not None else name
    return f"{text}. Try '{command} --help'."
