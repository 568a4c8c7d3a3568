"""`GET /v1/live`: figures of the servers once a second, as server-sent events.

The figures are those of `resnet50 top --json`: of `resnet50_metrics.server_metrics`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from resnet50_metrics.interval import Interval
from resnet50_metrics.scrape import Endpoint, Scrape, ScrapeError, fetch
from resnet50_metrics.server_metrics import ServerMetrics

from .exchange import Exchange
from .problems import Problem
from .settings import Settings
from .upstream import Upstream
from .variants import LIST_VARIANTS

log = logging.getLogger(__name__)

PERIOD_S = 1.0
SCRAPE_TIMEOUT_S = 2.0
# A longer gap between two scrapes would give rates over the gap.
STALE_S = 5.0
MAX_LISTENERS = 64


class LiveFigures:
    """Figures of servers; they are scraped while at least one client listens.

    Args:
        settings: With the addresses of the servers' metrics.
        upstream: The servers, which decide whether a client may see the figures.
        closing: Set when the gateway stops; the events end then.
    """

    def __init__(self, settings: Settings, upstream: Upstream, closing: asyncio.Event) -> None:
        self._settings = settings
        self._upstream = upstream
        self._endpoints = [Endpoint.of(url) for url in settings.metrics]
        self._closing = closing
        self._scrapes: dict[Endpoint, Scrape] = {}
        self._newest: str | None = None
        self._changed = asyncio.Condition()
        self._listeners = 0
        self._task: asyncio.Task[None] | None = None

    def routes(self) -> list[BaseRoute]:
        """Return the route."""
        return [Route("/v1/live", self._live)]

    async def _live(self, request: Request) -> Response:
        if not self._endpoints:
            raise Problem(
                "NOT_FOUND",
                "metrics: the gateway has no address of a server's metrics; start it with"
                " --metrics URL, and the server with --metrics-listen",
                field="metrics",
            )
        if self._listeners >= MAX_LISTENERS:
            raise Problem(
                "RESOURCE_EXHAUSTED",
                f"live: {MAX_LISTENERS} clients listen to the figures; retry in 10 s",
                limit=MAX_LISTENERS,
                retry_after_s=10.0,
            )
        # The figures name variants and show their traffic: they need the token that a list needs.
        exchange = Exchange(request, self._upstream, self._settings.timeout_s)
        await exchange.run(exchange.call(LIST_VARIANTS, b""))
        return StreamingResponse(
            self._events(),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    async def _events(self) -> AsyncIterator[str]:
        """Yield the newest figures; a client that reads slowly misses some."""
        self._listeners += 1
        if self._task is None:
            self._task = asyncio.create_task(self._scrape_periodically())
        sent: str | None = None
        try:
            while not self._closing.is_set():
                if self._newest is None or self._newest is sent:
                    async with self._changed:
                        await self._changed.wait()
                    continue
                sent = self._newest
                yield f"data: {sent}\n\n"
        finally:
            self._listeners -= 1
            if not self._listeners and self._task is not None:
                self._task.cancel()
                self._task, self._newest = None, None

    async def _scrape_periodically(self) -> None:
        while not self._closing.is_set():
            began_s = time.monotonic()
            try:
                self._newest = json.dumps(await self._figures())
            except Exception:  # without this task all listeners would wait for ever
                log.exception("the figures of the servers cannot be computed; they are tried again")
            async with self._changed:
                self._changed.notify_all()
            left_s = max(0.0, began_s + PERIOD_S - time.monotonic())
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._closing.wait(), left_s)
        async with self._changed:
            self._changed.notify_all()

    async def _figures(self) -> dict[str, Any]:
        """Return the figures of each server and of all, as JSON."""
        found = await asyncio.gather(*map(self._interval, self._endpoints))
        intervals = [one for one in found if isinstance(one, Interval)]
        now_s = time.time()
        total = ServerMetrics.of(Interval.total(intervals), now_s) if intervals else None
        return {
            "time": now_s,
            "servers": [
                {"name": endpoint.name, "failure": one if isinstance(one, str) else ""}
                for endpoint, one in zip(self._endpoints, found, strict=True)
            ],
            "total": None if total is None else asdict(total),
        }

    async def _interval(self, endpoint: Endpoint) -> Interval | str:
        """Return a server's rates since the last scrape, or the reason why there are none."""
        try:
            # In a thread: the reader of metrics blocks, up to its timeout.
            scrape = await asyncio.to_thread(fetch, endpoint, SCRAPE_TIMEOUT_S)
        except ScrapeError as error:
            return str(error)
        before = self._scrapes.get(endpoint)
        self._scrapes[endpoint] = scrape
        if before is not None and scrape.time_s - before.time_s > STALE_S:
            before = None
        try:
            interval = Interval.between(before, scrape)
            ServerMetrics.of(interval, 0.0)
        except Exception as error:  # of one server's metrics; the others are still shown
            log.warning("metrics of %s cannot be read: %s", endpoint.name, error)
            return f"{type(error).__name__}: {error}"
        return interval
