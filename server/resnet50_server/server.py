"""A server in this process: start, drain, stop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack

from resnet50_server.api.drain import reject_arriving
from resnet50_server.runtime.fatal import FatalError
from resnet50_server.settings import Settings
from resnet50_server.telemetry.snapshot import ServerSnapshot

from .parts import Parts, build

log = logging.getLogger(__name__)


class Server:
    """A model server in this process; `start`, then `stop`, on one event loop.

    Args:
        settings: Its configuration.
        on_loaded: Called for each loaded variant, before it answers requests.

    Attributes:
        failed: Set when the server cannot recover from an error.
    """

    def __init__(self, settings: Settings, on_loaded: Callable[[], object] = lambda: None) -> None:
        self._settings = settings
        self._on_loaded = on_loaded
        self._parts: Parts | None = None
        # Closes the parts in the reverse of the order in which they were built.
        self._closing = AsyncExitStack()
        self.failed = asyncio.Event()

    @property
    def parts(self) -> Parts:
        """The parts; from `start` on."""
        assert self._parts is not None
        return self._parts

    @property
    def fault(self) -> FatalError | None:
        """The error that the server cannot recover from; None if there is none."""
        return None if self._parts is None else self._parts.readiness.fault

    @property
    def addresses(self) -> list[str]:
        """The addresses that it listens on."""
        return [] if self._parts is None else self._parts.grpc.addresses

    @property
    def metrics_url(self) -> str | None:
        """The URL of the metrics; None if they are not served."""
        server = None if self._parts is None else self._parts.metrics_server
        return None if server is None else server.url

    def snapshot(self) -> ServerSnapshot:
        """Return the state of all parts, once started; call it on the event loop."""
        return self.parts.snapshot()

    async def start(self) -> None:
        """Listen at once, not ready; load and warm up the variants; then become ready.

        Without `listen_while_loading` it listens only when it is ready.

        Raises:
            WeightsError: A variant cannot be loaded.
            UnusableSetting: A file or an address in the settings cannot be used.
            OSError: An address cannot be bound.
        """
        settings = self._settings
        self._parts = parts = build(settings, self.failed, self._on_loaded, self._closing)
        parts.health.start()
        if settings.listen_while_loading:
            await parts.grpc.listen(parts.certificates)
        log.info("loading the variants")
        if parts.watcher is not None:
            await parts.watcher.start()
        await parts.control.load_initial()
        if parts.variants_file is not None:
            parts.variants_file.set_splits()
        for watcher in (parts.watcher, parts.variants_file):
            if watcher is not None:
                watching = asyncio.create_task(watcher.run(), name=type(watcher).__name__)
                self._closing.callback(watching.cancel)
        parts.readiness.started = True
        parts.health.update()
        if not settings.listen_while_loading:
            await parts.grpc.listen(parts.certificates)

    def drain(self) -> None:
        """Report that the server is not ready, and reject new requests."""
        if self._parts is not None:
            self._parts.inference.drain()
            self._parts.health.update()

    async def reject_new(self) -> None:
        """Drain, and reject the requests that are on their way until no more arrive."""
        self.drain()
        if self._parts is not None:
            await reject_arriving(self._parts.admission, self._settings.drain_timeout_s)

    async def stop(self) -> None:
        """Drain, complete the requests in flight within `drain_timeout_s`, then stop."""
        self.drain()
        if self._parts is not None:
            await self._parts.grpc.stop(self._settings.drain_timeout_s)
        await self._closing.aclose()
