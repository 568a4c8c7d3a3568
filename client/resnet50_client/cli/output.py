"""What the commands say besides their results, and with which exit status they end."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar, cast

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..errors import (
    DeadlineExceededError,
    PermissionDeniedError,
    Resnet50Error,
    UnauthenticatedError,
    UnavailableError,
)

# Exit statuses; 2 is typer's own for wrong usage.
SOME_FAILED = 1
WRONG_USAGE = 2
NO_SERVER = 3
INTERRUPTED = 130  # as shells count SIGINT

EXIT_STATUSES = (
    "Exit status: 0 all is well; 1 the server refused something, or some images failed (the others"
    " are in the output); 2 wrong usage; 3 no server answers, or it is not ready; 130 interrupted."
)

# A pipe has no width of its own; a table cut at 80 columns would help nobody.
PIPE_COLUMNS = 130

Value = TypeVar("Value")


def console(**options: Any) -> Console:
    """Return a rich console that takes no text for markup or for the name of an emoji."""
    return Console(highlight=False, markup=False, emoji=False, **options)


errors = console(stderr=True)


def printable(value: Value) -> Value:
    r"""Return text, or data made of it, that a terminal shows as it is and obeys in nothing.

    Labels and messages come from servers, and names from other people's folders. What
    `str.isprintable` denies (escape sequences, C1, line ends, bidirectional controls, bytes of a
    file name that are no text) is written as Python would: "\x1b", "\n", "\u202e". All output
    that is not JSON passes through here, before it is laid out.

    Args:
        value: Text, or dataclasses, mappings, lists, tuples of it; anything else is returned as is.
    """
    return cast("Value", _printable(value))


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        if value.isprintable():
            return value
        return "".join(
            one if one.isprintable() else one.encode("unicode_escape").decode() for one in value
        )
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
        return dataclasses.replace(value, **{key: _printable(one) for key, one in fields.items()})
    if isinstance(value, Mapping):
        return {_printable(key): _printable(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_printable(one) for one in value]
    if isinstance(value, tuple):
        return tuple(_printable(one) for one in value)
    return value


def say(text: str) -> None:
    """Write a line to stdout."""
    print(printable(text), flush=True)


def say_json(value: object) -> None:
    """Write a line of JSON to stdout."""
    # All that could be obeyed is escaped by the encoder but DEL, which is ASCII.
    print(json.dumps(value).replace("\x7f", "\\u007f"), flush=True)


def show(table: RenderableType, min_columns: int = 0) -> None:
    """Write a table, made of printable data, to stdout.

    Args:
        table: What to write.
        min_columns: In a narrower window it is wrapped rather than cut.
    """
    stdout = console(width=None if sys.stdout.isatty() else PIPE_COLUMNS)
    stdout.width = max(stdout.width, min_columns)
    # Written by print: rich ends the process by itself if nobody reads any more.
    with stdout.capture() as captured:
        stdout.print(table)
    print(captured.get(), end="", flush=True)


def complain(text: str) -> None:
    """Write a line to stderr, above what progress shows there."""
    note(f"resnet50: {text}")


def note(text: str) -> None:
    """Write a line to stderr that is no complaint, and so without the command's name."""
    errors.print(printable(text), soft_wrap=True)


def reason(error: Exception) -> str:
    """Return why something failed, without the file's name, which stands before it."""
    return f"{error.strerror}" if isinstance(error, OSError) and error.strerror else str(error)


def code(error: Exception) -> str:
    """Return the word by which a machine knows an image's failure."""
    return error.code or "INVALID_ARGUMENT" if isinstance(error, Resnet50Error) else "UNREADABLE"


def progress_bar() -> Progress:
    """Return a bar on stderr that shows what is done of what there is to do."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=errors,
        transient=True,
        redirect_stdout=False,
        disable=not errors.is_terminal,
    )


@contextmanager
def errors_shown() -> Iterator[None]:
    """Turn what stops a whole command into a line on stderr and an exit status."""
    try:
        yield
    except (UnavailableError, DeadlineExceededError) as error:
        fail(error, NO_SERVER)
    except BrokenPipeError as error:
        # Nobody reads stdout any more. Else the interpreter complains as it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(SOME_FAILED) from error
    except (Resnet50Error, OSError) as error:
        fail(error, SOME_FAILED)
    except ValueError as error:
        fail(error, WRONG_USAGE)
    except KeyboardInterrupt as interrupt:
        raise typer.Exit(INTERRUPTED) from interrupt


def fail(error: Exception, status: int) -> NoReturn:
    """End the command with a line on stderr."""
    complain(f"{error}{_advice(error)}")
    raise typer.Exit(status) from error


def _advice(error: Exception) -> str:
    """Return what to do about a token on a command line; servers know of metadata only."""
    if isinstance(error, UnauthenticatedError):
        return " (--token-file and RESNET50_TOKEN give the token)"
    if isinstance(error, PermissionDeniedError) and error.scope:
        return (
            " (--token-file and RESNET50_TOKEN give the token; the server's operator makes one with"
            f" resnet50-server tokens new NAME --scope {error.scope})"
        )
    return ""


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """Give an event that the first SIGINT or SIGTERM sets; a second one interrupts at once."""
    stop = threading.Event()

    def ask(*_: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        # Not through the console, which may be in the middle of a line.
        os.write(2, b"resnet50: stopping after what is under way; once more to stop at once\n")

    before = {one: signal.signal(one, ask) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
