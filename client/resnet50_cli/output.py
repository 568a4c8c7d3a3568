"""Output of the commands: results, messages, progress, and exit codes."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar, cast

import typer
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from resnet50_bulk.error_text import error_text as error_text
from resnet50_bulk.image_files import LeftOut
from resnet50_client.errors import (
    DeadlineExceededError,
    PermissionDeniedError,
    Resnet50Error,
    UnauthenticatedError,
    UnavailableError,
)

# Exit codes; typer itself uses 2 for wrong usage.
SOME_FAILED = 1
WRONG_USAGE = 2
NO_SERVER = 3
INTERRUPTED = 130  # as shells count SIGINT

EXIT_CODES = {
    0: "success",
    SOME_FAILED: "the server rejected a request, or some images failed (the others are in the"
    " output)",
    WRONG_USAGE: "wrong usage",
    NO_SERVER: "no server reachable or ready, or images without an answer in time",
    INTERRUPTED: "interrupted",
}
EXIT_CODES_HELP = f"Exit codes: {'; '.join(f'{code} {text}' for code, text in EXIT_CODES.items())}."

# A pipe has no width; rich would cut tables at 80 columns.
PIPE_COLUMNS = 130

_PACKAGE = "resnet50_client"  # the SDK, whose warnings a command prints

Value = TypeVar("Value")


def console(**options: Any) -> Console:
    """Return a rich console that interprets no markup and no emoji names."""
    return Console(highlight=False, markup=False, emoji=False, **options)


stderr = console(stderr=True)


def printable(value: Value) -> Value:
    r"""Escape control characters in text, or in all text of a data structure.

    Labels and messages come from servers, and file names from other people. Characters that are
    not `str.isprintable` (escape sequences, C1, line ends, bidirectional controls, undecodable
    bytes of a file name) are escaped as in Python: "\x1b", "\n", "\u202e". All output except
    JSON passes through this function before layout.

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


def print_line(text: str) -> None:
    """Write a line to stdout."""
    print(printable(text), flush=True)


def print_json(value: object) -> None:
    """Write a line of JSON to stdout."""
    # The encoder escapes all control characters except DEL.
    print(json.dumps(value).replace("\x7f", "\\u007f"), flush=True)


def show(table: RenderableType, min_columns: int = 0) -> None:
    """Write a table, made of printable data, to stdout.

    Args:
        table: The table.
        min_columns: Minimum width: in a narrower window lines wrap rather than being cut.
    """
    stdout = console(width=None if sys.stdout.isatty() else PIPE_COLUMNS)
    stdout.width = max(stdout.width, min_columns)
    # By print(), because rich exits the process on a broken pipe.
    with stdout.capture() as captured:
        stdout.print(table)
    print(captured.get(), end="", flush=True)


def warn(text: str) -> None:
    """Write a warning or an error to stderr, above a progress bar."""
    print_note(f"resnet50: {text}")


def print_note(text: str) -> None:
    """Write a line of information, without the command's name, to stderr."""
    stderr.print(printable(text), soft_wrap=True)


def report_left_out(left_out: LeftOut) -> None:
    """Print which files a search left out to stderr, unless there are none."""
    if line := str(left_out):
        print_note(line)


def error_code(error: Exception) -> str:
    """Return the machine-readable code of an image's error."""
    return error.code or "INVALID_ARGUMENT" if isinstance(error, Resnet50Error) else "UNREADABLE"


class _RateColumn(ProgressColumn):
    """Images per second, of the last half minute."""

    def render(self, task: Task) -> Text:
        """Return the rate; empty until it is known."""
        rate = task.finished_speed or task.speed
        return Text("" if rate is None else f"{rate:.0f} images/s")


def progress_bar() -> Progress:
    """Return a progress bar of images on stderr, with their rate and the remaining time."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeRemainingColumn(),
        console=stderr,
        transient=True,
        redirect_stdout=False,
        disable=not stderr.is_terminal,
    )


@contextmanager
def reporting_errors() -> Iterator[None]:
    """Report an exception that ends the command on stderr, and exit with its status."""
    try:
        yield
    except (UnavailableError, DeadlineExceededError) as error:
        exit_with(error, NO_SERVER)
    except BrokenPipeError as error:
        # stdout is closed: without this the interpreter reports an error as it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(SOME_FAILED) from error
    except (Resnet50Error, OSError) as error:
        exit_with(error, SOME_FAILED)
    except ValueError as error:
        exit_with(error, WRONG_USAGE)
    except KeyboardInterrupt as interrupt:
        raise typer.Exit(INTERRUPTED) from interrupt


def exit_with(error: Exception, status: int) -> NoReturn:
    """Report an error on stderr and exit."""
    warn(f"{error}{_token_hint(error)}")
    raise typer.Exit(status) from error


def _token_hint(error: Exception) -> str:
    """Return a hint about the token's options, which the server's message cannot name."""
    if isinstance(error, UnauthenticatedError):
        return " (--token-file and RESNET50_TOKEN give the token)"
    if isinstance(error, PermissionDeniedError) and error.scope:
        return (
            " (--token-file and RESNET50_TOKEN give the token; the server's operator creates one"
            f" with resnet50-server tokens new NAME --scope {error.scope})"
        )
    return ""


class _StderrHandler(logging.Handler):
    """Writes log records as warnings of the command."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        warn(record.getMessage())


@contextmanager
def showing_log() -> Iterator[None]:
    """Write warnings of the SDK's log to stderr, above a progress bar."""
    log, handler = logging.getLogger(_PACKAGE), _StderrHandler(logging.WARNING)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Return an event that the first SIGINT or SIGTERM sets; the second one interrupts at once."""
    stop = threading.Event()

    def on_signal(*_: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        # Not through the console, which may be in the middle of a line.
        os.write(2, b"resnet50: stopping after images in flight; repeat to stop immediately\n")

    handlers = {
        number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
