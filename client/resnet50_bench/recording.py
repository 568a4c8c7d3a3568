"""Everything recorded of one run by one process, and the results of all its processes."""

from __future__ import annotations

import itertools
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .calls import DROPPED, OK
from .plan import Plan
from .resource_usage import ServerUsage
from .run import GeneratorUsage, Run
from .statistics import Summary, curve, histogram, summary

# Above this, the load generator may be the bottleneck: its bursts need the rest of a core.
BUSY_SHARE = 0.8
# Maximum fraction of the p99 latency that the load generator may cause.
LATE_SHARE = 0.2
LATE_MS = 1.0


@dataclass(frozen=True)
class Recording:
    """Outcomes of one process's calls; can be pickled.

    Attributes:
        duration_s: Measured time in seconds.
        interrupted: True if the run was stopped early.
        calls: Calls whose intended time is within the measured time.
        answered: Responses received within the measured time.
        on_time: Those of them that were received before their deadlines.
        good: Number of `calls` that completed within their deadlines.
        codes: Outcomes of `calls` by code.
        batch_sizes: Responses by batch size.
        latency_ms: From a call's intended time to its response, of each successful call, as the
            next four.
        decode_ms: The server's time for decoding.
        queue_ms: The server's time in the queue.
        compute_ms: The server's time for computation.
        total_ms: The server's time in all.
        late_ms: Delay of each call of an open loop by the load generator.
        loop_lag_ms: Lag of the load generator's event loop.
        cpu_share: CPU time of the load generator ÷ wall time.
    """

    duration_s: float
    interrupted: bool
    calls: int
    answered: int
    on_time: int
    good: int
    codes: Counter[str]
    batch_sizes: Counter[int]
    latency_ms: array[float]
    decode_ms: array[float]
    queue_ms: array[float]
    compute_ms: array[float]
    total_ms: array[float]
    late_ms: array[float]
    loop_lag_ms: array[float]
    cpu_share: float

    def per_s(self, count: int) -> float:
        """Return a number as a rate over the measured time."""
        return count / self.duration_s if self.duration_s else 0.0


def throughput_per_s(recordings: Iterable[Recording]) -> float:
    """Return the responses per second of all processes together."""
    return sum(one.per_s(one.answered) for one in recordings)


def run_of(plan: Plan, recordings: Sequence[Recording], server: ServerUsage | None) -> Run:
    """Return the results of a run from the recordings of all its processes.

    Args:
        plan: The benchmark.
        recordings: One of each process. Numbers are concatenated, rates are added.
        server: Resource usage of the server, if measured.
    """
    codes: Counter[str] = sum((one.codes for one in recordings), Counter())
    sizes: Counter[int] = sum((one.batch_sizes for one in recordings), Counter())
    calls = sum(one.calls for one in recordings)
    good = sum(one.good for one in recordings)
    cpu_shares = [one.cpu_share for one in recordings]
    latencies = _joined(one.latency_ms for one in recordings)
    totals = _joined(one.total_ms for one in recordings)
    outside = [max(0.0, latency - total) for latency, total in zip(latencies, totals, strict=True)]
    generator = GeneratorUsage(
        cpu_share=sum(cpu_shares),
        loop_lag_ms=summary(_joined(one.loop_lag_ms for one in recordings)),
        late_ms=summary(_joined(one.late_ms for one in recordings)),
        busiest_share=max(cpu_shares) if len(cpu_shares) > 1 else None,
    )
    latency_ms = summary(latencies)
    batches = sum(count / max(1, size) for size, count in sizes.items())
    return Run(
        load=plan.load,
        duration_s=max(one.duration_s for one in recordings),
        interrupted=any(one.interrupted for one in recordings),
        calls=calls,
        offered_per_s=sum(one.per_s(one.calls) for one in recordings),
        throughput_per_s=throughput_per_s(recordings),
        goodput_per_s=sum(one.per_s(one.on_time) for one in recordings),
        good_share=good / calls if calls else 0.0,
        errors={code: n for code, n in sorted(codes.items()) if code not in (OK, DROPPED)},
        dropped=codes[DROPPED],
        latency_ms=latency_ms,
        latency_curve=curve(latencies),
        latency_histogram=histogram(latencies),
        stages_ms={
            "decode": summary(_joined(one.decode_ms for one in recordings)),
            "queue": summary(_joined(one.queue_ms for one in recordings)),
            "compute": summary(_joined(one.compute_ms for one in recordings)),
            "server": summary(totals),
            "outside": summary(outside),
        },
        batch_sizes=dict(sorted(sizes.items())),
        mean_batch_size=len(latencies) / batches if batches else None,
        generator=generator,
        server=server,
        warnings=measurement_warnings(generator, latency_ms),
    )


def measurement_warnings(generator: GeneratorUsage, latency_ms: Summary) -> list[str]:
    """Return warnings if the load generator may be the bottleneck."""
    found = []
    several = generator.busiest_share is not None
    busiest = generator.cpu_share if generator.busiest_share is None else generator.busiest_share
    if busiest > BUSY_SHARE:
        subject = "the busiest process of the load generator" if several else "the load generator"
        found.append(
            f"{subject} used {busiest:.0%} of a core and may be the bottleneck: raise --processes,"
            " or generate the load on another machine"
        )
    for name, late in (
        ("calls were made", generator.late_ms.p99),
        ("the load generator's event loop was", generator.loop_lag_ms.p99),
    ):
        if late is None or latency_ms.p99 is None or late < LATE_MS:
            continue
        if late > LATE_SHARE * latency_ms.p99:
            found.append(
                f"{name} {late:.1f} ms late at p99, a large part of the p99 latency of"
                f" {latency_ms.p99:.1f} ms: give the load generator a core of its own"
            )
    return found


def _joined(arrays: Iterable[array[float]]) -> array[float]:
    return array("f", itertools.chain.from_iterable(arrays))
