from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from resnet50_bench.plan import Load, Plan
from resnet50_bench.sweep import capacity_of, loads, probes, shares
from tests.support.bench_runs import a_run


def test_range_gives_rising_shares():
    assert shares("10%..130%") == [0.1, 0.3, 0.5, 0.7, 0.9, 1.1, 1.3]
    assert shares("50%..100%x3") == [0.5, 0.75, 1.0]
    assert shares("20 .. 80 x2") == [0.2, 0.8]


@pytest.mark.parametrize(
    "wrong", ["", "10%", "130%..10%", "0%..50%", "10%..130%x1", "a..b", "1..2,3"]
)
def test_ranges_that_are_none_are_refused(wrong):
    with pytest.raises(ValueError, match="sweep"):
        shares(wrong)


class FakeServer:
    """Answers up to `most` calls a second; a call takes 10 ms."""

    def __init__(self, most: float) -> None:
        self.most = most
        self.plans: list[Plan] = []

    def __call__(self, plan: Plan):
        self.plans.append(plan)
        return a_run(load=plan.load, throughput_per_s=min(self.most, plan.load.concurrency / 0.01))


PLAN = Plan(load=Load(concurrency=1), duration_s=10.0, warm_up_s=2.0, server_pid=1)


def test_capacity_is_where_more_calls_add_no_answers():
    server = FakeServer(most=700)
    found = list(probes(PLAN, server, threading.Event()))
    assert [run.load.concurrency for run in found] == [1, 2, 4, 8, 16, 32, 8]
    assert capacity_of(found) == 700
    assert loads(700, [0.5, 1.3]) == [
        Load(rate_per_s=350.0, share=0.5),
        Load(rate_per_s=910.0, share=1.3),
    ]


def test_capacity_is_sustained_not_the_best_short_probe():
    server = FakeServer(most=700)

    def measure(plan: Plan):
        run = server(plan)
        lucky = plan.duration_s < PLAN.duration_s and plan.load.concurrency == 16
        return replace(run, throughput_per_s=800.0) if lucky else run

    found = list(probes(PLAN, measure, threading.Event()))
    assert max(run.throughput_per_s for run in found) == 800
    assert found[-1].load.concurrency == 16
    assert capacity_of(found) == 700


def test_probes_but_the_last_are_shorter_than_the_loads():
    server = FakeServer(most=700)
    list(probes(PLAN, server, threading.Event()))
    assert all(plan.duration_s < PLAN.duration_s for plan in server.plans[:-1])
    assert server.plans[-1].duration_s == PLAN.duration_s
    assert server.plans[0].warm_up_s == PLAN.warm_up_s > server.plans[1].warm_up_s


def test_search_ends_when_nothing_is_answered_or_it_is_stopped():
    assert len(list(probes(PLAN, FakeServer(most=0), threading.Event()))) == 1
    stopped = threading.Event()
    stopped.set()
    assert list(probes(PLAN, FakeServer(most=700), stopped)) == []


def test_every_stream_has_a_frame_under_way():
    server = FakeServer(most=700)
    plan = Plan(load=Load(concurrency=1), shape="stream", streams=8)
    list(probes(plan, server, threading.Event()))
    assert server.plans[0].load.concurrency == 8
