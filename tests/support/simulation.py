"""A discrete-event simulation of the batching policy, without asyncio.

Written from the policy's description (docs/adr/0004-deadline-aware-batching.md and
0011-batch-prefetching.md), not from the scheduler's code. `unit/server/test_simulation.py` compares
the scheduler with it, `benchmarks/batching.py` the server. One variant on one device; every batch
lasts exactly as predicted.
"""

from __future__ import annotations

import bisect
import functools
import math
import random
from dataclasses import dataclass, field

TICK_S = 1e-6


@dataclass(frozen=True)
class Device:
    """Seconds that a batch of b images takes: alpha_s + beta_s * b, once it has been prepared.

    Attributes:
        prepare_alpha_s, prepare_beta_s: The same for its preparation, beside the device.
        limit: Images in a batch, at most.
        ahead: When a batch is prepared while another is computed: "never", once a "full" one waits,
            so early that it is "prepared" in time (or full), or "always".
    """

    alpha_s: float
    beta_s: float
    limit: int
    prepare_alpha_s: float = 0.0
    prepare_beta_s: float = 0.0
    ahead: str = "never"

    @functools.cache  # noqa: B019
    def size(self, within_s: float) -> int:
        """Return how many images a batch holds for requests that may take so long in all.

        The most that take a quarter of it, but for those that compute less than 96% as many images
        a second as full batches.
        """
        efficient = [
            size
            for size in range(1, self.limit + 1)
            if size / self.batch_s(size) >= 0.96 * self.capacity - TICK_S
        ]
        fitting = [
            size for size in range(1, self.limit + 1) if self.batch_s(size) <= within_s / 4 + TICK_S
        ]
        return max(efficient[:1] + fitting[-1:])

    @property
    def capacity(self) -> float:
        """Images a second in full batches."""
        return self.limit / self.batch_s(self.limit)

    def batch_s(self, images: int) -> float:
        return self.alpha_s + self.beta_s * images

    def prepare_s(self, images: int) -> float:
        return self.prepare_alpha_s + self.prepare_beta_s * images


@dataclass
class Outcome:
    """The outcomes of the requests, by their number.

    Attributes:
        latency_s: Latencies of answered requests.
        refused: Requests refused on arrival.
        shed: Requests refused later.
        sizes: Sizes of the batches, in order.
        end: When the last batch ended.
    """

    latency_s: dict[int, float] = field(default_factory=dict)
    refused: list[int] = field(default_factory=list)
    shed: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    end: float = 0.0


def poisson(rate: float, count: int, seed: int) -> list[float]:
    """Return the times of `count` arrivals at `rate` a second."""
    draw, now, times = random.Random(seed), 0.0, []
    for _ in range(count):
        now += draw.expovariate(rate)
        times.append(now)
    return times


def quantile(values, q: float) -> float:
    """Return the smallest value that at least a share `q` of the values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]


def simulate(device: Device, arrivals: list[float], within_s: list[float] | None = None) -> Outcome:
    """Play requests against the policy.

    Args:
        device: The simulated device.
        arrivals: When requests come, rising.
        within_s: How long each may take; None for no deadlines.
    """
    outcome = Outcome()
    line: list[tuple[float, int]] = []  # (deadline, number) of those that wait
    ends: list[float] = []  # of batches that were handed over
    coming = 0
    now = 0.0

    def free_at() -> float:
        return max([now, *ends])

    def finish(images: int, ready: float, free: float) -> float:
        return max(ready + device.prepare_s(images), free) + device.batch_s(images)

    def limit_now(within: float = math.inf) -> int:
        return device.size(min([within, *(due - arrivals[number] for due, number in line[:1])]))

    def acceptable(deadline: float) -> bool:
        limit = limit_now(deadline - now)
        full = device.batch_s(limit)
        if device.ahead == "never":
            full += device.prepare_s(limit)
        position = bisect.bisect_right(line, (deadline, len(arrivals)))
        batch, place = divmod(position, limit)
        images = limit if batch or len(line) >= limit else place + 1
        starts = free_at() + batch * full
        ready = starts if device.ahead == "never" else now
        if finish(images, ready, starts) > deadline + TICK_S:
            return False
        moved = line[(batch + 1) * limit - 1 :: limit]
        return all(
            free_at() + (batch + 2 + later) * full <= due + TICK_S
            for later, (due, _) in enumerate(moved)
        )

    def start_of_next() -> float:
        """Return when the next batch is handed over if nothing more comes."""
        if not ends:
            return now
        if device.ahead == "never":
            return ends[-1]
        soonest = ends[0] if len(ends) > 1 else now  # one at most is handed over ahead
        if device.ahead == "always" or len(line) >= limit_now():
            return soonest
        if device.ahead == "full":
            return ends[-1]
        return max(soonest, ends[-1] - device.prepare_s(len(line)))

    def hand_over() -> None:
        batch = [line.pop(0) for _ in range(min(limit_now(), len(line)))]
        while batch:
            deadline = batch[0][0] + TICK_S
            if finish(len(batch), now, free_at()) <= deadline:
                break
            # Behind: give up who would be late. Else close the batch early.
            fitting = 0
            if not line:
                fitting = sum(
                    finish(size, now, free_at()) <= deadline for size in range(1, len(batch))
                )
            if fitting:
                line[:0] = batch[fitting:]
                del batch[fitting:]
                break
            outcome.shed.append(batch.pop(0)[1])
            if line:
                batch.append(line.pop(0))
        if not batch:
            return
        end = finish(len(batch), now, free_at())
        ends.append(end)
        outcome.sizes.append(len(batch))
        outcome.end = end
        for _, number in batch:
            outcome.latency_s[number] = end - arrivals[number]

    while coming < len(arrivals) or line:
        start = start_of_next() if line else math.inf
        if coming < len(arrivals) and arrivals[coming] <= start:
            now = arrivals[coming]
            ends[:] = [end for end in ends if end > now]
            deadline = math.inf if within_s is None else now + within_s[coming]
            if within_s is None or acceptable(deadline):
                bisect.insort(line, (deadline, coming))
            else:
                outcome.refused.append(coming)
            coming += 1
            continue
        now = start
        ends[:] = [end for end in ends if end > now + TICK_S * 1e-3]
        hand_over()
    return outcome
