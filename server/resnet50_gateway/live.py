"""`GET /v1/live`: figures of the servers, one JSON a second, as server-sent events."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

PERIOD_S = 1.0


class LiveFigures:
    """Figures of servers, from their Prometheus metrics.

    Args:
        urls: Of the metrics of each server.
        closing: Ends the responses.
    """

    def __init__(self, urls: Sequence[str], closing: asyncio.Event) -> None:
        self._urls = tuple(urls)
        self._closing = closing

    def routes(self) -> list[BaseRoute]:
        """Return the route."""
        return [Route("/v1/live", self._live)]

    async def _live(self, _: Request) -> Response:
        return StreamingResponse(
            self._events(),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    async def _events(self) -> AsyncIterator[str]:
        while not self._closing.is_set():
            yield f"data: {json.dumps(await self._figures())}\n\n"
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._closing.wait(), PERIOD_S)

    async def _figures(self) -> dict[str, Any]:
        return {"time": time.time(), "metrics": len(self._urls)}
