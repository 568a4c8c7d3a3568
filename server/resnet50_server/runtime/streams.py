"""Standard streams of a server: threads write and read them, so that no caller waits."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from .line_writer import LineStream, LineWriter

log = logging.getLogger(__name__)

# Time limit of writing the last lines: their reader may have stopped.
FLUSH_S = 2.0


def _stdout_failed(line: str, error: OSError) -> None:
    log.warning("%s (cannot write to stdout: %s)", line, error)


def _stderr() -> TextIO | None:
    stream = sys.stderr
    return stream.replaced if isinstance(stream, LineStream) else stream


# Streams are looked up for each write: tests replace them.
STDOUT = LineWriter(lambda: sys.stdout, on_error=_stdout_failed)
STDERR = LineWriter(_stderr)


def announce(line: str) -> None:
    """Write a line to stdout; to the log if stdout fails, e.g. as the disk is full."""
    STDOUT.put(line)


def complain(line: str) -> None:
    """Write a line for people to stderr, after those of the log."""
    STDERR.put(line)


def flush(timeout_s: float = FLUSH_S) -> bool:
    """Write all pending lines; return whether they were read within `timeout_s`."""
    ends = time.monotonic() + timeout_s
    written = [one.flush(max(0.0, ends - time.monotonic())) for one in (STDERR, STDOUT)]
    return all(written)


def call_at_stdin_end(function: Callable[[], object]) -> None:
    """Call a function in a thread when standard input ends; its content is ignored."""

    def read() -> None:
        # An input that cannot be read, e.g. of a daemon, has ended.
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        with contextlib.suppress(RuntimeError):  # the event loop is closed
            function()

    threading.Thread(target=read, name="stdin", daemon=True).start()


@contextlib.contextmanager
def unblocked_stderr() -> Iterator[None]:
    """Have what Python and libraries write to `sys.stderr` written as lines of `STDERR`.

    Warnings, and uncaught exceptions, are written in any thread, the event loop's
    included. A terminal is left as it is: the progress of downloads rewrites a line.
    """
    replaced = sys.stderr
    if replaced is None or replaced.isatty() or isinstance(replaced, LineStream):
        yield
        return
    sys.stderr = stream = LineStream(STDERR, replaced)
    try:
        yield
    finally:
        stream.end()
        sys.stderr = replaced
