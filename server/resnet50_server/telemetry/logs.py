"""How the server logs: text for people, or JSON for machines, with the fields of the call.

At the default level nothing is logged for a request, unless it met a fault of ours; and of a fault
that is met again and again only the first ones are written out, the rest is counted. Records are
formatted where they are made, and written by a thread: no log call waits for the log's reader.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TextIO

from pythonjsonlogger.json import JsonFormatter

from resnet50_server.context import CURRENT_REQUEST, RequestContext
from resnet50_server.events import ServerEvents
from resnet50_server.runtime.line_writer import LineWriter
from resnet50_server.runtime.texts import shortened

log = logging.getLogger(__name__)

TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s"
# Of each record; a record of a call also has its fields.
JSON = "%(asctime)s %(levelname)s %(name)s %(message)s"
JSON_NAMES = {"asctime": "time", "levelname": "level", "name": "logger"}
# Of warnings and errors of one kind so many are written in a window; the rest is counted.
REPEATS = 10
WINDOW_S = 10.0
# Of a message, whatever is in it; a traceback comes after it.
MAX_MESSAGE_BYTES = 16 * 2**10
# How long the last lines may take: whoever reads them may have stopped.
FLUSH_S = 2.0


def configure(level: str, form: str) -> None:
    """Set the process's logging up.

    Args:
        level: "debug", "info", "warning" or "error".
        form: "text" or "json".
    """
    logging.basicConfig(level=level.upper(), handlers=[handler(form)])


def handler(form: str, stream: TextIO | None = None) -> logging.Handler:
    """Return what writes records; `close` waits until they are written.

    Args:
        form: As `configure`.
        stream: Where to; None for stderr.
    """
    formatter = _Json() if form == "json" else logging.Formatter(TEXT)
    if stream is not None:
        return _Handler(LineWriter(lambda: stream, _dropped_line(formatter)), formatter)
    _stderr.dropped_line = _dropped_line(formatter)
    return _Handler(_stderr, formatter)


def say(line: str) -> None:
    """Write a line to stdout; to the log if nobody takes it there.

    The reader may have left, or the disk may be full: no reason to end.
    """
    _stdout.put(line)


def complain(line: str) -> None:
    """Write a line for people to stderr, after those of the log."""
    _stderr.put(line)


def flush(timeout_s: float = FLUSH_S) -> None:
    """Write out what is held back, as far as it is taken within `timeout_s`."""
    ends = time.monotonic() + timeout_s
    for one in logging.getLogger().handlers:
        if isinstance(one, _Handler):
            one.say_what_was_left_out()
    for writer in (_stderr, _stdout):
        writer.flush(max(0.0, ends - time.monotonic()))


def lines_dropped() -> int:
    """Return how many lines of the log were dropped, because nobody took those before them."""
    return _stderr.dropped


def _not_said(line: str, error: OSError) -> None:
    log.warning("%s (stdout takes nothing: %s)", line, error)


# The process's own. Streams are looked up when they are written to: tests replace them.
_stdout = LineWriter(lambda: sys.stdout, on_error=_not_said)
_stderr = LineWriter(lambda: sys.stderr)


def _dropped_line(formatter: logging.Formatter) -> Callable[[int], str]:
    """Return what forms the line that says how many lines were dropped."""

    def line(count: int) -> str:
        record = logging.LogRecord(
            log.name,
            logging.WARNING,
            __file__,
            0,
            "%d lines of the log were dropped: nobody had read those before them",
            (count,),
            None,
        )
        record.dropped = count
        return formatter.format(record)

    return line


class RepeatedFaults(logging.Filter):
    """Lets the first warnings or errors of a kind through, and says how many more there were.

    Of one kind are those that one line of code has written for one type of exception, so there are
    not many kinds. What was left out is said when the window ends, whether more come or not.

    Args:
        write: Takes the record that says so.
        limit: How many of a kind are let through in a window.
        window_s: How long one lasts from its first record, in seconds.
    """

    def __init__(
        self,
        write: Callable[[logging.LogRecord], object],
        limit: int = REPEATS,
        window_s: float = WINDOW_S,
    ) -> None:
        super().__init__()
        self._write = write
        self._limit = limit
        self._window_s = window_s
        self._windows: dict[tuple[object, ...], _Window] = {}
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is to be written."""
        if record.levelno < logging.WARNING or hasattr(record, "left_out"):
            return True
        error = record.exc_info[0] if record.exc_info else None
        kind = (record.pathname, record.lineno, record.levelno, error)
        now = time.monotonic()
        with self._lock:
            window = self._windows.get(kind)
            # One that has left records out is ended by its timer, which says how many.
            if window is None or (not window.left_out and now >= window.ends):
                window = self._windows[kind] = _Window(now + self._window_s)
            if window.written < self._limit:
                window.written += 1
                return True
            window.left_out += 1
            window.last = record
            if window.left_out == 1:
                timer = threading.Timer(max(0.0, window.ends - now), self._end, [kind])
                timer.name, timer.daemon = "log-repeats", True
                timer.start()
        return False

    def close(self) -> None:
        """Say at once what was left out."""
        for kind in list(self._windows):
            self._end(kind)

    def _end(self, kind: tuple[object, ...]) -> None:
        with self._lock:
            window = self._windows.pop(kind, None)
        if window is None or window.last is None:
            return
        last = window.last
        count = logging.LogRecord(
            last.name,
            last.levelno,
            last.pathname,
            last.lineno,
            "%d more like this within %g s were left out; the last one: %s",
            (window.left_out, self._window_s, last.getMessage().partition("\n")[0]),
            None,
        )
        count.left_out = window.left_out
        self._write(count)


@dataclass
class _Window:
    """What came of one kind since its first record.

    Attributes:
        ends: When a new one may begin, in monotonic seconds.
        written: How many were let through.
        left_out: How many were not.
        last: The last of those.
    """

    ends: float
    written: int = 0
    left_out: int = 0
    last: logging.LogRecord | None = None


class _Handler(logging.Handler):
    """Formats records, repeated faults only as far as they are worth it; a thread writes them."""

    def __init__(self, writer: LineWriter, formatter: logging.Formatter) -> None:
        super().__init__()
        self._writer = writer
        self.setFormatter(formatter)
        self.addFilter(_CallFields())
        self._repeated = RepeatedFaults(self.handle)
        self.addFilter(self._repeated)

    def emit(self, record: logging.LogRecord) -> None:
        """Format a record, with what is known of its call now, and have it written."""
        try:
            message = record.getMessage()
            if (short := shortened(message, MAX_MESSAGE_BYTES)) != message:
                record.msg, record.args = short, None
            self._writer.put(self.format(record))
        except Exception:
            self.handleError(record)

    def say_what_was_left_out(self) -> None:
        """Say so at once."""
        self._repeated.close()

    def close(self) -> None:
        """Say what was left out, and wait until everything is written, `FLUSH_S` at most."""
        self._repeated.close()
        self._writer.flush(FLUSH_S)
        super().close()


class RequestLog(ServerEvents):
    """Writes a line at the level DEBUG for each RPC that has ended."""

    def call_ended(self, call: RequestContext, code: str, error: Exception | None) -> None:
        """Write it."""
        duration_s = time.perf_counter() - call.started
        log.debug(
            "request %s: %s ended as %s after %.1f ms",
            call.request_id,
            call.method,
            code,
            duration_s * 1e3,
            extra={"code": code, "duration_s": round(duration_s, 6)} | _fields(call),
        )


class _Json(JsonFormatter):
    """One object a line; times are UTC, as RFC 3339 writes them."""

    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__(JSON, rename_fields=JSON_NAMES)

    def converter(self, seconds: float | None) -> time.struct_time:
        """Return a time in UTC."""
        return time.gmtime(seconds)


class _CallFields(logging.Filter):
    """Adds the call that a record is of to the record's fields."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record through."""
        call = CURRENT_REQUEST.get(None)
        if call is not None and not hasattr(record, "request_id"):
            vars(record).update(_fields(call))
        return True


def _fields(call: RequestContext) -> dict[str, Any]:
    """Return what may be logged of a call: nothing of its metadata but the checked id."""
    return {
        "request_id": call.request_id,
        "method": call.method,
        "variant": call.variant,
        "caller": call.caller.name,
    }
