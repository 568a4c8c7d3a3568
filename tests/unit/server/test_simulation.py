"""The scheduler in virtual time forms the same batches as the simulation of its policy."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from resnet50_server.batching.batch import BatchPolicy
from resnet50_server.batching.scheduler import Scheduler
from resnet50_server.errors import DeadlineUnreachable
from tests.support import virtual_time
from tests.support.simulation import Device, Outcome, poisson, quantile, simulate
from tests.support.virtual_device import FakeEngine, VirtualThreads, context, image

# The figures of the `timed` engine in docs/benchmarks/results.md.
TIMED = Device(alpha_s=0.021, beta_s=0.00147, limit=32)
WITHIN_S = 13 * TIMED.batch_s(1)
GPU = Device(
    alpha_s=0.0005,
    beta_s=0.000075,
    limit=128,
    prepare_alpha_s=0.0001,
    prepare_beta_s=0.00002,
    ahead="prepared",
)
COUNT = 3000


async def play(device: Device, arrivals: list[float], within_s: list[float] | None) -> Outcome:
    """Give the scheduler the requests of the simulation."""
    engine = FakeEngine(
        device.alpha_s, device.beta_s, device.prepare_alpha_s, device.prepare_beta_s
    )
    policy = BatchPolicy(max_batch_size=device.limit, max_queue_size=10**6)
    scheduler = Scheduler(policy, VirtualThreads(), prefetch=int(device.ahead != "never"))
    sizes = (1, device.limit)
    queue = scheduler.add("v", engine, [(size, device.batch_s(size)) for size in sizes])
    for size in sizes:
        queue.preparation.observe(size, device.prepare_s(size))
    loop = asyncio.get_running_loop()
    queue.measured_at = loop.time()
    outcome = Outcome()
    left = len(arrivals)
    over = asyncio.Event()

    def done(number: int, future: asyncio.Future) -> None:
        nonlocal left
        left -= 1
        if future.exception() is None:
            outcome.latency_s[number] = loop.time() - arrivals[number]
            outcome.end = loop.time()
        else:
            assert isinstance(future.exception(), DeadlineUnreachable)
            outcome.shed.append(number)
        if not left:
            over.set()

    def arrive(number: int) -> None:
        nonlocal left
        if number + 1 < len(arrivals):
            loop.call_at(arrivals[number + 1], arrive, number + 1)
        deadline = None if within_s is None else arrivals[number] + within_s[number]
        try:
            future = scheduler.submit(
                queue,
                image(0),
                top_k=1,
                with_embedding=False,
                context=context(deadline=deadline),
            )
        except DeadlineUnreachable:
            outcome.refused.append(number)
            left -= 1
        else:
            future.add_done_callback(lambda future: done(number, future))

    loop.call_at(arrivals[0], arrive, 0)
    await over.wait()
    outcome.sizes = [len(batch) for batch in engine.batches]
    return outcome


def compare(device: Device, arrivals: list[float], within_s: list[float] | None = None) -> Outcome:
    """Play both; return what both found."""
    simulated = simulate(device, arrivals, within_s)
    served = virtual_time.run(play(device, arrivals, within_s))
    assert served.sizes == simulated.sizes
    assert served.refused == simulated.refused
    assert sorted(served.shed) == sorted(simulated.shed)
    assert served.latency_s == pytest.approx(simulated.latency_s, abs=1e-6)
    return simulated


@pytest.mark.parametrize("load", [0.05, 0.5, 0.8, 0.95])
def test_scheduler_forms_the_simulated_batches(load):
    arrivals = poisson(load * TIMED.capacity, COUNT, seed=1)
    outcome = compare(TIMED, arrivals)
    assert len(outcome.latency_s) == COUNT
    # The simulation itself is held against the rule of thumb for take-all batching: a cycle lasts
    # alpha / (1 - load * beta), and the 99th percentile is about 2.1 to 2.5 of them.
    cycle_s = TIMED.alpha_s / (1 - load * TIMED.capacity * TIMED.beta_s)
    assert 1.8 * cycle_s < quantile(outcome.latency_s.values(), 0.99) < 2.8 * cycle_s


def test_overloaded_scheduler_answers_at_capacity():
    arrivals = poisson(1.3 * TIMED.capacity, COUNT, seed=1)
    outcome = compare(TIMED, arrivals, [WITHIN_S] * COUNT)
    assert max(outcome.latency_s.values()) <= WITHIN_S + 1e-6
    assert len(outcome.latency_s) / outcome.end > 0.97 * TIMED.capacity
    assert outcome.shed == []
    assert len(outcome.refused) + len(outcome.latency_s) == COUNT


@pytest.mark.parametrize(
    ("device", "shortest_s", "longest_s"),
    [
        (Device(0.0021, 0.000147, 64), 0.015, 0.045),  # a V100
        (Device(0.020, 0.060, 8), 0.250, 0.750),  # a CPU: more images hardly share anything
    ],
)
def test_mixed_deadlines_match_the_simulation(device, shortest_s, longest_s):
    arrivals = poisson(1.3 * device.capacity, COUNT, seed=1)
    drawn = poisson(1.0, COUNT, seed=2)
    within_s = [shortest_s + (longest_s - shortest_s) * (moment % 1.0) for moment in drawn]
    outcome = compare(device, arrivals, within_s)
    assert len(outcome.refused) > len(outcome.shed)
    for number, latency_s in outcome.latency_s.items():
        assert latency_s <= within_s[number] + 1e-5


@pytest.mark.parametrize("load", [0.05, 0.5, 0.8, 0.95])
def test_prefetched_batches_match_the_simulation(load):
    arrivals = poisson(load * GPU.capacity, COUNT, seed=1)
    outcome = compare(GPU, arrivals)
    waits = simulate(replace(GPU, ahead="never"), arrivals)
    p99 = quantile(outcome.latency_s.values(), 0.99)
    assert p99 < quantile(waits.latency_s.values(), 0.99)


def test_prefetching_reaches_compute_capacity():
    arrivals = poisson(1.5 * GPU.capacity, COUNT, seed=1)
    outcome = compare(GPU, arrivals)
    assert COUNT / outcome.end > 0.97 * GPU.capacity


def test_overloaded_prefetching_answers_at_compute_capacity():
    arrivals = poisson(1.3 * GPU.capacity, COUNT, seed=1)
    outcome = compare(GPU, arrivals, [0.050] * COUNT)
    assert max(outcome.latency_s.values()) <= 0.050 + 1e-6
    assert len(outcome.latency_s) / outcome.end > 0.95 * GPU.capacity
    assert len(outcome.refused) > 10 * len(outcome.shed)
