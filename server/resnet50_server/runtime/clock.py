"""Timeouts that do not count the time in which the whole process was stopped.

A process that gets SIGSTOP, or whose machine is suspended, must not declare its work hung when it
continues. So time is counted in polls: one that is late counts as two at most.
"""

from __future__ import annotations

POLLS_PER_TIMEOUT = 10
MAX_POLL_INTERVAL_S = 1.0


def poll_interval_s(timeout_s: float) -> float:
    """Return the time between two polls of something that may take `timeout_s`, in seconds."""
    return min(MAX_POLL_INTERVAL_S, timeout_s / POLLS_PER_TIMEOUT)


def counted_s(elapsed_s: float, interval_s: float) -> float:
    """Return how much of the time since the last poll counts, in seconds."""
    return min(elapsed_s, 2 * interval_s)
