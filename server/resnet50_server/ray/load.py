"""Load of servers, from their metrics, and the number of replicas that it calls for."""

from __future__ import annotations

import math
import re
import time
import urllib.request
from typing import Any

TIMEOUT_S = 5.0
QUEUE_AGE, BUSY = "queue_age_s", "busy_ratio"
# Growth in one step, relative to the replicas there are.
STEP = 0.5
_QUEUE_AGE = re.compile(r"^resnet50_queue_age_seconds(?:\{[^}]*\})? (\S+)$", re.MULTILINE)
_BUSY = re.compile(r"^resnet50_engine_busy_seconds_total(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


class ServerLoad:
    """Load of one server, measured between two readings."""

    def __init__(self) -> None:
        self._busy_s = math.nan
        self._read_s = 0.0

    def read(self, metrics_url: str) -> dict[str, float]:
        """Read the server's metrics; blocks.

        Args:
            metrics_url: URL of its metrics, without the path.

        Returns:
            The age of the oldest waiting image in seconds, and the mean share of the time since the
            last reading in which its devices computed, 0 to 1.

        Raises:
            OSError: The server does not respond.
        """
        with urllib.request.urlopen(f"{metrics_url}/metrics", timeout=TIMEOUT_S) as response:
            text = response.read().decode()
        return self.of(text, time.monotonic())

    def of(self, text: str, now_s: float) -> dict[str, float]:
        """Return the load in a server's metrics; see `read`.

        Args:
            text: The metrics, in Prometheus's text format.
            now_s: Time of the reading, in seconds.
        """
        ages = [float(value) for value in _QUEUE_AGE.findall(text)]
        busy = [float(value) for value in _BUSY.findall(text)]
        busy_s, elapsed_s = sum(busy) / len(busy) if busy else 0.0, now_s - self._read_s
        grown_s = busy_s - self._busy_s  # below 0 after a restart of the server
        known = not math.isnan(grown_s) and grown_s >= 0 and elapsed_s > 0
        self._busy_s, self._read_s = busy_s, now_s
        ratio = min(1.0, grown_s / elapsed_s) if known else 0.0
        return {QUEUE_AGE: max(ages, default=0.0), BUSY: ratio}


class QueueAgePolicy:
    """Ray Serve's autoscaling policy: more servers while images wait, fewer while engines idle.

    Args:
        target_queue_age_s: Servers are added while the oldest image of one waits for longer.
        min_busy_ratio: A server is removed while each is busy for less than this share.
    """

    def __init__(self, target_queue_age_s: float, min_busy_ratio: float) -> None:
        self._target_queue_age_s = target_queue_age_s
        self._min_busy_ratio = min_busy_ratio

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Return the number of replicas, and the state of the policy, which has none.

        Args:
            context: Ray Serve's `AutoscalingContext`.
        """
        running, target = context.current_num_replicas, context.target_num_replicas
        metrics = context.aggregated_metrics or {}
        ages, busy = metrics.get(QUEUE_AGE, {}), metrics.get(BUSY, {})
        if not ages or running < target:
            return target, {}  # replicas are starting: their effect is not known yet
        if max(ages.values()) > self._target_queue_age_s:
            return running + max(1, int(running * STEP)), {}
        if len(busy) >= running and max(busy.values()) < self._min_busy_ratio:
            return max(1, running - 1), {}
        return running, {}
