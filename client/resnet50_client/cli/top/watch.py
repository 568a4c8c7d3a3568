"""One server that is looked at again and again, may go away, and comes back."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from .interval import Interval
from .scrape import Endpoint, Scrape, ScrapeError, fetch

# After a longer silence, a mean over it says nothing about now.
STALE_INTERVALS = 5
# What a look may take beyond its time-out, which does not bound the name's resolution.
GRACE_S = 0.5


class Watch:
    """What is known of one server.

    Args:
        endpoint: Where it exports its metrics.
        timeout_s: How long it may take to answer.
        stale_s: An older scrape is not compared with.

    Attributes:
        interval: What it did lately; None if it does not answer, or has not been asked.
        failure: Why there is none; "" if it answered.
        failing_since_s: Since when it does not answer, on the monotonic clock.
    """

    def __init__(self, endpoint: Endpoint, timeout_s: float, stale_s: float) -> None:
        self.endpoint = endpoint
        self.interval: Interval | None = None
        self.failure = "not asked yet"
        self.failing_since_s = time.monotonic()
        self._timeout_s = timeout_s
        self._stale_s = stale_s
        self._last: Scrape | None = None
        self._looking: threading.Thread | None = None

    def look(self) -> None:
        """Ask the server, and note what it did since the last time; blocks."""
        try:
            scrape = fetch(self.endpoint, self._timeout_s)
            before = self._last
            if before is not None and scrape.time_s - before.time_s > self._stale_s:
                before = None
            interval = Interval.between(before, scrape)
        except ScrapeError as error:
            self.fail(str(error))
        except Exception as error:  # it is asked again, whatever it has sent
            self.fail(f"{type(error).__name__}: {error}")
        else:
            self.interval, self._last = interval, scrape
            self.failure = ""

    def fail(self, reason: str) -> None:
        """Note that it has no figures, and why."""
        if not self.failure:
            self.failing_since_s = time.monotonic()
        self.interval, self.failure = None, reason

    def begin(self) -> None:
        """Look in a thread of its own, unless one is still at it."""
        if self._looking is None or not self._looking.is_alive():
            name = f"look at {self.endpoint.name}"
            self._looking = threading.Thread(target=self.look, name=name, daemon=True)
            self._looking.start()

    def wait(self, began_s: float) -> None:
        """Wait for that thread as long as a look that began then may take."""
        assert self._looking is not None
        self._looking.join(max(0.0, began_s + self._timeout_s + GRACE_S - time.monotonic()))
        if self._looking.is_alive():
            self.fail(f"no answer within {self._timeout_s:g} s")


def look_at_all(watches: Sequence[Watch]) -> None:
    """Look at servers at the same time; none of them holds up the others for longer."""
    began_s = time.monotonic()
    for one in watches:
        one.begin()
    for one in watches:
        one.wait(began_s)
