"""Logging: text for people or JSON for machines, with the fields of the current request.

At the default level requests are not logged, except server errors. Records are formatted by the
thread that logs, and written by another: no log call waits for the reader of the log.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, TextIO

from pythonjsonlogger.json import JsonFormatter

from resnet50_server.context import CURRENT_REQUEST, RequestContext
from resnet50_server.events import ServerEvents
from resnet50_server.runtime.line_writer import LineWriter
from resnet50_server.runtime.streams import FLUSH_S, STDERR
from resnet50_server.runtime.texts import shortened

log = logging.getLogger(__name__)

FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"
JSON_NAMES = {"asctime": "time", "levelname": "level", "name": "logger"}
# Limit of a message; a traceback follows it.
MAX_MESSAGE_BYTES = 16 * 2**10


def configure(level: str, form: str) -> None:
    """Set up the logging of the process.

    Args:
        level: "debug", "info", "warning" or "error".
        form: "text" or "json".
    """
    logging.basicConfig(level=level.upper(), handlers=[handler(form)])


def handler(form: str, stream: TextIO | None = None) -> logging.Handler:
    """Return a handler; its `close` waits until all records are written.

    Args:
        form: As in `configure`.
        stream: Destination; None for stderr.
    """
    formatter = _JsonFormatter() if form == "json" else logging.Formatter(FORMAT)
    if stream is not None:
        return Handler(LineWriter(lambda: stream, _dropped_line(formatter)), formatter)
    STDERR.dropped_line = _dropped_line(formatter)
    return Handler(STDERR, formatter)


def lines_dropped() -> int:
    """Return how many lines of the log were dropped because too many were unread."""
    return STDERR.dropped


def _dropped_line(formatter: logging.Formatter) -> Callable[[int], str]:
    """Return a function that formats the line about dropped lines."""

    def line(count: int) -> str:
        record = logging.LogRecord(
            log.name,
            logging.WARNING,
            __file__,
            0,
            "%d log lines were dropped: those before them had not been read",
            (count,),
            None,
        )
        record.dropped = count
        return formatter.format(record)

    return line


class Handler(logging.Handler):
    """Formats records; a thread writes them."""

    def __init__(self, writer: LineWriter, formatter: logging.Formatter) -> None:
        super().__init__()
        self._writer = writer
        self.setFormatter(formatter)
        self.addFilter(_add_request_fields)

    def emit(self, record: logging.LogRecord) -> None:
        """Format a record with its request's current fields, and queue it for writing."""
        try:
            message = record.getMessage()
            if (short := shortened(message, MAX_MESSAGE_BYTES)) != message:
                record.msg, record.args = short, None
            self._writer.put(self.format(record))
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Wait until everything is written, at most `FLUSH_S`."""
        self._writer.flush(FLUSH_S)
        super().close()


class RequestLog(ServerEvents):
    """Logs each RPC when it ends, at level DEBUG."""

    def call_ended(self, context: RequestContext, code: str, error: Exception | None) -> None:
        """Log it."""
        duration_s = time.perf_counter() - context.started
        log.debug(
            "request %s: %s ended with %s after %.1f ms",
            context.request_id,
            context.method,
            code,
            duration_s * 1e3,
            extra={"code": code, "duration_s": round(duration_s, 6)} | _fields(context),
        )


class _JsonFormatter(JsonFormatter):
    """Formats one JSON object a line; times are UTC, as in RFC 3339."""

    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__(FORMAT, rename_fields=JSON_NAMES)

    def converter(self, seconds: float | None) -> time.struct_time:
        """Convert a time to UTC."""
        return time.gmtime(seconds)


def _add_request_fields(record: logging.LogRecord) -> bool:
    """Add the fields of the current request to a record; a filter that passes every record."""
    context = CURRENT_REQUEST.get(None)
    if context is not None and not hasattr(record, "request_id"):
        vars(record).update(_fields(context))
    return True


def _fields(context: RequestContext) -> dict[str, Any]:
    """Return the fields of a request that may be logged: of its metadata only the checked ID."""
    return {
        "request_id": context.request_id,
        "method": context.method,
        "variant": context.variant,
        "caller": context.caller.name,
    }
