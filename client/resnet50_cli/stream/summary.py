"""Summary of a stream: counts, current label, latencies."""

from __future__ import annotations

import collections
import threading
from typing import Any

import numpy as np
from rich.text import Text

from resnet50_client import FrameAnswer, Stream

# Only the newest latencies are kept, because a camera's stream is endless.
LATENCIES = 10_000
NO_CATEGORY = "no category"


class StreamSummary:
    """Counts and latencies of a stream, rendered as two lines; safe to read from another thread.

    Args:
        stream: The stream.
    """

    def __init__(self, stream: Stream[Any]) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._latencies_ms: collections.deque[float] = collections.deque(maxlen=LATENCIES)
        self._labels: collections.Counter[str] = collections.Counter()
        self._caption = ""

    @property
    def failed(self) -> int:
        """Number of frames with an error."""
        return self._stream.stats.failed

    def add(self, answer: FrameAnswer[Any], label: str | None, caption: str) -> None:
        """Add an answer; label and caption are used only if it has a result.

        Args:
            answer: The answer.
            label: Label of the top category; None if no category is probable enough.
            caption: Text of the display for this frame.
        """
        if answer.result is None:
            return
        with self._lock:
            self._labels[label or NO_CATEGORY] += 1
            self._caption = caption
            self._latencies_ms.append(answer.latency_s * 1e3)

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
        stats = self._stream.stats
        times = "once" if stats.resumes == 1 else f"{stats.resumes} times"
        resumed = f", resumed {times}" if stats.resumes else ""
        return (
            f"{stats.sent} frames sent, {stats.answered} answered, {stats.dropped} dropped,"
            f" {stats.failed} failed{resumed}"
        )

    def lines(self) -> list[str]:
        """Return everything in one or two lines."""
        lines = [f"{self.counts()}; {self.latencies()}"]
        if self._labels:
            most = self._labels.most_common(5)
            more = f", {len(self._labels) - 5} others" if len(self._labels) > 5 else ""
            lines.append("labels: " + ", ".join(f"{label} {count}" for label, count in most) + more)
        return lines

    def __rich__(self) -> Text:
        lines = f"{self.counts()}\n{self.latencies()}  {self._caption}"
        return Text(lines, no_wrap=True, overflow="ellipsis")
