"""Fatal errors: the server drains and its process exits with a status for its supervisor."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys


class FatalError(Exception):
    """The server cannot serve any more. The message is for the log and `/livez`, not for callers.

    Attributes:
        status: The exit code of the process.
    """

    status = 70


class DeviceLost(FatalError):
    """Every variant of a device fails, on its batches and on its self-test."""


class EngineHung(FatalError):
    """A batch has not returned from the engine."""

    status = 71


class DecodingHung(FatalError):
    """All decode threads, spare ones included, are blocked by images."""

    status = 72


def dump_stacks() -> None:
    """Write the stacks of all threads to stderr, or as much as it takes without blocking."""
    file = open_stack_file()
    try:
        faulthandler.dump_traceback(file)
    finally:
        os.close(file)


def open_stack_file() -> int:
    """Return a new file descriptor of stderr for stacks, non-blocking where possible.

    faulthandler writes while all other threads stand still: a pipe that is not read would block
    the process for ever. A pipe, file or terminal is reopened, since O_NONBLOCK is shared by all
    duplicates of a descriptor. A socket cannot be reopened.
    """
    if sys.__stderr__ is None:
        return os.open(os.devnull, os.O_WRONLY)
    stderr = sys.__stderr__.fileno()
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK
            return os.open(f"/proc/self/fd/{stderr}", flags)
    return os.dup(stderr)
