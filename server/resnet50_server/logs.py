"""How the server logs: text for people, or JSON for machines, with the fields of the call.

At the default level nothing is logged for a request, unless it met a fault of ours; and of a fault
that is met again and again only the first ones are written out, the rest is counted.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TextIO

from pythonjsonlogger.json import JsonFormatter

from .call import CALL, Call
from .observer import Observer

log = logging.getLogger(__name__)

TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s"
# Of each record; a record of a call also has its fields.
JSON = "%(asctime)s %(levelname)s %(name)s %(message)s"
JSON_NAMES = {"asctime": "time", "levelname": "level", "name": "logger"}
# Of warnings and errors of one kind so many are written in a window; the rest is counted.
REPEATS = 10
WINDOW_S = 10.0


def configure(level: str, form: str) -> None:
    """Set the process's logging up.

    Args:
        level: "debug", "info", "warning" or "error".
        form: "text" or "json".
    """
    logging.basicConfig(level=level.upper(), handlers=[handler(form)])


def handler(form: str, stream: TextIO | None = None) -> logging.Handler:
    """Return what writes records.

    Args:
        form: As `configure`.
        stream: Where to; None for stderr.
    """
    return _Writer(stream, _Json() if form == "json" else logging.Formatter(TEXT))


def say(line: str) -> None:
    """Write a line to stdout at once; to the log if nobody takes it there.

    Whoever waits for it there may have left, or the disk may be full: no reason to end.
    """
    try:
        print(line, flush=True)
    except OSError as error:
        log.warning("%s (stdout takes nothing: %s)", line, error)


def flush() -> None:
    """Write out what is held back, as far as it is taken."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()


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


class _Writer(logging.StreamHandler):  # type: ignore[type-arg]  # generic since Python 3.11
    """Writes records, repeated faults only as far as they are worth it."""

    def __init__(self, stream: TextIO | None, formatter: logging.Formatter) -> None:
        super().__init__(stream)
        self.setFormatter(formatter)
        self.addFilter(_CallFields())
        self._repeated = RepeatedFaults(self.handle)
        self.addFilter(self._repeated)

    def close(self) -> None:
        """Say what was left out."""
        self._repeated.close()
        super().close()


class RequestLog(Observer):
    """Writes a line at the level DEBUG for each RPC that has ended."""

    def call_ended(self, call: Call, code: str, error: Exception | None) -> None:
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
        call = CALL.get(None)
        if call is not None and not hasattr(record, "request_id"):
            vars(record).update(_fields(call))
        return True


def _fields(call: Call) -> dict[str, Any]:
    """Return what may be logged of a call: nothing of its metadata but the checked id."""
    return {
        "request_id": call.request_id,
        "method": call.method,
        "variant": call.variant,
        "caller": call.caller.name,
    }
