"""Writes lines to stdout or stderr from a thread, so that no caller blocks.

A pipe that is not read takes 64 KiB and then blocks its writer; a full or hung disk does the same.
That must not block the event loop.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TextIO

# A megabyte is some thousand lines of JSON.
MAX_PENDING_BYTES = 4 * 2**20
MAX_LINE_CHARACTERS = 64 * 1024


class LineWriter:
    """Writes lines in order; drops lines while too many are pending.

    Args:
        stream: Returns the stream; None for a process that was started without it.
        dropped_line: Returns the line that reports a number of dropped lines; None: not reported.
        on_error: Gets a line that could not be written, and why, e.g. because the disk is full.
        max_pending: Maximum number of pending characters.

    Attributes:
        dropped_line: As the argument; may be set later.
        dropped: Number of lines dropped so far.
    """

    def __init__(
        self,
        stream: Callable[[], TextIO | None],
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
        # Characters put, counted under the lock, and written, counted by the thread alone.
        self._put = self._written = 0
        self._reported = 0
        self.dropped = 0
        self._thread: threading.Thread | None = None

    def put(self, line: str) -> None:
        """Add a line, or drop it if too many are pending; never blocks."""
        with self._lock:
            if self._put - self._written + len(line) > self._max_pending:
                self.dropped += 1
                return
            self._put += len(line)
            self._lines.put(line)
            if self._thread is None:
                # A daemon, because it may be blocked in a write when the process ends.
                thread = threading.Thread(target=self._work, name="lines", daemon=True)
                thread.start()  # may fail at the system's limit; the next line tries it again
                self._thread = thread

    def flush(self, timeout_s: float) -> bool:
        """Wait until all lines put so far are written; return whether they were, in time."""
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
            self._written += len(item)
            # Not as soon as there is room again: with a slow reader every second line would be a
            # report.
            if self._put - self._written <= self._max_pending // 2:
                self._report()

    def _report(self) -> None:
        """Write how many lines were dropped since the last report."""
        dropped = self.dropped - self._reported
        if dropped and self.dropped_line is not None:
            self._reported += dropped
            self._write(self.dropped_line(dropped))

    def _write(self, line: str) -> None:
        try:
            stream = self._stream()
            if stream is not None:
                stream.write(line + "\n")
                stream.flush()
        except OSError as error:
            self._on_error(line, error)
        except ValueError:
            pass  # the stream is closed


class LineStream(io.TextIOBase):
    """A text stream whose complete lines a `LineWriter` writes; never blocks.

    Args:
        writer: Writes the lines.
        replaced: The stream that `writer` writes to.
    """

    def __init__(self, writer: LineWriter, replaced: TextIO) -> None:
        super().__init__()
        self.replaced = replaced
        self._writer = writer
        self._incomplete = ""
        self._lock = threading.Lock()

    def writable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return the file descriptor of the replaced stream."""
        return self.replaced.fileno()

    def write(self, text: str, /) -> int:
        """Add the lines that the text completes; return its length."""
        with self._lock:
            *lines, self._incomplete = (self._incomplete + text).split("\n")
            if len(self._incomplete) > MAX_LINE_CHARACTERS:  # progress bars never end their line
                lines.append(self._incomplete)
                self._incomplete = ""
            for line in lines:
                self._writer.put(line)
        return len(text)

    def end(self) -> None:
        """Write the text behind the last complete line."""
        with self._lock:
            if self._incomplete:
                self._writer.put(self._incomplete)
            self._incomplete = ""
