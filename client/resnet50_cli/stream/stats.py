"""Statistics of a running stream: counts, current label, latencies."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable

import numpy as np
from rich.text import Text

# Only the newest latencies are kept, because a camera's stream is endless.
LATENCIES = 10_000


class StreamStats:
    """Counters of a stream, rendered as two lines; safe to read from another thread.

    Args:
        sent: Returns the number of frames sent.
    """

    def __init__(self, sent: Callable[[], int]) -> None:
        self._sent = sent
        self._lock = threading.Lock()
        self._latencies_ms: collections.deque[float] = collections.deque(maxlen=LATENCIES)
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.labels: collections.Counter[str] = collections.Counter()
        self.caption = ""

    def add(self, outcome: str, label: str, caption: str, latency_ms: float) -> None:
        """Count a frame; `label`, `caption` and `latency_ms` are used only if it was answered."""
        with self._lock:
            self.outcomes[outcome] += 1
            if outcome == "answered":
                self.labels[label] += 1
                self.caption = caption
                self._latencies_ms.append(latency_ms)

    def latencies(self) -> str:
        """Return median and 99th percentile as text."""
        with self._lock:
            latencies_ms = list(self._latencies_ms)
        if not latencies_ms:
            return "latency -"
        p50, p99 = np.percentile(latencies_ms, (50, 99))
        return f"latency p50 {p50:.1f} ms, p99 {p99:.1f} ms"

    def counts(self) -> str:
        """Return the number of frames by outcome as text."""
        outcomes = ", ".join(
            f"{self.outcomes[outcome]} {outcome}" for outcome in ("answered", "dropped", "failed")
        )
        return f"{self._sent()} frames sent, {outcomes}"

    def summary(self) -> list[str]:
        """Return all statistics in one or two lines."""
        lines = [f"{self.counts()}; {self.latencies()}"]
        if self.labels:
            most = self.labels.most_common(5)
            more = f", {len(self.labels) - 5} others" if len(self.labels) > 5 else ""
            lines.append("labels: " + ", ".join(f"{label} {count}" for label, count in most) + more)
        return lines

    def __rich__(self) -> Text:
        lines = f"{self.counts()}\n{self.latencies()}  {self.caption}"
        return Text(lines, no_wrap=True, overflow="ellipsis")
