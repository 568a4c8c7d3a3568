"""Latencies before and after an overload ends: python -m benchmarks.recovery, 70 seconds.

Offers half, then three times, then half of what a server can compute, and writes the figures of
each half second into docs/benchmarks/data/recovery.json, which docs/draw/recovery.py draws. The
server runs the timed engine at 50 images/s, so that the generator keeps up on a busy machine too.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from typing import Any

import grpc

from benchmarks.batching import Call, send
from benchmarks.page import DOCS, where
from benchmarks.process import server
from tests.support.simulation import Device, poisson, quantile

DATA = DOCS / "benchmarks" / "data" / "recovery.json"
DEVICE = Device(alpha_s=0.060, beta_s=0.018, limit=32)
TIMED = (
    *("--engine", "timed", "--max-batch-size", str(DEVICE.limit)),
    *("--timed-alpha-ms", str(DEVICE.alpha_s * 1e3), "--timed-beta-ms", str(DEVICE.beta_s * 1e3)),
)
LOAD, OVERLOAD = 0.5, 3.0
QUIET_S, OVERLOAD_S = 20.0, 30.0
DEADLINE_S = 1.0
# Seconds around the end of the overload that the data covers, and its resolution.
BEFORE_S, AFTER_S, STEP_S = 10.0, 15.0, 0.5


def steps(calls: Sequence[Call], ended_s: float) -> Iterator[dict[str, float | None]]:
    """Yield the figures of each step of time around the end of an overload.

    Args:
        calls: All calls.
        ended_s: The end of the overload, in seconds from the start.

    Yields:
        `begin_s` from the end of the overload; `calls_per_s` and `failed_share` of the calls due in
        the step; p50 and p99 of the latencies of those that succeeded, in ms, None without.
    """
    for number in range(round((BEFORE_S + AFTER_S) / STEP_S)):
        begin = number * STEP_S - BEFORE_S
        due = [call for call in calls if begin <= call.due - ended_s < begin + STEP_S]
        took = [call.done * 1e3 for call in due if call.code is grpc.StatusCode.OK]
        yield {
            "begin_s": begin,
            "calls_per_s": round(len(due) / STEP_S, 1),
            "failed_share": round(1 - len(took) / len(due), 4) if due else 0.0,
            "p50_ms": round(quantile(took, 0.5), 1) if took else None,
            "p99_ms": round(quantile(took, 0.99), 1) if took else None,
        }


def measure() -> dict[str, Any]:
    """Run the load; return the content of the file."""
    arrivals: list[float] = []
    ends = []
    for number, (load, seconds) in enumerate(
        ((LOAD, QUIET_S), (OVERLOAD, OVERLOAD_S), (LOAD, QUIET_S))
    ):
        rate = load * DEVICE.capacity
        begin = arrivals[-1] if arrivals else 0.0
        arrivals += [begin + due for due in poisson(rate, int(rate * seconds), number + 1)]
        ends.append(arrivals[-1])
    with server(*TIMED) as (address, _):
        asyncio.run(send(address, poisson(20, 40, 9), None))  # the server learns its batches
        calls = asyncio.run(send(address, arrivals, DEADLINE_S))
    quiet = [call.done for call in calls if 2.0 < call.due < ends[0]]
    return {
        "run": where(),
        "capacity_per_s": round(DEVICE.capacity, 1),
        "load": LOAD,
        "overload": OVERLOAD,
        "deadline_s": DEADLINE_S,
        "quiet_p99_ms": round(quantile(quiet, 0.99) * 1e3, 1),
        "steps": list(steps(calls, ends[1])),
    }


def main() -> None:
    """Measure, and write the file."""
    content = measure()
    DATA.parent.mkdir(exist_ok=True)
    DATA.write_text(json.dumps(content, indent=1) + "\n")
    print(f"wrote {DATA}: p99 before the overload {content['quiet_p99_ms']} ms")


if __name__ == "__main__":
    main()
