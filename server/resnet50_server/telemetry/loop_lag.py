"""Lag of the event loop: how late its timers run."""

from __future__ import annotations

import asyncio

from prometheus_client import Histogram

INTERVAL_S = 0.1


class LoopLagProbe:
    """Measures the lag every `INTERVAL_S`; constructed, and closed, on the event loop.

    Args:
        lag: Receives it, in seconds.
    """

    def __init__(self, lag: Histogram) -> None:
        self._lag = lag
        self._loop = asyncio.get_running_loop()
        self._schedule()

    def close(self) -> None:
        """Stop measuring."""
        self._timer.cancel()

    def _schedule(self) -> None:
        self._due = self._loop.time() + INTERVAL_S
        self._timer = self._loop.call_at(self._due, self._measure)

    def _measure(self) -> None:
        self._lag.observe(max(0.0, self._loop.time() - self._due))
        self._schedule()
