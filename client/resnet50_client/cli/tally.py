"""What is known of a stream while it runs: counts, the label of now, latencies."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable

import numpy as np
from rich.text import Text

# Latencies are of the newest frames: a camera's stream has no end.
LATENCIES = 10_000


class Tally:
    """Counts of a stream, shown as two lines; may be read from another thread.

    Args:
        sent: Returns how many frames were sent.
    """

    def __init__(self, sent: Callable[[], int]) -> None:
        self._sent = sent
        self._lock = threading.Lock()
        self._latencies_ms: collections.deque[float] = collections.deque(maxlen=LATENCIES)
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.labels: collections.Counter[str] = collections.Counter()
        self.caption = ""

    def add(self, outcome: str, label: str, caption: str, latency_ms: float) -> None:
        """Count a frame; `label`, `caption` and `latency_ms` count if it was answered."""
        with self._lock:
            self.outcomes[outcome] += 1
            if outcome == "answered":
                self.labels[label] += 1
                self.caption = caption
                self._latencies_ms.append(latency_ms)

    def latencies(self) -> str:
        """Return median and 99th percentile in words."""
        with self._lock:
            known = list(self._latencies_ms)
        if not known:
            return "latency -"
        half, most = np.percentile(known, (50, 99))
        return f"latency p50 {half:.1f} ms, p99 {most:.1f} ms"

    def counts(self) -> str:
        """Return how many frames had which outcome, in words."""
        outcomes = ", ".join(
            f"{self.outcomes[one]} {one}" for one in ("answered", "dropped", "failed")
        )
        return f"{self._sent()} frames sent, {outcomes}"

    def summary(self) -> list[str]:
        """Return all of it in one or two lines."""
        lines = [f"{self.counts()}; {self.latencies()}"]
        if self.labels:
            most = self.labels.most_common(5)
            more = f", {len(self.labels) - 5} others" if len(self.labels) > 5 else ""
            lines.append("labels: " + ", ".join(f"{one} {count}" for one, count in most) + more)
        return lines

    def __rich__(self) -> Text:
        lines = f"{self.counts()}\n{self.latencies()}  {self.caption}"
        return Text(lines, no_wrap=True, overflow="ellipsis")
