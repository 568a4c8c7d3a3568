"""What the commands say besides their results, and with which exit status they end."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from rich.console import Console
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

errors = Console(stderr=True, highlight=False, markup=False)


def complain(text: str) -> None:
    """Write a line to stderr, above what progress shows there."""
    errors.print(f"resnet50: {text}", soft_wrap=True)


def reason(error: Exception) -> str:
    """Return why something failed, without the file's name, which stands before it."""
    return f"{error.strerror}" if isinstance(error, OSError) and error.strerror else str(error)


def code(error: Exception) -> str:
    """Return the word by which a machine knows an image's failure."""
    return error.code or "INVALID_ARGUMENT" if isinstance(error, Resnet50Error) else "UNREADABLE"


def progress_bar() -> Progress:
    """Return a bar on stderr that shows what is done of what there is to do."""
    return Progress(
        TextColumn("{task.description}"),
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
