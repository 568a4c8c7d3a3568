"""Flow control of bulk calls: how many images are in flight."""

from __future__ import annotations

import math

# The first window in images: a CPU server takes 0.1 s for one.
START_WINDOW = 4
# Largest window in images: enough for two GPU servers with batches of 128.
MAX_WINDOW = 512
# The window is filled by at least this many calls: while one returns, others are computed.
CALLS_PER_WINDOW = 4
# Images that are added to the window each time that one window of images is answered.
INCREASE = 8
# Calls should take no longer than this, or than this share of `timeout_s`: more images in flight
# would only wait in the servers.
TARGET_S, TARGET_SHARE = 2.0, 0.25


class FlowControl:
    """Number of images in flight: additive increase, multiplicative decrease, as in TCP.

    The window doubles with each window of images answered in time, until a call takes too long or
    is refused because a server is overloaded. It is halved then, at most once for the calls that
    were in flight, and from there on grows by `INCREASE`.

    Args:
        timeout_s: Timeout of a call in seconds.
        max_in_flight: Largest window in images; None for `MAX_WINDOW`.

    Attributes:
        target_s: Calls that take longer shrink the window, in seconds.
    """

    def __init__(self, timeout_s: float, max_in_flight: int | None = None) -> None:
        self.target_s = min(TARGET_SHARE * timeout_s, TARGET_S)
        self._max = float(max_in_flight or MAX_WINDOW)
        self._window = min(float(START_WINDOW), self._max)
        self._doubling = True
        self._shrunk_at = -math.inf

    @property
    def window(self) -> int:
        """Images that may be in flight, at least 1."""
        return int(self._window)

    @property
    def batch_images(self) -> int:
        """Images of a call, so that several calls fill the window."""
        return max(1, self.window // CALLS_PER_WINDOW)

    def answered(self, images: int, in_flight: int, started: float, now: float) -> None:
        """Record a call that was answered.

        Args:
            images: Number of its images.
            in_flight: Images in flight before this answer, its own included.
            started: Time when it was sent, in seconds.
            now: Time in seconds.
        """
        if now - started > self.target_s:
            self.overloaded(started, now)
        elif 2 * in_flight > self._window:  # a window that is not used says nothing about its size
            growth = images if self._doubling else INCREASE * images / self._window
            self._window = min(self._window + growth, self._max)

    def overloaded(self, started: float, now: float) -> None:
        """Shrink the window, unless it was shrunk after the call was sent; times in seconds."""
        if started >= self._shrunk_at:
            self._window = max(1.0, self._window / 2)
            self._doubling = False
            self._shrunk_at = now
