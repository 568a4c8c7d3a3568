"""Lines on their way to stdout or stderr, written by a thread: no caller waits for their reader.

A pipe that nobody reads takes 64 KiB, and then blocks whoever writes to it; a full or hung disk
does the same. The event loop must not be the one that is blocked.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TextIO

# What is kept of lines that nobody takes; a megabyte is some thousand lines of JSON.
MAX_PENDING_BYTES = 4 * 2**20


class LineWriter:
    """Writes lines in the order in which they are put.

    Args:
        stream: Returns where to.
        dropped_line: Returns the line that says how many were dropped; without it none says so.
        on_error: Takes a line that could not be written, and why; for example as the disk is full.
        max_pending: Characters that may wait; further lines are dropped until there is room.

    Attributes:
        dropped_line: As given.
        dropped: How many lines were dropped so far, because nobody took those before them.
    """

    def __init__(
        self,
        stream: Callable[[], TextIO],
        dropped_line: Callable[[int], str] | None = None,
        on_error: Callable[[str, OSError], None] = lambda line, error: None,
        max_pending: int = MAX_PENDING_BYTES,
    ) -> None:
        self._stream = stream
        self.dropped_line = dropped_line
        self._on_error = on_error
        self._max_pending = max_pending
        self._lines: SimpleQueue[str | threading.Event] = SimpleQueue()
        self._lock = threading.Lock()
        # Characters; the first is counted under the lock, the second by the thread alone.
        self._put = self._taken = 0
        self._reported = 0
        self.dropped = 0
        self._thread: threading.Thread | None = None

    def put(self, line: str) -> None:
        """Have a line written, or drop it if too much waits already; never blocks."""
        with self._lock:
            if self._put - self._taken + len(line) > self._max_pending:
                self.dropped += 1
                return
            self._put += len(line)
            self._lines.put(line)
            if self._thread is None:
                # A daemon: it may be stuck in a write when the process ends.
                self._thread = threading.Thread(target=self._work, name="lines", daemon=True)
                self._thread.start()

    def flush(self, timeout_s: float) -> bool:
        """Wait until what was put before is written; return whether it was, in time."""
        if self._thread is None:
            return True
        written = threading.Event()
        self._lines.put(written)
        return written.wait(timeout_s)

    def _work(self) -> None:
        while True:
            item = self._lines.get()
            if isinstance(item, threading.Event):
                self._report()
                item.set()
                continue
            self._write(item)
            self._taken += len(item)
            # Not at the first line for which there is room again, or a slow reader is told of
            # every second one.
            if self._put - self._taken <= self._max_pending // 2:
                self._report()

    def _report(self) -> None:
        """Say how many lines were dropped since this was last said."""
        dropped = self.dropped - self._reported
        if dropped and self.dropped_line is not None:
            self._reported += dropped
            self._write(self.dropped_line(dropped))

    def _write(self, line: str) -> None:
        try:
            stream = self._stream()
            stream.write(line + "\n")
            stream.flush()
        except OSError as error:
            self._on_error(line, error)
        except ValueError:
            pass  # the stream is closed
