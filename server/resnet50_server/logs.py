"""How the server logs: text for people, or JSON for machines, with the fields of the call.

At the default level nothing is logged for a request, unless it met a fault of ours.
"""

from __future__ import annotations

import logging
import time
from typing import Any, TextIO

from pythonjsonlogger.json import JsonFormatter

from .call import CALL, Call
from .observer import Observer

log = logging.getLogger(__name__)

TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s"
# Of each record; a record of a call also has its fields.
JSON = "%(asctime)s %(levelname)s %(name)s %(message)s"
JSON_NAMES = {"asctime": "time", "levelname": "level", "name": "logger"}


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
    writer = logging.StreamHandler(stream)
    writer.setFormatter(_Json() if form == "json" else logging.Formatter(TEXT))
    writer.addFilter(_CallFields())
    return writer


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
