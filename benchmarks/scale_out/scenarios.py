"""Scenarios of the simulation, and their figures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.scale_out.cluster import (
    Choice,
    Cluster,
    Record,
    fewer_of_two,
    least_of_all,
    round_robin,
)
from benchmarks.scale_out.costs import Costs
from tests.support.simulation import quantile

POLICIES: dict[str, Choice] = {
    "round robin by each client": round_robin,
    "fewer calls of two": fewer_of_two,
    "fewest calls of all": least_of_all,
}
SIZES = (1, 2, 4, 10, 30, 100, 300, 1000)
CLIENTS = 32
LOAD, CALLS, LEAST_S, LEAD_S = 0.8, 15_000, 6.0, 2.0
AGES_S = (math.inf, 120.0, 30.0)


@dataclass(frozen=True)
class Steady:
    """Figures of a number of replicas under a steady load.

    Attributes:
        policy: How calls find their replica.
        replicas: Number of replicas.
        clients: Number of clients.
        offered: Calls/s.
        answered: Answers/s.
        p50_ms: Median latency.
        p99_ms: 99th percentile of the latency.
        refused: Share of calls, 0 to 1.
    """

    policy: str
    replicas: int
    clients: int
    offered: float
    answered: float
    p50_ms: float
    p99_ms: float
    refused: float


def capacity(costs: Costs, deadline_s: float = 1.0) -> float:
    """Return the images/s of one replica in the largest batches of its policy."""
    limit = costs.device.size(deadline_s)
    return limit / costs.device.batch_s(limit)


def steady(
    costs: Costs, policy: str, replicas: int, clients: int = CLIENTS, load: float = LOAD
) -> Steady:
    """Simulate an open loop at a share of the capacity."""
    offered = load * replicas * capacity(costs)
    seconds = LEAD_S + max(LEAST_S, CALLS / offered)
    cluster = Cluster(costs, replicas, clients, POLICIES[policy])
    cluster.open_loop(offered)
    record = cluster.run(seconds)
    took, refused = _between(record, LEAD_S, seconds - 1.0)
    span = seconds - 1.0 - LEAD_S
    return Steady(
        policy,
        replicas,
        clients,
        offered,
        len(took) / span,
        quantile(took, 0.5) * 1e3,
        quantile(took, 0.99) * 1e3,
        refused / max(1, refused + len(took)),
    )


def saturated(costs: Costs, replicas: int, callers: int, seconds: float = 20.0) -> float:
    """Return answers/s of a closed loop with so many callers for each replica."""
    cluster = Cluster(costs, replicas, 1, round_robin, deadline_s=60.0)
    cluster.closed_loop(callers * replicas)
    took, _ = _between(cluster.run(seconds), LEAD_S, seconds - LEAD_S)
    return len(took) / (seconds - 2 * LEAD_S)


@dataclass(frozen=True)
class Moment:
    """Figures of five seconds.

    Attributes:
        at_s: Their end, from the change.
        share: Answers of the newest replica, as part of an equal share.
        p99_ms: 99th percentile of the latency; None without answers.
        refused: Share of calls, 0 to 1.
    """

    at_s: float
    share: float
    p99_ms: float | None
    refused: float


STEP_S = 5.0


def scale_up(costs: Costs, age_s: float, load: float = 1.0, until_s: float = 240.0) -> list[Moment]:
    """Add a fifth replica to four whose capacity the load equals; return what follows."""
    cluster = Cluster(costs, 4, CLIENTS, round_robin, age_s=age_s)
    cluster.open_loop(load * 4 * capacity(costs))
    before = 30.0
    cluster.at(before, cluster.add)
    record = cluster.run(before + until_s)
    return list(_moments(record, before, until_s, lambda _: (4, 5)))


def rolling_update(
    costs: Costs, age_s: float, replicas: int = 10, load: float = 0.7, until_s: float = 240.0
) -> list[Moment]:
    """Replace replicas one by one: the new one is ready, then an old one stops."""
    cluster = Cluster(costs, replicas, CLIENTS, round_robin, age_s=age_s)
    cluster.open_loop(load * replicas * capacity(costs))
    before, newest = 30.0, [replicas - 1]

    def replace(number: int) -> None:
        newest.append(cluster.add().number)
        cluster.remove(cluster.replicas[number])

    step_s = costs.start_s + costs.pre_stop_s
    ready = [before + costs.start_s + number * step_s for number in range(replicas)]
    for number, time in enumerate(ready):
        cluster.at(time, replace, number)
    record = cluster.run(before + until_s)

    def current(time: float) -> tuple[int, int]:
        done = sum(one <= time for one in ready)
        return replicas - 1 + done, replicas

    return list(_moments(record, before, until_s, current))


def share_after(moments: list[Moment], enough: float = 0.8) -> float | None:
    """Return when the newest replica first had such a part of an equal share; None for never."""
    return next((one.at_s for one in moments if one.at_s > 0 and one.share >= enough), None)


def mean_share(moments: list[Moment], within_s: float = 120.0) -> float:
    """Return the mean share of the newest replica, as part of an equal share."""
    shares = [one.share for one in moments if 0 < one.at_s <= within_s]
    return sum(shares) / len(shares)


def refused_in_all(moments: list[Moment]) -> float:
    """Return the mean share of refused calls after the change, 0 to 1."""
    after = [one.refused for one in moments if one.at_s > 0]
    return sum(after) / len(after)


def worst_ms(moments: list[Moment]) -> float:
    """Return the highest p99 after the change, in ms."""
    return max(one.p99_ms for one in moments if one.at_s > 0 and one.p99_ms is not None)


def _between(record: Record, since: float, until: float) -> tuple[list[float], int]:
    """Return latencies of answered calls, and the number of refused ones."""
    took, refused = [], 0
    for sent, one in zip(record.sent, record.took_s, strict=True):
        if since <= sent < until:
            if math.isnan(one):
                refused += 1
            else:
                took.append(one)
    return took, refused


def _moments(record: Record, before: float, until_s: float, newest_of: object) -> Iterator[Moment]:
    """Give the figures of each step.

    Args:
        record: The calls.
        before: Time of the change.
        until_s: Time of the end, from the change.
        newest_of: Returns the number of the newest replica, and how many there are, at a time.
    """
    steps: dict[int, list[tuple[float, int]]] = {}
    for sent, took, replica in zip(record.sent, record.took_s, record.replica, strict=True):
        steps.setdefault(math.floor((sent - before) / STEP_S), []).append((took, replica))
    for step in sorted(steps):
        if not -4 <= step < until_s / STEP_S - 1:
            continue
        calls = steps[step]
        newest, count = newest_of(before + step * STEP_S)  # type: ignore[operator]
        answered = [took for took, _ in calls if not math.isnan(took)]
        yield Moment(
            (step + 1) * STEP_S,
            count * sum(replica == newest for _, replica in calls) / len(calls),
            quantile(answered, 0.99) * 1e3 if answered else None,
            1 - len(answered) / len(calls),
        )
