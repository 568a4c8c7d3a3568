"""The server as a process: from its start to a signal, and its exit status."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import os
import signal
import sys
from typing import Any

import grpc

from .app import Server
from .errors import UnusableSetting, WeightsError
from .file_guard import silence_libraries
from .logs import say
from .settings import Settings

log = logging.getLogger(__name__)


async def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; return the process's exit status.

    Returns:
        0 after a drain, 1 if the server could not start, 2 if a file or an address that a setting
        names cannot be used, 70 if its scheduler broke.
    """
    silence_libraries()
    server = Server(settings)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_on_loop_exception)
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_no_late_reply)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    starting = asyncio.create_task(server.start(), name="start")
    stopped = asyncio.create_task(stopping.wait(), name="wait for a signal")
    stopped.add_done_callback(_exit_on_next_signal)
    try:
        await asyncio.wait((starting, stopped), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            # Variants that are loaded already finish what they have. The thread that still reads or
            # downloads the next one cannot be cancelled, and is not waited for.
            log.info("stopping: asked to, while loading")
            starting.cancel()
            await asyncio.wait([starting])
            return 0
        try:
            await starting
        except UnusableSetting as error:
            print(f"resnet50-server: {error}", file=sys.stderr)
            return 2
        except (WeightsError, OSError, RuntimeError) as error:
            # torch raises RuntimeError and its subclasses, such as OutOfMemoryError.
            print(f"resnet50-server: {_text(error)}", file=sys.stderr)
            return 1
        # What is loaded stays. Looking through it for garbage, torch's 350,000 objects for the most
        # part, would stop everything for 0.2 s now and then (docs/adr/0011-batches-in-flight.md).
        gc.freeze()
        gc.enable()
        _return_memory()
        for address in server.addresses:
            say(f"listening on {address}")
        if server.metrics_url is not None:
            say(f"metrics on {server.metrics_url}")
        broken = asyncio.create_task(server.broken.wait(), name="wait for a fault")
        await asyncio.wait((stopped, broken), return_when=asyncio.FIRST_COMPLETED)
        log.info("stopping: %s", "the engine broke" if broken.done() else "asked to")
        status = 70 if broken.done() else 0
        broken.cancel()
        await server.turn_away()
        return status
    finally:
        stopped.cancel()
        await server.stop()


def _on_loop_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Keep out of the log what gRPC lets escape where a reply meets a deadline that has passed.

    The caller has left in the moment in which its answer was sent: nobody can be told, and nothing
    is wrong. Everything else is logged as ever.
    """
    if isinstance(context.get("exception"), grpc.aio.InternalError):
        log.debug("a reply was not sent, its call is over: %s", context["exception"])
    else:
        loop.default_exception_handler(context)


def _is_no_late_reply(record: logging.LogRecord) -> bool:
    """Keep the same out of the log where gRPC writes it there itself."""
    error = record.exc_info[1] if record.exc_info else None
    if not isinstance(error, grpc.aio.InternalError):
        return True
    log.debug("a reply was not sent, its call is over: %s", error)
    return False


def _return_memory() -> None:
    """Give what loading has used and freed back to the system; glibc would keep it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _exit_on_next_signal(stopped: asyncio.Task[bool]) -> None:
    """Once asked to stop: whoever asks again does not want to wait for the drain."""
    if stopped.cancelled():
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        stopped.get_loop().add_signal_handler(number, os._exit, 128 + number)


def _text(error: Exception) -> str:
    if isinstance(error, (WeightsError, OSError)):
        return str(error)
    return (
        f"cannot load and warm up: {type(error).__name__}: {error}; if memory ran out, serve fewer"
        " variants or a smaller --max-batch-size"
    )
