"""Periodic polling of one server's metrics, also while it is unreachable."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from resnet50_metrics.interval import Interval
from resnet50_metrics.scrape import Endpoint, Scrape, ScrapeError, fetch

# After a longer outage, mean rates over it would be misleading.
STALE_INTERVALS = 5
# Allowed beyond the timeout, which does not bound DNS resolution.
GRACE_S = 0.5


class Poller:
    """Polls one server.

    Args:
        endpoint: Address of its metrics.
        timeout_s: Timeout of a poll in seconds.
        stale_s: Maximum age in seconds of the previous scrape to compute rates from.

    Attributes:
        interval: Rates since the previous poll; None if the last poll failed, or before the first.
        failure: Error of the last poll; "" if it succeeded.
        failing_since_s: When polls began to fail, on the monotonic clock.
    """

    def __init__(self, endpoint: Endpoint, timeout_s: float, stale_s: float) -> None:
        self.endpoint = endpoint
        self.interval: Interval | None = None
        self.failure = "not polled yet"
        self.failing_since_s = time.monotonic()
        self._timeout_s = timeout_s
        self._stale_s = stale_s
        self._last: Scrape | None = None
        self._thread: threading.Thread | None = None

    def poll(self) -> None:
        """Scrape the server and compute its rates since the last scrape; blocks."""
        try:
            scrape = fetch(self.endpoint, self._timeout_s)
            before = self._last
            if before is not None and scrape.time_s - before.time_s > self._stale_s:
                before = None
            interval = Interval.between(before, scrape)
        except ScrapeError as error:
            self.fail(str(error))
        except Exception as error:  # any invalid response: polling continues
            self.fail(f"{type(error).__name__}: {error}")
        else:
            self.interval, self._last = interval, scrape
            self.failure = ""

    def fail(self, reason: str) -> None:
        """Record that the poll failed."""
        if not self.failure:
            self.failing_since_s = time.monotonic()
        self.interval, self.failure = None, reason

    def start(self) -> None:
        """Start a poll in a thread, unless one is still running."""
        if self._thread is None or not self._thread.is_alive():
            name = f"poll {self.endpoint.name}"
            self._thread = threading.Thread(target=self.poll, name=name, daemon=True)
            self._thread.start()

    def wait(self, began_s: float) -> None:
        """Wait for a poll that started at `began_s`, up to its timeout."""
        assert self._thread is not None
        self._thread.join(max(0.0, began_s + self._timeout_s + GRACE_S - time.monotonic()))
        if self._thread.is_alive():
            self.fail(f"no response within {self._timeout_s:g} s")


def poll_all(pollers: Sequence[Poller]) -> None:
    """Poll servers concurrently; a slow one delays the others by at most its timeout."""
    began_s = time.monotonic()
    for one in pollers:
        one.start()
    for one in pollers:
        one.wait(began_s)
