"""The simulation of many replicas keeps to queueing's known results and to gRPC's behaviour."""

from __future__ import annotations

import itertools
import math

import pytest

from benchmarks.scale_out import scenarios
from benchmarks.scale_out.cluster import Cluster, round_robin
from benchmarks.scale_out.costs import Costs, measured
from tests.support.simulation import Device

COSTS = Costs(Device(alpha_s=0.01, beta_s=0.01, limit=8), around_s=0.002)


def test_costs_are_those_of_the_documentation():
    costs = measured()
    assert costs.device.batch_s(8) > costs.device.batch_s(1) > costs.around_s > 0
    assert costs.age_s > costs.grace_s > 0


def test_same_seed_gives_the_same_calls():
    figures = [scenarios.steady(COSTS, "fewer calls of two", 3) for _ in range(2)]
    assert figures[0] == figures[1]


def test_idle_replica_answers_in_the_time_of_one_image():
    light = scenarios.steady(COSTS, "round robin by each client", 4, load=0.01)
    assert light.p50_ms == pytest.approx(22)
    assert light.refused == 0


def test_overloaded_replicas_answer_their_capacity():
    full = scenarios.steady(COSTS, "round robin by each client", 2, clients=1, load=1.5)
    assert full.answered == pytest.approx(2 * scenarios.capacity(COSTS), rel=0.05)
    assert full.refused == pytest.approx(1 / 3, abs=0.05)


def test_closed_loop_grows_with_the_replicas():
    one, four = (scenarios.saturated(COSTS, count, 20) for count in (1, 4))
    assert four == pytest.approx(4 * one, rel=0.02)


def test_fewest_calls_of_all_has_the_shortest_tail():
    tails = [scenarios.steady(COSTS, policy, 10).p99_ms for policy in scenarios.POLICIES]
    assert tails == sorted(tails, reverse=True)


def test_new_replica_gets_no_call_if_connections_never_end():
    course = scenarios.scale_up(COSTS, math.inf, load=0.5, until_s=60)
    assert all(one.share == 0 for one in course)


def test_new_replica_has_its_share_within_the_age():
    course = scenarios.scale_up(COSTS, 30.0, load=0.5, until_s=60)
    after = scenarios.share_after(course)
    assert after is not None
    assert after <= 30 * 1.1 + COSTS.ttl_s
    assert course[-1].share == pytest.approx(1, abs=0.2)


def test_connections_that_end_together_cause_one_lookup():
    cluster = Cluster(COSTS, replicas=5, clients=1, choose=round_robin, age_s=0.2)
    lookups = []
    (client,) = cluster.clients
    for second in range(1, 11):
        cluster.run(float(second))
        lookups.append(client.looked_up)
    assert len(set(lookups)) == 10
    assert all(late - early >= 1 for early, late in itertools.pairwise(lookups))


def test_rolling_update_refuses_no_call():
    course = scenarios.rolling_update(COSTS, math.inf, replicas=4, load=0.5, until_s=80)
    assert scenarios.refused_in_all(course) == 0
    assert scenarios.share_after(course) is not None
