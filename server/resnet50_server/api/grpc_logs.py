"""Known noise that gRPC logs on the event loop, filtered out."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc

log = logging.getLogger(__name__)

CYGRPC = "grpc._cython.cygrpc"


def filter_grpc_logs(loop: asyncio.AbstractEventLoop) -> None:
    """Keep late responses and undecodable metadata out of the log.

    A response is late if its call ended while the response was being sent: the client has gone or
    its deadline has passed, and nothing is wrong.

    Args:
        loop: Its exception handler is replaced.
    """
    loop.set_exception_handler(on_loop_exception)
    logging.getLogger(CYGRPC).addFilter(is_not_late_response)
    _ignore_undecodable_metadata()


def on_loop_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an exception that no task has handled, unless a response was late."""
    if isinstance(context.get("exception"), grpc.aio.InternalError):
        log.debug("a response was not sent, its call has ended: %s", context["exception"])
    else:
        loop.default_exception_handler(context)


def is_not_late_response(record: logging.LogRecord) -> bool:
    """Return whether one of gRPC's own log records is to be written."""
    error = record.exc_info[1] if record.exc_info else None
    if not isinstance(error, grpc.aio.InternalError):
        return True
    log.debug("a response was not sent, its call has ended: %s", error)
    return False


def _ignore_undecodable_metadata() -> None:
    """Keep gRPC from logging a traceback for each metadata value that is not UTF-8.

    gRPC logs them on the event loop before the call is authenticated: 160 kB/s of such metadata
    would stop the server. A filter would be too late, since the record has been made by then, so
    the logger's method is replaced.
    """
    logger = logging.getLogger(CYGRPC)
    log_exception = logger.exception

    def exception(message: object, *arguments: object, **options: Any) -> None:
        if message != "Invalid encoding on %s":
            log_exception(message, *arguments, **options)

    logger.exception = exception  # type: ignore[assignment,method-assign]
