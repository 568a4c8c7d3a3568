"""What ends a server: it says so to everybody, and its process exits for a supervisor."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import sys
import threading

log = logging.getLogger(__name__)

# How long last words may take: whoever reads stderr may have stopped.
LAST_WORDS_S = 5.0


class Fault(Exception):
    """The server is lost. The message is for the log and `/livez`, not for callers.

    Attributes:
        status: The exit status of the process.
    """

    status = 70


class DeviceLost(Fault):
    """Batch after batch has failed, also one that the device has computed before."""


class EngineHung(Fault):
    """A batch has not come back from the engine."""

    status = 71


class DecodingHung(Fault):
    """All decode threads, and those that took their places, are held by images."""

    status = 72


class LoopHung(Fault):
    """The event loop does not turn: nobody is answered, nor told anything."""

    status = 73


def end_process(status: int, words: str) -> None:
    """Say why, and where all threads are; then end this process without waiting for anything."""

    def say() -> None:
        log.critical("exiting with status %d: %s", status, words)
        logging.shutdown()  # the stacks follow what is logged
        dump_stacks()

    saying = threading.Thread(target=say, name="last words", daemon=True)
    saying.start()
    saying.join(LAST_WORDS_S)
    os._exit(status)


def dump_stacks() -> None:
    """Write where each thread is to stderr, as far as that is taken at once."""
    file = open_stack_file()
    try:
        faulthandler.dump_traceback(file)
    finally:
        os.close(file)


def open_stack_file() -> int:
    """Return a new file descriptor for stacks, that of stderr, which does not block if it can be.

    faulthandler writes while all other threads stand still: a pipe that nobody reads would hold up
    the process for ever. A pipe, a file or a terminal is opened anew for that, since not to block
    is a property that is shared with whoever else has it open. A socket cannot be.
    """
    if sys.__stderr__ is None:
        return os.open(os.devnull, os.O_WRONLY)
    stderr = sys.__stderr__.fileno()
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK
            return os.open(f"/proc/self/fd/{stderr}", flags)
    return os.dup(stderr)
