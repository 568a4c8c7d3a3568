"""What ends a server: it says so to everybody, and its process exits for a supervisor."""

from __future__ import annotations

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
        dump_stacks()
        logging.shutdown()

    saying = threading.Thread(target=say, name="last words", daemon=True)
    saying.start()
    saying.join(LAST_WORDS_S)
    os._exit(status)


def dump_stacks() -> None:
    """Write where each thread is to stderr."""
    if sys.__stderr__ is not None:
        faulthandler.dump_traceback(sys.__stderr__)
