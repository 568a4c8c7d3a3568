"""Times of frames, which never decrease, and playback at the speed of those times."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

# A longer step between two frames is a restart of the source's clock, where its format permits
# restarts. FFmpeg's own tool uses 10 s (-dts_delta_threshold), a player cannot wait as long.
MAX_STEP_S = 2.0
# Frames of a slow source are further apart.
_MAX_STEP_INTERVALS = 3
FALLBACK_FPS = 25.0  # FFmpeg's default for sources without timestamps


class Clock:
    """Converts the timestamps of a source to seconds since its first frame.

    Encoders that restart, files that were joined and sources that loop set their timestamps back,
    or forward by any time. The frame after such a restart follows the one before by a frame
    interval; for a live source by the time that passed here meanwhile.

    Args:
        fps: Frames per second, for frames without timestamps; None if unknown.
        restarts: True if steps forward of more than `MAX_STEP_S` are restarts: live sources, and
            formats like MPEG-TS that permit them. False for formats such as MP4, where a long step
            is a still.
        live: The source is live.
        now: Returns this machine's monotonic time in seconds.
    """

    def __init__(
        self,
        fps: float | None,
        *,
        restarts: bool,
        live: bool,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._frame_s = self._interval_s = 1 / (fps or FALLBACK_FPS)
        self._restarts = restarts
        self._live = live
        self._now = now
        self._offset_s = 0.0
        self._last_s: float | None = None
        self._arrived_s = 0.0
        self._reconnected = False

    def reconnected(self) -> None:
        """Take the next frame's timestamp for that of a new clock."""
        self._reconnected = True

    def time_s(self, timestamp_s: float | None) -> float:
        """Return the next frame's time in seconds.

        Args:
            timestamp_s: The source's timestamp in seconds; None if it has none.
        """
        now, before = self._now(), self._arrived_s
        self._arrived_s = now
        if self._last_s is None:
            self._last_s = 0.0
            self._offset_s = timestamp_s or 0.0
            return 0.0
        if timestamp_s is None:
            self._last_s += self._interval_s
            return self._last_s
        step_s = timestamp_s - self._offset_s - self._last_s
        if self._reconnected or self._is_restart(step_s):
            self._reconnected = False
            self._last_s += max(self._interval_s, now - before if self._live else 0.0)
            self._offset_s = timestamp_s - self._last_s
        elif step_s > 0:
            self._last_s += step_s
            self._interval_s = step_s
        return self._last_s  # the same as before if cameras' timestamps jitter

    def _is_restart(self, step_s: float) -> bool:
        # The last step may be short by chance, where frames come unevenly.
        interval_s = max(self._interval_s, self._frame_s)
        if step_s < 0:
            return step_s < -interval_s
        return self._restarts and step_s > max(MAX_STEP_S, _MAX_STEP_INTERVALS * interval_s)


class Pacer:
    """Waits until frames are due.

    Args:
        stop: Ends a wait when it is set.
        max_wait_s: Longest wait for a frame; after it playback continues from that frame's time.
    """

    def __init__(self, stop: threading.Event, max_wait_s: float = math.inf) -> None:
        self._stop = stop
        self._max_wait_s = max_wait_s
        self._began: float | None = None

    def wait(self, time_s: float) -> None:
        """Wait until the frame of this time, in seconds from the first one, is due."""
        now = time.monotonic()
        if self._began is None:
            self._began = now - time_s
        wait_s = self._began + time_s - now
        if wait_s > self._max_wait_s:
            self._began -= wait_s - self._max_wait_s
            wait_s = self._max_wait_s
        if wait_s > 0:
            self._stop.wait(wait_s)
