"""One process that runs a server: signals, garbage collection, exit code."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from functools import partial

from resnet50_server.api.grpc_logs import filter_grpc_logs
from resnet50_server.errors import UnusableSetting, WeightsError
from resnet50_server.images.decode_guard import silence_decoders
from resnet50_server.lifecycle.load_errors import EXPECTED_ERRORS
from resnet50_server.runtime.loop_watchdog import LoopWatchdog
from resnet50_server.runtime.memory import keep_freed_memory, return_memory
from resnet50_server.runtime.streams import announce, call_at_stdin_end, complain
from resnet50_server.server import Server
from resnet50_server.settings import Settings

from .gateway_process import GatewayProcess

log = logging.getLogger(__name__)

# Time limit for a failed server to stop, in addition to its drain.
FAULT_STOP_S = 15.0


async def serve(settings: Settings) -> int:
    """Serve until SIGTERM, SIGINT or `stop_with_stdin`; return the process's exit code.

    Returns:
        0 after a drain, 1 if the server could not start, 2 if a file or an address that a setting
        names cannot be used; 70 if its device is lost or its scheduler broke, 71 if its engine
        hangs, 72 if decoding does in all threads. Two things end the process at once: a blocked
        event loop with 1 (`LoopWatchdog`), a second signal with 128 plus its number.
    """
    silence_decoders()
    keep_freed_memory()
    gateway = None
    if settings.http_listen is not None:
        try:
            gateway = await GatewayProcess.open(settings)
        except UnusableSetting as error:
            complain(f"resnet50-server: {error}")
            return 2
        settings = gateway.settings
    server = Server(settings, on_loaded=_collect_garbage)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    filter_grpc_logs(loop)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    if settings.stop_with_stdin:
        call_at_stdin_end(partial(loop.call_soon_threadsafe, stopping.set))
    watchdog = LoopWatchdog()
    starting = asyncio.create_task(server.start(), name="start")
    failed = asyncio.create_task(server.failed.wait(), name="wait for a fatal error")
    stopped = asyncio.create_task(stopping.wait(), name="wait for a signal")
    stopped.add_done_callback(_exit_on_next_signal)
    if gateway is not None:
        gateway.start(lambda: server.metrics_url)
    try:
        return await _serve_until(stopped, failed, starting, server, gateway)
    finally:
        stopped.cancel()
        failed.cancel()
        # Its requests in flight are the server's, and end with them.
        ending = None if gateway is None else asyncio.create_task(gateway.stop())
        await _stop(server, settings.drain_timeout_s)
        if ending is not None:
            await ending
        watchdog.close()


async def _serve_until(
    stopped: asyncio.Task[bool],
    failed: asyncio.Task[bool],
    starting: asyncio.Task[None],
    server: Server,
    gateway: GatewayProcess | None,
) -> int:
    """Wait until the server is to stop, or cannot start or serve; return the exit code."""
    await asyncio.wait((starting, stopped, failed), return_when=asyncio.FIRST_COMPLETED)
    if failed.done():
        # In a variant that was loaded already.
        starting.cancel()
        return _fault_status(server)
    if not starting.done():
        # Loaded variants complete their requests. The thread that reads or downloads the next one
        # cannot be cancelled, and is not waited for.
        log.info("stopping on a signal, while loading")
        starting.cancel()
        await asyncio.wait([starting])
        return 0
    try:
        await starting
    except UnusableSetting as error:
        complain(f"resnet50-server: {error}")
        return 2
    except ModuleNotFoundError:
        raise  # the command says which extra has it
    except Exception as error:
        if not isinstance(error, EXPECTED_ERRORS):
            log.error("the server could not start", exc_info=error)
        complain(f"resnet50-server: {_startup_error(error)}")
        return 1
    gc.freeze()  # the other variants
    return_memory()
    for address in server.addresses:
        if gateway is None or address != gateway.private_address:
            announce(f"listening on {address}")
    if server.metrics_url is not None:
        announce(f"metrics on {server.metrics_url}")
    await asyncio.wait((stopped, failed), return_when=asyncio.FIRST_COMPLETED)
    if failed.done():
        return _fault_status(server)
    log.info("stopping on a signal")
    return 0


def _collect_garbage() -> None:
    """Enable garbage collection when the first variant is loaded; it serves while others load.

    Objects made before are excluded: scanning them, mostly torch's 350,000, would pause everything
    for 0.2 s now and then (docs/adr/0011-batch-prefetching.md).
    """
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


async def _stop(server: Server, drain_timeout_s: float) -> None:
    """Reject new requests and stop; a failed server within a limit, as a part may not stop."""
    await server.reject_new()
    if server.fault is None:
        await server.stop()
        return
    limit_s = drain_timeout_s + FAULT_STOP_S
    try:
        await asyncio.wait_for(server.stop(), limit_s)
    except asyncio.TimeoutError:  # the built-in one only from Python 3.11 on
        log.critical("the server did not stop within %g s; ending the process", limit_s)


def _fault_status(server: Server) -> int:
    """Return the exit code of a failed server."""
    assert server.fault is not None  # set before `failed`
    log.critical("stopping with exit code %d: %s", server.fault.status, server.fault)
    return server.fault.status


def _exit_on_next_signal(stopped: asyncio.Task[bool]) -> None:
    """End the process on the next signal, without waiting for the drain."""
    if stopped.cancelled():
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        stopped.get_loop().add_signal_handler(number, os._exit, 128 + number)


def _startup_error(error: Exception) -> str:
    if isinstance(error, (WeightsError, OSError)):
        return str(error)
    return (
        f"cannot load and warm up: {type(error).__name__}: {error}; if memory ran out, serve fewer"
        " variants or a smaller --max-batch-size"
    )
