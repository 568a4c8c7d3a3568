"""Sweep: measure the capacity with closed loops, then run loads at fractions of it."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from .plan import Load, Plan
from .run import Run

DEFAULT_STEPS = 7
_RANGE = re.compile(r"(\d+(?:\.\d+)?)%?\.\.(\d+(?:\.\d+)?)%?(?:x(\d+))?")
# Minimum gain of throughput by doubling the concurrency; two doublings below it end the search.
GAIN = 1.05
MOST_CONCURRENCY = 1024
# Duration of a probe as a fraction of a run's.
PROBE_SHARE = 0.4

Measure = Callable[[Plan], Run]


def shares(text: str) -> list[float]:
    """Parse "10%..130%" or, with the number of steps, "10%..130%x7" to increasing fractions.

    Raises:
        ValueError: The text is neither.
    """
    match = _RANGE.fullmatch(text.replace(" ", ""))
    if match is None:
        raise ValueError(f"sweep: {text!r} is not a range such as 10%..130% or 10%..130%x7")
    low, high = float(match[1]) / 100, float(match[2]) / 100
    steps = int(match[3]) if match[3] else DEFAULT_STEPS
    if not 0 < low < high or steps < 2:
        raise ValueError(f"sweep: {text!r} must rise from above 0%, in 2 or more steps")
    return [round(low + (high - low) * step / (steps - 1), 6) for step in range(steps)]


def probes(plan: Plan, measure: Measure, stop: threading.Event) -> Iterator[Run]:
    """Run closed loops, doubling the concurrency, until the throughput no longer grows.

    The best of several short probes is too high by chance, so a last run at its concurrency, of
    the full duration, measures the capacity.

    Args:
        plan: The benchmark; each probe but the last takes a fraction of its duration.
        measure: Runs one load.
        stop: Ends the search when set.
    """
    probe = replace(plan, duration_s=plan.duration_s * PROBE_SHARE, server_pid=None)
    best, best_load, without_gain = 0.0, plan.load, 0
    for doubling in itertools.count():
        concurrency = max(plan.streams, plan.processes) * 2**doubling
        if concurrency > MOST_CONCURRENCY or without_gain == 2 or stop.is_set():
            break
        run = measure(probe.under(Load(concurrency=concurrency)))
        yield run
        without_gain = 0 if run.throughput_per_s > best * GAIN else without_gain + 1
        if run.throughput_per_s > best:
            best, best_load = run.throughput_per_s, run.load
        if not best:
            return  # no call succeeds
        # Server and connection are warm; only the load has to settle.
        probe = replace(probe, warm_up_s=min(plan.warm_up_s, probe.duration_s / 4))
    if best and not stop.is_set():
        yield measure(replace(probe, duration_s=plan.duration_s).under(best_load))


def capacity_of(found: Sequence[Run]) -> float:
    """Return the sustained throughput in responses per second, of the last probe; 0 without."""
    return found[-1].throughput_per_s if found else 0.0


def loads(capacity_per_s: float, of: Iterable[float]) -> list[Load]:
    """Return open loops at fractions of a capacity."""
    return [Load(rate_per_s=round(capacity_per_s * share, 3), share=share) for share in of]
