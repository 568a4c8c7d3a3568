"""Ends the process if its event loop is blocked.

The loop keeps postponing a timer of `faulthandler`. That timer's thread is written in C and needs
no GIL, so it also fires if a C call that keeps the GIL blocks all of Python. It writes the stacks
of all threads to stderr and ends the process with status 1: callers cannot be answered any more.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import sys

from .fatal import open_stack_file

# Callbacks of the loop take milliseconds, and liveness probes fail after some seconds. The timeout
# is so much longer because a machine that swaps or is throttled recovers by itself, and because the
# timer also counts the time in which the process is stopped (SIGSTOP, `docker pause`).
TIMEOUT_S = 60.0
POLL_INTERVAL_S = 1.0
# Before Python 3.11 faulthandler's timer follows the time of day, which can jump.
IS_SUPPORTED = sys.version_info >= (3, 11)


class LoopWatchdog:
    """Ends the process if its event loop runs no callback for some time; made and closed on it.

    Does nothing on Python 3.10.

    Args:
        timeout_s: How long the loop may be blocked, in seconds.
    """

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._interval_s = min(POLL_INTERVAL_S, timeout_s / 10)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._stack_file = open_stack_file()
        if IS_SUPPORTED:
            self._postpone()

    def close(self) -> None:
        """Stop watching."""
        if self._timer is not None:
            self._timer.cancel()
            faulthandler.cancel_dump_traceback_later()
        os.close(self._stack_file)

    def _postpone(self) -> None:
        faulthandler.dump_traceback_later(self._timeout_s, file=self._stack_file, exit=True)
        self._timer = self._loop.call_later(self._interval_s, self._postpone)
