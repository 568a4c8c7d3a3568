"""Deadlines that the scheduler checks on arrival and keeps, in virtual time."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress

import pytest

from resnet50_server.batching.batch import BatchPolicy
from resnet50_server.batching.queue import REMEASURE_AFTER_S
from resnet50_server.batching.result import Result
from resnet50_server.errors import (
    DeadlineUnreachable,
    QueueFull,
    Unloading,
)
from tests.support.scheduler_bench import Bench
from tests.support.virtual_device import FakeEngine
from tests.support.virtual_time import in_virtual_time, run


@in_virtual_time
async def test_accept_refuses_what_submit_would_and_nothing_else():
    bench = Bench()
    await bench.submit(0)
    first = bench.submit(1)
    await asyncio.sleep(0)
    with pytest.raises(DeadlineUnreachable) as refused, bench.accept(within=1.5):
        raise AssertionError
    assert not refused.value.accepted
    with pytest.raises(DeadlineUnreachable):
        bench.submit(2, within=1.5)
    with bench.accept(within=2.5), bench.accept():
        assert bench.queue.accepted == 2
    bench.submit(2, within=2.5)
    assert bench.queue.accepted == len(bench.queue.waiting) == 1
    await first


@in_virtual_time
async def test_images_in_decoding_count_for_later_deadlines():
    bench = Bench(BatchPolicy(max_batch_size=1))
    await bench.submit(0)
    with bench.accept(within=2.5), bench.accept(within=2.5):
        # Behind both, the device would come to it after 2 s.
        with pytest.raises(DeadlineUnreachable):
            bench.submit(3, within=2.6)
        with bench.accept(within=3.5):
            pass
        # Before both, it would make the second one late.
        with pytest.raises(DeadlineUnreachable, match="behind it were accepted"):
            bench.submit(3, within=1.5)
    await bench.submit(3, within=2.6)


@in_virtual_time
async def test_accepted_image_is_not_refused_after_decoding():
    bench = Bench(BatchPolicy(max_batch_size=1, max_queue_size=1))
    await bench.submit(0)
    with bench.accept(within=2.5):
        with pytest.raises(QueueFull), bench.accept():
            raise AssertionError
        # Decoding takes longer than expected: by then the device has something else to do.
        running = bench.submit(1, stream="stream")
        await asyncio.sleep(0.1)
    decoded = bench.submit(2, within=2.4, accepted=True)
    with pytest.raises(QueueFull):
        bench.submit(3)
    await asyncio.gather(running, decoded)
    assert bench.engine.batches == [[0], [1], [2]]


@in_virtual_time
async def test_image_in_decoding_fails_if_its_variant_is_unloaded():
    bench = Bench()
    with bench.accept():
        await bench.scheduler.remove(bench.queue, Unloading("it goes"), 1.0)
        with pytest.raises(Unloading):
            bench.submit(1, accepted=True)
    with pytest.raises(Unloading), bench.accept():
        raise AssertionError


@in_virtual_time
async def test_earliest_deadline_goes_first():
    bench = Bench(BatchPolicy(max_batch_size=1))
    first = bench.submit(0)
    await asyncio.sleep(0.1)
    late = bench.submit(1, within=9.0)
    soon = bench.submit(2, within=5.0)
    await asyncio.gather(first, late, soon)
    assert bench.engine.batches == [[0], [2], [1]]


@in_virtual_time
async def test_request_without_deadline_is_not_starved():
    bench = Bench(BatchPolicy(max_batch_size=1))
    patient = bench.submit(99)
    answered_at = None

    async def press() -> None:
        for number in range(60):
            if answered_at is None:
                bench.submit(number, within=8.0)
            await asyncio.sleep(0.9)

    bench.submit(0)
    pressing = asyncio.create_task(press())
    await patient
    answered_at = asyncio.get_running_loop().time()
    assert answered_at < 20.0
    await pressing


@in_virtual_time
async def test_request_beyond_max_queue_wait_is_refused():
    bench = Bench(BatchPolicy(max_batch_size=1, max_queue_wait_s=2.5))
    await bench.submit(0)  # how long a batch takes is known from here on: 1 s
    accepted = [bench.submit(1)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    accepted += [bench.submit(2), bench.submit(3)]
    with pytest.raises(QueueFull, match=r"max_queue_wait_s .*with the deadline") as refused:
        bench.submit(4)
    assert refused.value.limit == "max_queue_wait_s"
    assert refused.value.retry_after_s == pytest.approx(0.5)
    accepted += [bench.submit(5, within=100.0), bench.submit(6, stream="a stream")]
    await asyncio.gather(*accepted)


@in_virtual_time
async def test_unreachable_deadline_is_refused_at_once():
    bench = Bench()
    await bench.submit(0)
    with pytest.raises(DeadlineUnreachable, match="nothing was computed"):
        bench.submit(1, within=0.5)
    assert bench.engine.batches == [[0]]


@in_virtual_time
async def test_deadline_behind_waiting_requests_is_refused_at_once():
    bench = Bench(BatchPolicy(max_batch_size=1))
    await bench.submit(0)
    running = bench.submit(1)
    await asyncio.sleep(0.1)
    ahead = bench.submit(2, within=2.5)
    with pytest.raises(DeadlineUnreachable):
        bench.submit(3, within=2.6)
    await asyncio.gather(running, ahead)
    assert bench.engine.batches == [[0], [1], [2]]


@in_virtual_time
async def test_request_that_would_make_accepted_ones_late_is_refused():
    bench = Bench(BatchPolicy(max_batch_size=1))
    await bench.submit(0)
    running = bench.submit(1)
    await asyncio.sleep(0.1)
    accepted = [bench.submit(2, within=2.0), bench.submit(3, within=3.0)]
    with pytest.raises(DeadlineUnreachable, match="behind it were accepted"):
        bench.submit(4, within=2.95)
    await asyncio.gather(running, *accepted)
    assert bench.engine.batches == [[0], [1], [2], [3]]


@in_virtual_time
async def test_request_that_turns_late_in_the_queue_is_shed():
    bench = Bench(BatchPolicy(max_batch_size=1))
    await bench.submit(0)
    bench.engine.alpha = 1.5  # the device is slower than it seemed
    running = bench.submit(1)
    await asyncio.sleep(0.1)
    hopeless = bench.submit(2, within=2.0)
    await running
    with pytest.raises(DeadlineUnreachable):
        await hopeless
    assert [2] not in bench.engine.batches


def warm(policy: BatchPolicy, **engine: float) -> Bench:
    """Make a bench whose batcher already knows how long batches take."""
    bench = Bench(policy, **engine)
    for size in (1, 2):
        bench.queue.latency.observe(size, bench.engine.alpha + bench.engine.beta * size)
    return bench


@in_virtual_time
async def test_batch_is_closed_early_to_meet_its_first_deadline():
    bench = warm(BatchPolicy(max_batch_size=8), alpha=1.0, beta=0.5)
    running = bench.submit(1)
    await asyncio.sleep(0.1)
    others = [bench.submit(number) for number in (3, 4, 5)]
    urgent = bench.submit(2, within=4.0)
    await asyncio.gather(running, urgent, *others)
    assert bench.engine.batches == [[1], [2, 3, 4], [5]]


@in_virtual_time
async def test_late_device_sheds_instead_of_running_small_batches():
    bench = warm(BatchPolicy(max_batch_size=2), alpha=1.0, beta=0.5)
    running = bench.submit(1)
    await asyncio.sleep(0.1)
    urgent = bench.submit(2, within=3.2)
    others = [bench.submit(number) for number in (3, 4)]
    with pytest.raises(DeadlineUnreachable) as refused:
        await urgent
    assert refused.value.accepted
    await asyncio.gather(running, *others)
    assert bench.engine.batches == [[1], [3, 4]]


@in_virtual_time
async def test_late_batch_sheds_its_most_urgent_request():
    for others, batches in ((2, [[1], [3, 4]]), (1, [[1], [2, 3]])):
        bench = warm(BatchPolicy(max_batch_size=2), alpha=1.0, beta=0.5)
        running = bench.submit(1)
        await asyncio.sleep(0.1)
        bench.submit(2, within=3.5)  # as a batch of two it would be there after 3.4 s
        rest = [bench.submit(number) for number in (3, 4)[:others]]
        bench.scheduler.margin.seconds = 0.2
        await asyncio.gather(running, *rest)
        assert bench.engine.batches == batches


@in_virtual_time
async def test_each_batch_before_a_request_may_be_late():
    bench = Bench(BatchPolicy(max_batch_size=1))
    await bench.submit(0)
    bench.scheduler.margin.seconds = 0.1
    waiting = [bench.submit(number) for number in (1, 2)]  # none of them has a deadline
    with pytest.raises(DeadlineUnreachable):
        bench.submit(3, within=1.05)
    bench.submit(3, within=1.15)
    with pytest.raises(DeadlineUnreachable):
        bench.submit(4, within=2.15)
    bench.submit(4, within=2.25)
    await asyncio.gather(*waiting)


@in_virtual_time
async def test_one_urgent_request_does_not_shrink_all_batches():
    bench = warm(BatchPolicy(max_batch_size=32), alpha=0.01, beta=0.01)
    bench.queue.latency.observe(32, 0.33)
    running = bench.submit(0)
    await asyncio.sleep(0.005)
    urgent = bench.submit(1, within=0.2)  # a quarter of that is a batch of 4
    others = [bench.submit(number) for number in range(2, 40)]
    await asyncio.gather(running, urgent, *others)
    assert [len(batch) for batch in bench.engine.batches] == [1, 14, 25]


OVERLOADED = {
    # Seconds of a batch, of an image in it; images in a batch; until the deadline.
    "V100": (0.0021, 0.000147, 64, 0.030),
    "CPU, int8": (0.011, 0.035, 32, 1.0),
    "CPU, fp32": (0.004, 0.059, 32, 1.0),
}


@pytest.mark.parametrize("device", OVERLOADED)
def test_overload_leaves_most_deadlines_met(device):
    """1.3 times the capacity (docs/adr/0004-deadline-aware-batching.md, 0024-goodput.md)."""
    run(overload(*OVERLOADED[device]))


async def overload(alpha: float, beta: float, size: int, allowed: float) -> None:
    bench = Bench(BatchPolicy(max_batch_size=size), alpha=alpha, beta=beta)
    rate = 1.3 * size / (alpha + beta * size)
    draw = random.Random(0)
    met = []

    async def call(number: int) -> None:
        loop = asyncio.get_running_loop()
        within = allowed * draw.uniform(0.5, 1.5)
        deadline = loop.time() + within
        try:
            await bench.submit(number % 250, within=within)
        except DeadlineUnreachable:
            met.append(False)
        else:
            met.append(loop.time() <= deadline + 1e-9)

    calls = []
    for number in range(6000):
        calls.append(asyncio.create_task(call(number)))
        await asyncio.sleep(draw.expovariate(rate))
    await asyncio.gather(*calls)
    assert sum(met) / len(met) > 0.70  # at best 1 / 1.3 = 0.77


@in_virtual_time
async def test_one_stall_does_not_cause_lasting_refusals():
    bench = Bench(alpha=0.005)
    for number in range(50):
        await bench.submit(number)
    bench.engine.alpha = 2.0  # the process was stopped, say
    await bench.submit(50)
    bench.engine.alpha = 0.005
    answered = 0
    for number in range(100):
        try:
            await bench.submit(number, within=0.030)
            answered += 1
        except DeadlineUnreachable:
            await asyncio.sleep(0.010)
    assert answered >= 95


@in_virtual_time
async def test_idle_device_accepts_requests_after_a_slow_phase():
    bench = Bench()
    await bench.submit(0)
    bench.engine.alpha = 0.1
    with pytest.raises(DeadlineUnreachable):
        bench.submit(1, within=0.5)
    await asyncio.sleep(REMEASURE_AFTER_S + 0.1)
    assert (await bench.submit(1, within=0.5)).batch_size == 1


async def burst(bench: Bench, images: int, within: float) -> int:
    """Submit images at once; return how many are answered in time. The others are refused."""
    loop = asyncio.get_running_loop()
    due, calls = loop.time() + within, []
    for number in range(images):
        with suppress(DeadlineUnreachable):
            calls.append(bench.submit(number, within=within))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert loop.time() <= due
    assert all(isinstance(each, (Result, DeadlineUnreachable)) for each in outcomes)
    return sum(isinstance(each, Result) for each in outcomes)


# Seconds of an image in a batch, and of the square of its images.
SLOW_DEVICES = {"linear": (0.2, 0.0), "slower per image in larger batches": (0.11, 0.04)}


@pytest.mark.parametrize(("beta", "gamma"), SLOW_DEVICES.values(), ids=SLOW_DEVICES)
@in_virtual_time
async def test_batches_of_unknown_size_meet_the_first_deadline(beta, gamma):
    bench = Bench(alpha=0.0, beta=beta, gamma=gamma)
    await bench.submit(0)  # all that is known is a batch of one
    assert await burst(bench, 12, within=2.0) >= 8
    assert await burst(bench, 12, within=2.0) >= 8


async def slow_batch(bench: Bench) -> None:
    """Compute one batch of 12, much slower than expected."""
    for size in (1, 4):
        await asyncio.gather(*(bench.submit(number) for number in range(size)))
    bench.engine.beta = 0.2
    await asyncio.gather(*(bench.submit(number) for number in range(12)))


async def slow_phase(bench: Bench) -> None:
    """Compute 300 batches ten times slower than before."""
    bench.engine.beta = 0.6
    for _ in range(100):
        for size in (1, 2, 3):
            await asyncio.gather(*(bench.submit(number) for number in range(size)))


@pytest.mark.parametrize("load", [slow_batch, slow_phase])
@in_virtual_time
async def test_idle_device_accepts_bursts_soon_after_load(load):
    bench = Bench(alpha=0.0, beta=0.06)
    await load(bench)
    bench.engine.beta = 0.06
    answered = []
    for _ in range(6):
        await asyncio.sleep(0.1)
        answered.append(await burst(bench, 12, within=2.0))
    assert answered[0] >= 2
    assert answered[4:] == [12, 12]


@in_virtual_time
async def test_idle_device_judges_an_image_by_its_best_time():
    bench = Bench(alpha=0.0, beta=0.06)
    await slow_batch(bench)
    bench.engine.beta = 0.06
    with pytest.raises(DeadlineUnreachable, match=r"is 50\.0 ms away .* needs about 60\.0 ms;"):
        bench.submit(0, within=0.05)
    for number in range(5):
        await bench.submit(number, within=0.07)
        await asyncio.sleep(0.1)


@in_virtual_time
async def test_idle_device_is_busy_while_another_variant_waits():
    bench = Bench()
    other = bench.scheduler.add("other", FakeEngine(alpha=1.0), [(1, 1.0)])
    await bench.submit(0)
    ahead = bench.submit(1, within=1.4)
    with pytest.raises(DeadlineUnreachable):
        bench.submit(2, queue=other, within=1.5)
    await asyncio.gather(ahead, bench.submit(3, queue=other, within=2.5))


@in_virtual_time
async def test_deadline_check_uses_the_first_free_worker():
    bench = Bench(BatchPolicy(max_batch_size=1), workers=2)
    await bench.submit(0)
    running = [bench.submit(number) for number in (1, 2)]
    await asyncio.sleep(0.1)
    accepted = [bench.submit(number, within=2.0) for number in (3, 4)]  # 1.9 s from now
    with pytest.raises(DeadlineUnreachable):
        bench.submit(5, within=2.5)
    accepted.append(bench.submit(6, within=3.0))
    await asyncio.gather(*running, *accepted)


@in_virtual_time
async def test_deadline_check_knows_when_each_worker_is_free():
    bench = Bench(BatchPolicy(max_batch_size=1), workers=2)
    await bench.submit(0)
    running = [bench.submit(1)]  # from 1.0 to 2.0
    await asyncio.sleep(0.6)
    running.append(bench.submit(2))  # from 1.6 to 2.6
    await asyncio.sleep(0)
    running.append(bench.submit(3, within=1.5))  # the first worker's next, to 3.0
    with pytest.raises(DeadlineUnreachable):
        bench.submit(4, within=1.9)  # the second worker's next, to 3.6
    running.append(bench.submit(5, within=2.1))
    await asyncio.gather(*running)
    assert [end for _, end in bench.device.spans] == pytest.approx([1.0, 2.0, 2.6, 3.0, 3.6])


@in_virtual_time
async def test_deadline_check_counts_a_prefetched_batch():
    bench = Bench(BatchPolicy(max_batch_size=1), prefetch=1)
    await bench.submit(0)
    running = [bench.submit(number) for number in (1, 2)]
    await asyncio.sleep(0.1)
    with pytest.raises(DeadlineUnreachable):
        bench.submit(3, within=2.8)
    running.append(bench.submit(4, within=3.0))
    await asyncio.gather(*running)


@in_virtual_time
async def test_deadline_check_counts_other_variants():
    bench = Bench()
    other = bench.scheduler.add("slow", FakeEngine(alpha=3.0), [(1, 3.0)])
    bench.queue.latency.observe(1, 1.0)
    running = bench.submit(0)
    await asyncio.sleep(0.1)
    urgent = bench.submit(1, queue=other, within=4.0)
    with pytest.raises(DeadlineUnreachable):
        bench.submit(2, within=4.5)  # behind the other variant's 3 s
    sooner = bench.submit(3, within=3.9)  # before it, though that makes the other one late
    outcomes = await asyncio.gather(running, urgent, sooner, return_exceptions=True)
    assert isinstance(outcomes[1], DeadlineUnreachable)
    assert outcomes[2].indices.tolist() == [3]


@in_virtual_time
async def test_deadline_check_adds_the_margin_of_late_answers():
    """The callers' own turns after a batch, which the batcher's estimates know nothing of."""
    bench = warm(BatchPolicy(), alpha=1.0)
    loop = asyncio.get_running_loop()

    def slow_turn(future: asyncio.Future) -> None:
        loop.now += 0.5

    for _ in range(20):
        call = bench.submit(0)
        call.add_done_callback(slow_turn)
        await call
        await asyncio.sleep(0.1)
    running = bench.submit(0)
    await asyncio.sleep(0.1)
    with pytest.raises(DeadlineUnreachable, match=r"about 1900\.0 ms and a margin of"):
        bench.submit(1, within=2.3)
    await asyncio.gather(running, bench.submit(2, within=3.5))


@in_virtual_time
async def test_warm_up_latency_judges_the_first_deadline():
    bench = Bench()
    queue = bench.scheduler.add("warm", bench.engine, [(1, 1.0), (4, 1.0)])
    with pytest.raises(DeadlineUnreachable):
        bench.submit(1, queue=queue, within=0.9)
    assert bench.engine.batches == []
    await bench.submit(2, queue=queue, within=1.1)
