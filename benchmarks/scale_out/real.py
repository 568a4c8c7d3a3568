"""The same load on servers of the timed engine on this machine, against the simulation."""

from __future__ import annotations

import asyncio
import contextlib
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.process import server
from benchmarks.scale_out.costs import Costs
from benchmarks.scale_out.scenarios import LEAD_S, LOAD, capacity, saturated, steady
from resnet50_client import AsyncClient
from tests.support.pictures import encode, photo_like
from tests.support.simulation import poisson, quantile

PICTURE = encode(photo_like(32, 32), "JPEG")
COUNTS = (1, 2, 4)
# Callers of a closed loop for each server: two batches of the largest size.
CALLERS = 20
SERIAL_CALLS = 40


@dataclass(frozen=True)
class Compared:
    """Measured and simulated figures of a number of servers.

    Attributes:
        servers: Number of servers.
        closed: Answers/s of a closed loop.
        closed_simulated: The same in the simulation.
        p50_ms: Median latency at 80% of the capacity.
        p50_simulated_ms: The same in the simulation.
        p99_ms: 99th percentile of the latency.
        p99_simulated_ms: The same in the simulation.
        failed: Calls that failed.
    """

    servers: int
    closed: float
    closed_simulated: float
    p50_ms: float
    p50_simulated_ms: float
    p99_ms: float
    p99_simulated_ms: float
    failed: int


def compare(costs: Costs, seconds: float) -> Iterator[Compared]:
    """Measure and simulate 1, 2 and 4 servers.

    Args:
        costs: Measured values; the servers take the device's times, and the rest of a call is
            measured again, since these calls are not those of the results.
        seconds: Duration of each load.
    """
    for count in COUNTS:
        with contextlib.ExitStack() as stack:
            addresses = [stack.enter_context(server(*_options(costs)))[0] for _ in range(count)]
            around_s, closed, took, failed = asyncio.run(_measure(addresses, costs, seconds))
        same = replace(costs, around_s=around_s)
        simulated = steady(same, "round robin by each client", count, clients=1)
        yield Compared(
            count,
            closed,
            saturated(same, count, CALLERS),
            quantile(took, 0.5) * 1e3,
            simulated.p50_ms,
            quantile(took, 0.99) * 1e3,
            simulated.p99_ms,
            failed,
        )


def _options(costs: Costs) -> tuple[str, ...]:
    return (
        *("--engine", "timed", "--max-batch-size", str(costs.device.limit)),
        *("--timed-alpha-ms", f"{costs.device.alpha_s * 1e3}"),
        *("--timed-beta-ms", f"{costs.device.beta_s * 1e3}"),
    )


async def _measure(
    addresses: list[str], costs: Costs, seconds: float
) -> tuple[float, float, list[float], int]:
    """Return the rest of a call, answers/s of a closed loop, latencies at 80%, and failed calls."""
    async with AsyncClient(addresses) as client:
        serial = [await _call(client, 60.0) for _ in range(SERIAL_CALLS)]
        around_s = statistics.median(serial) - costs.device.batch_s(1)
        closed = await _closed(client, CALLERS * len(addresses), seconds)
        rate = LOAD * len(addresses) * capacity(costs)
        times = poisson(rate, int(rate * seconds), seed=random.Random(len(addresses)).randrange(99))
        began = time.monotonic()
        results: list[Any] = await asyncio.gather(
            *(_at(client, began + at) for at in times), return_exceptions=True
        )
    late = [one for at, one in zip(times, results, strict=True) if at >= LEAD_S]
    took = [one for one in late if isinstance(one, float)]
    return around_s, closed, took, len(late) - len(took)


async def _call(client: AsyncClient, timeout_s: float) -> float:
    began = time.monotonic()
    await client.classify(PICTURE, timeout_s=timeout_s)
    return time.monotonic() - began


async def _at(client: AsyncClient, due: float) -> float:
    """Make a call at a time; return its latency from then on."""
    await asyncio.sleep(max(0.0, due - time.monotonic()))
    await client.classify(PICTURE, timeout_s=1.0)
    return time.monotonic() - due


async def _closed(client: AsyncClient, callers: int, seconds: float) -> float:
    """Return the answers/s of callers that make their next call when the last one has ended."""
    ends = time.monotonic() + seconds
    done = 0

    async def caller() -> None:
        nonlocal done
        while (now := time.monotonic()) < ends:
            await _call(client, 60.0)
            done += now >= ends - seconds + LEAD_S and time.monotonic() < ends

    await asyncio.gather(*(caller() for _ in range(callers)))
    return done / (seconds - LEAD_S)
