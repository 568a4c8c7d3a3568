"""What becomes of batches that fail, in virtual time: who is answered, and what that costs."""

from __future__ import annotations

import asyncio
import functools
import gc
import math
import weakref
from types import MethodType

import numpy as np
import pytest

from resnet50_server.batching.batch import BatchPolicy
from resnet50_server.batching.batch_limit import HOLD_S
from resnet50_server.batching.retry import MAX_FAILURES, MOST_IN_A_ROW, Rescue
from resnet50_server.batching.scheduler import Scheduler
from resnet50_server.batching.variant_health import LEAST
from resnet50_server.errors import (
    DeadlineUnreachable,
    DoesNotFit,
    EngineFailed,
    ShuttingDown,
    VariantUnhealthy,
)
from resnet50_server.events import BatchEvent, ServerEvents
from tests.support import virtual_time
from tests.support.virtual_device import FakeEngine, VirtualThreads, image

GREY = 128


class FaultyEngine(FakeEngine):
    """Fails on images of some numbers, and on batches larger than there is memory for.

    Attributes:
        poison: The numbers.
        memory: Images that fit.
        broken: Whether it fails on whatever it is given.
    """

    def __init__(self, alpha: float = 1.0, **options: float) -> None:
        super().__init__(alpha, **options)
        self.poison: set[int] = set()
        self.memory = math.inf
        self.broken = False

    def run(self, images, top_k, with_embeddings):
        output = super().run(images, top_k, with_embeddings)
        if len(images) > self.memory:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to")
        if self.broken or self.poison.intersection(self.batches[-1]):
            raise ValueError("what the engine says")
        return output


class Seen(ServerEvents):
    def __init__(self) -> None:
        self.batches: list[BatchEvent] = []

    def batch_ended(self, batch: BatchEvent) -> None:
        self.batches.append(batch)


class Bench:
    def __init__(
        self, size: int = 32, workers: int = 1, prefetch: int = 0, **engine: float
    ) -> None:
        self.seen, self.engine, self.broken = Seen(), FaultyEngine(**engine), []
        self.scheduler = Scheduler(
            BatchPolicy(max_batch_size=size),
            VirtualThreads(workers),
            self.broken.append,
            workers,
            prefetch,
            self.seen,
            "cpu",
        )
        self.queue = self.scheduler.add("v", self.engine)

    def submit(self, number: int, within: float | None = None):
        deadline = None if within is None else asyncio.get_running_loop().time() + within
        return self.scheduler.submit(
            self.queue, image(number), top_k=1, with_embedding=False, deadline=deadline
        )

    async def outcomes(self, numbers) -> dict[int, object]:
        """Return what each of some images got, given together: its number, or the error's kind."""
        calls = {number: self.submit(number) for number in numbers}
        await asyncio.wait(calls.values())
        return {
            number: type(call.exception()) if call.exception() else int(call.result().indices[0])
            for number, call in calls.items()
        }


def in_virtual_time(test):
    @functools.wraps(test)
    def run(*arguments, **options) -> None:
        virtual_time.run(test(*arguments, **options))

    return run


def answered(numbers, without=()) -> dict[int, object]:
    return {number: EngineFailed if number in without else number for number in numbers}


@pytest.mark.parametrize("poisoned", range(16))
@in_virtual_time
async def test_image_that_the_engine_fails_on_fails_alone(poisoned):
    bench = Bench()
    bench.engine.poison = {poisoned}
    assert await bench.outcomes(range(16)) == answered(range(16), {poisoned})
    assert len(bench.engine.batches) == 9  # 16, then both halves of each that failed
    assert [poisoned] in bench.engine.batches
    assert bench.broken == []


@pytest.mark.parametrize("workers", [1, 2, 3])
@in_virtual_time
async def test_two_failing_images_of_a_batch_are_both_found(workers):
    for size in (2, 3, 5, 8, 13):
        for first in range(size):
            for second in range(first + 1, size):
                bench = Bench(workers=workers)
                bench.engine.poison = {first, second}
                expected = answered(range(size), bench.engine.poison)
                assert await bench.outcomes(range(size)) == expected, (size, first, second)


@in_virtual_time
async def test_finding_two_bad_images_of_32_takes_at_most_19_runs():
    most = 0
    for first, second in ((0, 31), (0, 16), (15, 16), (0, 1), (0, 8), (3, 30)):
        bench = Bench()
        bench.engine.poison = {first, second}
        assert await bench.outcomes(range(32)) == answered(range(32), {first, second})
        most = max(most, len(bench.engine.batches))
    assert most == 19


@pytest.mark.parametrize("size", [1, 2, 3, 32])
@in_virtual_time
async def test_device_that_is_broken_is_not_given_run_after_run(size):
    bench = Bench()
    bench.engine.broken = True
    assert set((await bench.outcomes(range(size))).values()) == {EngineFailed}
    assert len(bench.engine.batches) == min(2 * size - 1, MOST_IN_A_ROW)
    bench.engine.broken = False
    assert await bench.outcomes(range(4)) == answered(range(4))


@in_virtual_time
async def test_batches_that_are_rescued_say_nothing_against_the_device():
    bench = Bench(size=8)
    bench.engine.poison = {3}
    for _ in range(3 * MAX_FAILURES):
        assert await bench.outcomes(range(8)) == answered(range(8), {3})
    assert [GREY] not in bench.engine.batches
    assert bench.broken == []


@in_virtual_time
async def test_repeatedly_failing_image_does_not_end_the_server():
    bench = Bench()
    bench.engine.poison = {3}
    for _ in range(3 * MAX_FAILURES):
        assert await bench.outcomes([3]) == {3: EngineFailed}
    await asyncio.sleep(5.0)
    # The device was asked whether it computes at all, and does.
    assert bench.engine.batches.count([GREY]) == 3
    assert bench.broken == []
    assert await bench.outcomes([4]) == {4: 4}


@in_virtual_time
async def test_device_loss_answers_queued_requests_unavailable():
    bench = Bench(size=4)
    bench.engine.broken = True
    for _ in range(MAX_FAILURES - 1):
        await bench.outcomes(range(4))
    last = [bench.submit(number) for number in range(4)]
    await asyncio.sleep(0.5)
    waits = [bench.submit(number) for number in range(3)]
    await asyncio.wait([*last, *waits])
    assert {type(call.exception()) for call in last} == {EngineFailed}
    assert {type(call.exception()) for call in waits} == {ShuttingDown}
    assert "call another" in str(waits[0].exception())
    (fault,) = bench.broken
    assert fault.status == 70
    assert isinstance(fault.__cause__, ValueError)


@in_virtual_time
async def test_device_loss_is_found_despite_short_deadlines():
    bench = Bench(size=4)
    await bench.outcomes([9])  # batches take 1 s
    bench.engine.broken = True
    for _ in range(MAX_FAILURES):
        calls = [bench.submit(number, within=1.5) for number in range(4)]
        await asyncio.wait(calls)
        assert DeadlineUnreachable in {type(call.exception()) for call in calls}
    await asyncio.sleep(2.0)
    assert bench.engine.batches.count([0, 1, 2, 3]) == MAX_FAILURES
    assert bench.engine.batches[-1] == [GREY]
    (fault,) = bench.broken
    assert fault.status == 70


@in_virtual_time
async def test_grey_image_counts_for_no_request_whatever_comes_of_it():
    missed = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: missed.append(context))
    bench = Bench(alpha=0.1)
    bench.engine.poison = {3}
    bench.engine.without_answer = GREY
    for _ in range(LEAST * MAX_FAILURES):
        await bench.outcomes([3])
    await asyncio.sleep(1.0)
    gc.collect()
    assert bench.engine.batches.count([GREY]) == LEAST
    assert bench.queue.health.problem is None
    assert bench.broken == missed == []


@in_virtual_time
async def test_parts_go_before_what_has_come_since():
    bench = Bench(size=4)
    bench.engine.poison = {0}
    calls = [bench.submit(number) for number in range(4)]
    await asyncio.sleep(0.5)
    calls += [bench.submit(number) for number in range(10, 14)]
    await asyncio.wait(calls)
    assert bench.engine.batches == [[0, 1, 2, 3], [0, 1], [2, 3], [0], [1], [10, 11, 12, 13]]


@in_virtual_time
async def test_image_whose_caller_left_is_not_run_again():
    bench = Bench(size=4)
    bench.engine.poison = {0}
    calls = [bench.submit(number) for number in range(4)]
    await asyncio.sleep(0.5)
    calls[2].cancel()
    await asyncio.sleep(1.0)
    calls[1].cancel()
    await asyncio.wait(calls)
    assert bench.engine.batches == [[0, 1, 2, 3], [0, 1], [3], [0]]
    assert (bench.scheduler.cancelled.waiting, bench.scheduler.cancelled.computing) == (0, 2)
    assert calls[3].result().indices.tolist() == [3]


@in_virtual_time
async def test_expired_request_is_not_retried():
    bench = Bench(size=4)
    await bench.outcomes([9])  # batches take 1 s
    bench.engine.poison = {0}
    calls = [bench.submit(number, within=within) for number, within in enumerate((9, 9, 1.5, 2.5))]
    await asyncio.wait(calls)
    assert isinstance(calls[2].exception(), DeadlineUnreachable)
    ran_again = [number for batch in bench.engine.batches[2:] for number in batch]
    assert 2 not in ran_again
    assert calls[3].result().indices.tolist() == [3]
    assert calls[1].result().indices.tolist() == [1]


@in_virtual_time
async def test_deadline_behind_parts_that_are_run_again_counts_them():
    bench = Bench(size=4)
    await bench.outcomes([9])
    bench.engine.poison = {0}
    calls = [bench.submit(number) for number in range(4)]
    await asyncio.sleep(1.5)  # [0, 1] runs, [2, 3] comes next
    with pytest.raises(DeadlineUnreachable):
        bench.submit(5, within=2.4)
    await asyncio.wait(calls)


@in_virtual_time
async def test_failed_batches_do_not_train_the_latency_model():
    bench = Bench(size=8)
    await bench.outcomes(range(8))
    learned = bench.queue.latency.batch_s(8), bench.queue.latency._weight
    busy_s, bench.engine.broken, bench.engine.alpha = bench.scheduler.busy_s, True, 7.0
    await bench.outcomes(range(8))
    assert (bench.queue.latency.batch_s(8), bench.queue.latency._weight) == learned
    assert bench.scheduler.busy_s - busy_s == pytest.approx(MOST_IN_A_ROW * 7.0)
    assert [batch.failed for batch in bench.seen.batches] == [False] + MOST_IN_A_ROW * [True]


@in_virtual_time
async def test_variant_that_goes_waits_for_its_parts():
    bench = Bench(size=4)
    bench.engine.poison = {0}
    calls = [bench.submit(number) for number in range(4)]
    await asyncio.sleep(0.5)
    assert await bench.scheduler.remove(bench.queue, ShuttingDown("v goes"), 60.0)
    assert [call.done() for call in calls] == [True] * 4
    assert calls[1].result().indices.tolist() == [1]


@in_virtual_time
async def test_closing_answers_what_was_to_be_run_again():
    bench = Bench(size=4)
    bench.engine.poison = {0}
    calls = [bench.submit(number) for number in range(4)]
    await asyncio.sleep(1.5)
    await bench.scheduler.close()
    await asyncio.wait(calls)
    assert {type(call.exception()) for call in calls} == {ShuttingDown}


@in_virtual_time
async def test_error_in_retry_handling_answers_every_request(monkeypatch):
    bench = Bench(size=4)
    bench.engine.poison = {0}
    calls = [bench.submit(number) for number in range(6)]
    monkeypatch.setattr(Rescue, "part_failed", lambda *_: 1 / 0)
    await asyncio.wait(calls)
    assert [type(call.exception()) for call in calls] == 4 * [EngineFailed] + 2 * [ShuttingDown]
    assert isinstance(bench.broken[0].__cause__, ZeroDivisionError)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
@in_virtual_time
async def test_what_would_end_the_process_fails_the_batch_only(kind):
    bench = Bench()
    bench.engine.error = kind("from a library")
    assert await bench.outcomes(range(2)) == answered(range(2), {0, 1})
    bench.engine.error = None
    assert await bench.outcomes(range(2)) == answered(range(2))


# Memory


@in_virtual_time
async def test_oom_halves_the_batch_and_later_ones_stay_small():
    bench = Bench()
    bench.engine.memory = 10
    assert await bench.outcomes(range(32)) == answered(range(32))
    sizes = [len(batch) for batch in bench.engine.batches]
    assert sizes == [32, 16, 8, 8, 8, 8]
    bench.engine.batches.clear()
    assert await bench.outcomes(range(20)) == answered(range(20))
    assert [len(batch) for batch in bench.engine.batches] == [8, 8, 4]
    assert [batch.out_of_memory for batch in bench.seen.batches[:3]] == [True, True, False]


@in_virtual_time
async def test_failed_batch_releases_memory_before_its_retry():
    bench, taken, left = Bench(), [], []
    compute = bench.engine.run

    def run(images, *arguments):
        left.append(sum(one() is not None for one in taken))
        activations = np.zeros(1)
        taken.append(weakref.ref(activations))
        return compute(images, *arguments)  # raises through this frame

    bench.engine.memory = 1
    bench.engine.run = MethodType(lambda _, *arguments: run(*arguments), bench.engine)
    assert await bench.outcomes(range(4)) == answered(range(4))
    assert left == [0] * 6


@in_virtual_time
async def test_larger_batches_are_tried_again_after_a_while():
    bench = Bench()
    bench.engine.memory = 10
    await bench.outcomes(range(32))
    bench.engine.memory = math.inf
    await asyncio.sleep(HOLD_S - 7.0)
    await bench.outcomes(range(32))
    assert len(bench.engine.batches[-1]) == 8
    await asyncio.sleep(7.0)
    await bench.outcomes(range(32))
    assert len(bench.engine.batches[-1]) == 32


@in_virtual_time
async def test_shortage_of_memory_is_logged_once(caplog):
    bench = Bench(alpha=0.1)
    bench.engine.memory = 3
    for _ in range(3):
        await bench.outcomes(range(32))
    (record,) = caplog.records
    assert "no memory for a batch of 32" in record.getMessage()
    assert "can't allocate memory" in record.getMessage()


@in_virtual_time
async def test_oom_does_not_lose_the_device_while_anything_fits():
    bench = Bench(size=8)
    bench.engine.memory = 1
    for _ in range(3 * MAX_FAILURES):
        assert await bench.outcomes(range(8)) == answered(range(8))
    assert bench.broken == []
    assert [GREY] not in bench.engine.batches


@in_virtual_time
async def test_image_too_large_for_memory_fails_after_few_runs():
    bench = Bench(size=32)
    bench.engine.memory = 0
    calls = [bench.submit(number) for number in range(32)]
    await asyncio.wait(calls)
    for call in calls:
        assert isinstance(call.exception(), DoesNotFit)
        assert (call.exception().limit, call.exception().retry_after_s) == ("device_memory", 5.0)
        assert "cpu has no memory left" in str(call.exception())
    assert [len(batch) for batch in bench.engine.batches] == [32, 16, 8, 4, 2] + [1] * MOST_IN_A_ROW
    for _ in range(MAX_FAILURES - 1):
        await bench.outcomes([1])
    await asyncio.sleep(2.0)
    assert bench.broken[0].status == 70  # a process that starts anew has what this one lost


@in_virtual_time
async def test_deadline_estimates_follow_smaller_batches():
    bench = Bench(size=8)
    await bench.outcomes(range(8))
    bench.engine.memory = 2
    await bench.outcomes(range(8))
    running = [bench.submit(number, within=3.1) for number in range(6)]  # three batches, 1 s each
    with pytest.raises(DeadlineUnreachable):
        bench.submit(7, within=3.5)
    await asyncio.wait(running)


@in_virtual_time
async def test_shadows_that_fail_are_not_run_again():
    bench = Bench(size=4)
    bench.engine.broken = True
    calls = [
        bench.scheduler.submit(
            bench.queue, image(number), top_k=1, with_embedding=False, shadow=True, bulk=True
        )
        for number in range(4)
    ]
    await asyncio.wait(calls)
    assert {type(call.exception()) for call in calls} == {EngineFailed}
    assert bench.engine.batches == [[0, 1, 2, 3]]


@in_virtual_time
async def test_failing_variant_goes_out_of_service_device_serves():
    bench = Bench(size=4)
    well = bench.scheduler.add("w", FaultyEngine())

    def ask_other():
        return bench.scheduler.submit(well, image(7), top_k=1, with_embedding=False)

    bench.engine.broken = True
    # Between its failures the other one computes, so that they are never many in a row.
    for _ in range(MAX_FAILURES - 1):
        assert set((await bench.outcomes(range(4))).values()) == {EngineFailed}
        assert (await ask_other()).indices.tolist() == [7]
    assert set((await bench.outcomes(range(4))).values()) == {EngineFailed}
    waits = [bench.submit(number) for number in range(4)]
    await asyncio.wait(waits)
    assert {type(call.exception()) for call in waits} == {VariantUnhealthy}
    problem = "its engine fails on every batch on cpu, and on a grey image"
    assert bench.queue.health.problem == problem
    assert (await ask_other()).indices.tolist() == [7]
    assert [GREY] in well.engine.batches  # the device was asked about it, too
    assert well.health.problem is None
    assert bench.broken == []
    with pytest.raises(VariantUnhealthy):
        bench.submit(1)


@in_virtual_time
async def test_device_is_lost_once_every_variant_fails():
    bench = Bench()
    others = [bench.scheduler.add(name, FaultyEngine()) for name in ("w", "x")]
    for engine in (bench.engine, *(queue.engine for queue in others)):
        engine.broken = True
    for _ in range(MAX_FAILURES):
        await bench.outcomes([1])
    await asyncio.sleep(5.0)
    assert [queue.engine.batches for queue in others] == [[[GREY]]] * 2
    (fault,) = bench.broken
    assert fault.status == 70


@in_virtual_time
async def test_variant_that_computes_again_is_judged_anew():
    bench = Bench()
    bench.scheduler.add("w", FaultyEngine())
    bench.engine.broken = True
    for _ in range(MAX_FAILURES):
        await bench.outcomes([1])
    await asyncio.sleep(5.0)
    assert bench.queue.health.problem
    bench.engine.broken = False
    # As the server's own test does.
    options = {"top_k": 1, "with_embedding": True, "shadow": True, "bulk": True}
    await bench.scheduler.submit(bench.queue, image(1), **options)
    bench.queue.health.recover()
    bench.engine.broken = True
    for _ in range(MAX_FAILURES - 1):
        await bench.outcomes([1])
    await asyncio.sleep(5.0)
    assert bench.queue.health.problem is None
    assert bench.broken == []
