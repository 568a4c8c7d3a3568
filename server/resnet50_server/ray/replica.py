"""A replica of Ray Serve: starts a server as a child process, supervises it, changes variants."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError

from .directory import (
    ANNOUNCE_S,
    READY,
    RESTARTING,
    FailedStart,
    ServerEntry,
    open_directory,
)
from .load import ServerLoad
from .options import RayOptions, VariantConfig
from .process import KILL_GRACE_S, ServerEnded, ServerProcess
from .variants import ServerVariants, VariantsFailed

log = logging.getLogger(__name__)

# Pause before the server is started again; doubled while it keeps ending early.
MIN_PAUSE_S = 0.1
# A server that ran for this long has started well.
HEALTHY_S = 30.0
# After so many early ends in succession the replica ends, and Ray starts another one.
MAX_EARLY_ENDS = 3
LIVE_TIMEOUT_S = 10.0


class ServerReplica:
    """One server on one node.

    Args:
        options: Keyword arguments of `RayOptions`, as its `of_replica` returns them.

    Raises:
        RuntimeError: The server cannot start; the text has its exit code and last lines.
    """

    async def __init__(self, options: dict[str, Any]) -> None:  # type: ignore[misc]  # Ray awaits it
        self._options = RayOptions(**options)
        context = serve.get_replica_context()
        self._app, self._replica = context.app_name, context.replica_tag
        self._node = ray.util.get_node_ip_address()
        self._directory = open_directory(self._app)
        self._private = Path(tempfile.mkdtemp(prefix="resnet50-ray-"))
        socket = str(self._private / "server.sock")
        self._process = ServerProcess(self._options.flags(), self._node, self._options.port, socket)
        self._variants = ServerVariants(f"unix:{socket}", self._options.admin_token_file)
        self._load = ServerLoad()
        self._config = VariantConfig()
        self._state, self._reason = READY, ""
        self._tasks: list[asyncio.Task[None]] = []
        try:
            # Where the last starts failed, so that they are not repeated in a hot loop.
            await asyncio.sleep(await self._directory.pause_s.remote(self._node))
            await self._process.start()
        except ServerEnded as error:
            shutil.rmtree(self._private, ignore_errors=True)
            await self._start_failed(str(error))
            raise RuntimeError(str(error)) from None
        except BaseException:
            shutil.rmtree(self._private, ignore_errors=True)
            raise
        self._announced = False
        self._tasks = [asyncio.create_task(self._supervise())]

    async def __del__(self) -> None:
        """Stop the server: it completes the calls in flight; clients look for others."""
        for task in self._tasks:
            task.cancel()
        with suppress(RayError):
            await self._directory.withdraw.remote(self._replica)
        await self._process.stop(self._options.drain_timeout_s + KILL_GRACE_S)
        shutil.rmtree(self._private, ignore_errors=True)

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Load, unload and choose variants, without a restart.

        Raises:
            ValueError: The configuration is invalid.
            VariantsFailed: The server refuses a change.
        """
        config = VariantConfig(**user_config)
        await self._variants.apply(config)
        self._config = config

    async def check_health(self) -> None:
        """Check that the server's event loop responds; announce the server after the first check.

        Raises:
            OSError: It does not. A server that is being restarted is not asked.
            Exception: One that ended a task of this replica; Ray replaces the replica.
        """
        for task in self._tasks:
            if task.done():
                task.result()
        if self._state == READY:
            await asyncio.to_thread(_check_live, self._process.metrics_url)
        if not self._announced:
            # Ray has called `reconfigure`: no client sees the server without its variants.
            self._announced = True
            await self._announce()
            self._tasks.append(asyncio.create_task(self._announce_repeatedly()))

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return the load of the server, for `QueueAgePolicy`."""
        if self._state != READY:
            return {}
        return await asyncio.to_thread(self._load.read, self._process.metrics_url)

    def address(self) -> str:
        """Return the address of the server, as host:port."""
        return self._process.address

    async def _supervise(self) -> None:
        """Start the server again whenever it ends."""
        early_ends, started_s = 0, time.monotonic()
        while True:
            reason = await self._process.wait()
            early_ends = 0 if time.monotonic() - started_s > HEALTHY_S else early_ends + 1
            while True:
                log.error("%s", reason)
                self._state, self._reason = RESTARTING, reason
                await self._announce()
                if early_ends >= MAX_EARLY_ENDS:
                    await self._start_failed(reason)
                    await self._withdraw()
                    log.critical("the server ends again and again; this replica ends")
                    os._exit(1)
                await asyncio.sleep(MIN_PAUSE_S * 2**early_ends)
                started_s = time.monotonic()
                try:
                    await self._restart()
                    break
                except (ServerEnded, VariantsFailed) as error:
                    reason, early_ends = str(error), early_ends + 1
            self._state, self._reason = READY, ""
            await self._announce()

    async def _restart(self) -> None:
        """Start the server again, with its variants.

        Raises:
            ServerEnded: It has ended.
            VariantsFailed: It refuses a variant; it is stopped.
        """
        await self._process.start()
        try:
            self._variants.forget()
            await self._variants.apply(self._config)
        except VariantsFailed:
            # The next one needs its port and its memory.
            await self._process.stop(self._options.drain_timeout_s + KILL_GRACE_S)
            raise

    async def _announce_repeatedly(self) -> None:
        while True:
            await self._announce()
            await asyncio.sleep(ANNOUNCE_S)

    async def _announce(self) -> None:
        entry = ServerEntry(
            *(self._replica, self._node, self._process.address),
            *(self._state, self._reason, self._process.pid),
        )
        try:
            await self._directory.announce.remote(entry)
        except RayError:
            # It was deleted; or it is started again, and the next announcement reaches it.
            try:
                self._directory = open_directory(self._app)
            except Exception:  # Ray's are of many classes; a healthy server stays announced
                log.exception("the directory of servers cannot be opened; it is tried again")

    async def _withdraw(self) -> None:
        with suppress(RayError):
            await self._directory.withdraw.remote(self._replica)

    async def _start_failed(self, reason: str) -> None:
        with suppress(RayError):
            await self._directory.start_failed.remote(
                FailedStart(self._replica, self._node, reason)
            )


def _check_live(metrics_url: str) -> None:
    """Check that a server is alive.

    Raises:
        OSError: It is not; the text has its reason.
    """
    try:
        urllib.request.urlopen(f"{metrics_url}/livez", timeout=LIVE_TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        raise OSError(f"the server is lost: {error.read().decode().strip()}") from None
