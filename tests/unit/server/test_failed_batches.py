"""Retries of failed batches, and self-tests, in virtual time."""

from __future__ import annotations

import asyncio
import copy
import gc

import pytest

from resnet50_server.batching.failed_batches import (
    MAX_ATTEMPTS,
    MAX_CONSECUTIVE_FAILURES,
    RetryQueue,
)
from resnet50_server.batching.variant_health import MIN_NON_FINITE
from resnet50_server.errors import (
    DeadlineUnreachable,
    EngineFailed,
    ShuttingDown,
    VariantUnhealthy,
)
from tests.support.retry_bench import SELF_TEST, Bench, FaultyEngine, answered, failed
from tests.support.virtual_device import context, image
from tests.support.virtual_time import in_virtual_time


@pytest.mark.parametrize("size", [1, 2, 32])
@in_virtual_time
async def test_failed_batch_is_retried_once_whole(size):
    bench = Bench()
    bench.engine.failures = 1
    assert await bench.outcomes(range(size)) == answered(range(size))
    assert bench.engine.batches == 2 * [list(range(size))]
    assert [batch.failed for batch in bench.seen.batches] == [True, False]


@pytest.mark.parametrize("size", [1, 2, 32])
@in_virtual_time
async def test_batch_whose_retry_fails_too_fails(size):
    bench = Bench()
    bench.engine.failures = 2
    assert await bench.outcomes(range(size)) == failed(range(size))
    assert bench.engine.batches == 2 * [list(range(size))]
    assert await bench.outcomes(range(4)) == answered(range(4))


@in_virtual_time
async def test_every_batch_has_a_retry_of_its_own():
    bench = Bench(size=2, workers=2)
    bench.engine.failures = 2
    assert await bench.outcomes(range(4)) == answered(range(4))
    assert bench.engine.batches == 2 * [[0, 1], [2, 3]]


@in_virtual_time
async def test_successful_retries_do_not_count_as_failures():
    bench = Bench()
    for _ in range(3 * MAX_CONSECUTIVE_FAILURES):
        bench.engine.failures = 1
        assert await bench.outcomes([3]) == answered([3])
    assert [SELF_TEST] not in bench.engine.batches
    assert bench.fatal == []


@in_virtual_time
async def test_variant_that_passes_its_self_test_stays_in_service():
    bench = Bench()
    for count in range(3 * MAX_CONSECUTIVE_FAILURES):
        bench.engine.failures = 2
        assert await bench.outcomes([3]) == failed([3])
        await asyncio.sleep(5.0)
        assert bench.engine.batches.count([SELF_TEST]) == (count + 1) // MAX_CONSECUTIVE_FAILURES
    assert bench.fatal == []
    assert await bench.outcomes([4]) == answered([4])


@in_virtual_time
async def test_device_loss_answers_queued_requests_unavailable():
    bench = Bench(size=4)
    bench.engine.broken = True
    for _ in range(MAX_CONSECUTIVE_FAILURES - 1):
        await bench.outcomes(range(4))
    last = [bench.submit(number) for number in range(4)]
    await asyncio.sleep(0.5)
    waits = [bench.submit(number) for number in range(3)]
    await asyncio.wait([*last, *waits])
    assert {type(call.exception()) for call in last} == {EngineFailed}
    assert {type(call.exception()) for call in waits} == {ShuttingDown}
    assert "call another" in str(waits[0].exception())
    (fatal,) = bench.fatal
    assert fatal.status == 70
    assert isinstance(fatal.__cause__, ValueError)


@in_virtual_time
async def test_device_loss_is_found_despite_short_deadlines():
    bench = Bench(size=4)
    await bench.outcomes(range(4))  # batches take 1 s
    bench.engine.broken, outcomes = True, set()
    for _ in range(MAX_CONSECUTIVE_FAILURES):
        calls = [bench.submit(number, within=1.5) for number in range(4)]
        await asyncio.wait(calls)
        outcomes |= {type(call.exception()) for call in calls}
    # The second because an idle device that was not measured lately takes a request in any case.
    assert outcomes == {DeadlineUnreachable, EngineFailed}
    await asyncio.sleep(2.0)
    assert bench.engine.batches[-1] == [SELF_TEST]
    (fatal,) = bench.fatal
    assert fatal.status == 70


@in_virtual_time
async def test_device_loss_is_found_though_clients_cancel():
    bench = Bench()
    bench.engine.broken = True
    for _ in range(MAX_CONSECUTIVE_FAILURES):
        calls = [bench.submit(number) for number in range(4)]
        await asyncio.sleep(0.5)
        for call in calls:
            call.cancel()
        await asyncio.sleep(1.0)
    await asyncio.sleep(2.0)
    assert bench.engine.batches == MAX_CONSECUTIVE_FAILURES * [[0, 1, 2, 3]] + [[SELF_TEST]]
    (fatal,) = bench.fatal
    assert fatal.status == 70


@in_virtual_time
async def test_self_test_counts_for_no_request_whatever_its_result():
    missed = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: missed.append(context))
    bench = Bench(alpha=0.1)
    bench.engine.without_answer = SELF_TEST
    for _ in range(MIN_NON_FINITE * MAX_CONSECUTIVE_FAILURES):
        bench.engine.failures = 2
        await bench.outcomes([3])
    await asyncio.sleep(1.0)
    gc.collect()
    assert bench.engine.batches.count([SELF_TEST]) == MIN_NON_FINITE
    assert bench.queue.health.problem is None
    assert bench.fatal == missed == []


@in_virtual_time
async def test_retries_go_before_later_arrivals():
    bench = Bench(size=4)
    bench.engine.failures = 1
    calls = [bench.submit(number) for number in range(4)]
    await asyncio.sleep(0.5)
    calls += [bench.submit(number) for number in range(10, 14)]
    await asyncio.wait(calls)
    assert bench.engine.batches == [[0, 1, 2, 3], [0, 1, 2, 3], [10, 11, 12, 13]]


@in_virtual_time
async def test_cancelled_request_is_not_retried():
    bench = Bench(size=4)
    bench.engine.failures = 1
    calls = [bench.submit(number) for number in range(4)]
    await asyncio.sleep(0.5)
    calls[2].cancel()
    await asyncio.sleep(1.0)
    calls[1].cancel()
    await asyncio.wait(calls)
    assert bench.engine.batches == [[0, 1, 2, 3], [0, 1, 3]]
    assert (bench.scheduler.cancelled.waiting, bench.scheduler.cancelled.computing) == (0, 2)
    assert calls[3].result().indices.tolist() == [3]


@in_virtual_time
async def test_expired_request_is_not_retried():
    bench = Bench(size=4)
    await bench.outcomes(range(4))  # batches take 1 s
    bench.engine.failures = 1
    calls = [bench.submit(number, within=within) for number, within in enumerate((9, 9, 1.5, 2.5))]
    await asyncio.wait(calls)
    assert isinstance(calls[2].exception(), DeadlineUnreachable)
    assert [sorted(batch) for batch in bench.engine.batches[2:]] == [[0, 1, 3]]
    for number in (0, 1, 3):
        assert calls[number].result().indices.tolist() == [number]


@in_virtual_time
async def test_deadline_check_counts_retries():
    bench = Bench(size=4)
    await bench.outcomes([9])
    bench.engine.memory = 2
    calls = [bench.submit(number) for number in range(4)]
    await asyncio.sleep(1.5)  # [0, 1] runs, [2, 3] is next
    with pytest.raises(DeadlineUnreachable):
        bench.submit(5, within=2.4)
    await asyncio.wait(calls)


@in_virtual_time
async def test_failed_batches_do_not_train_the_latency_model():
    bench = Bench(size=8)
    await bench.outcomes(range(8))
    learned = copy.copy(bench.queue.latency)
    busy_s, bench.engine.broken, bench.engine.alpha = bench.scheduler.busy_s, True, 7.0
    await bench.outcomes(range(8))
    assert vars(bench.queue.latency) == vars(learned)
    assert bench.scheduler.busy_s - busy_s == pytest.approx(MAX_ATTEMPTS * 7.0)
    assert [batch.failed for batch in bench.seen.batches] == [False] + MAX_ATTEMPTS * [True]


@in_virtual_time
async def test_unloading_waits_for_retries():
    bench = Bench(size=4)
    bench.engine.failures = 1
    calls = [bench.submit(number) for number in range(4)]
    await asyncio.sleep(0.5)
    assert await bench.scheduler.remove(bench.queue, ShuttingDown("v goes"), 60.0)
    assert [call.done() for call in calls] == [True] * 4
    assert calls[1].result().indices.tolist() == [1]


@in_virtual_time
async def test_unloading_waits_for_a_retry_behind_another_variant():
    bench, engine = Bench(size=4, workers=2), FaultyEngine()
    bench.engine.memory, engine.failures = 2, 1
    queue = bench.scheduler.add("w", engine)
    for number in range(4):
        bench.submit(number)
    call = bench.scheduler.submit(queue, image(7), top_k=1, with_embedding=False, context=context())
    await asyncio.sleep(1.5)  # both workers compute halves of the other batch
    assert await bench.scheduler.remove(queue, ShuttingDown("w goes"), 60.0)
    assert call.done()
    assert call.result().indices.tolist() == [7]


@in_virtual_time
async def test_closing_fails_requests_that_would_be_retried():
    bench = Bench(size=4)
    bench.engine.failures = 1
    calls = [bench.submit(number) for number in range(4)]
    await asyncio.sleep(1.5)
    await bench.scheduler.close()
    await asyncio.wait(calls)
    assert {type(call.exception()) for call in calls} == {ShuttingDown}


@in_virtual_time
async def test_error_in_retry_handling_answers_every_request(monkeypatch):
    bench = Bench(size=4)
    bench.engine.failures = 1
    calls = [bench.submit(number) for number in range(6)]
    monkeypatch.setattr(RetryQueue, "on_failed", lambda *_: 1 / 0)
    await asyncio.wait(calls)
    assert [type(call.exception()) for call in calls] == 4 * [EngineFailed] + 2 * [ShuttingDown]
    assert isinstance(bench.fatal[0].__cause__, ZeroDivisionError)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
@in_virtual_time
async def test_exception_that_ends_processes_fails_its_batch_only(kind):
    bench = Bench()
    bench.engine.error = kind("from a library")
    assert await bench.outcomes(range(2)) == failed(range(2))
    bench.engine.error = None
    assert await bench.outcomes(range(2)) == answered(range(2))


@in_virtual_time
async def test_failed_shadows_are_not_retried():
    bench = Bench(size=4)
    bench.engine.broken = True
    calls = [
        bench.scheduler.submit(
            bench.queue,
            image(number),
            top_k=1,
            with_embedding=False,
            context=context(shadow=True, bulk=True),
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
        return bench.scheduler.submit(
            well, image(7), top_k=1, with_embedding=False, context=context()
        )

    bench.engine.broken = True
    # The other variant computes in between, which says nothing about this one.
    for _ in range(MAX_CONSECUTIVE_FAILURES - 1):
        assert set((await bench.outcomes(range(4))).values()) == {EngineFailed}
        assert (await ask_other()).indices.tolist() == [7]
    assert set((await bench.outcomes(range(4))).values()) == {EngineFailed}
    waits = [bench.submit(number) for number in range(4)]
    await asyncio.wait(waits)
    assert {type(call.exception()) for call in waits} == {VariantUnhealthy}
    problem = "its engine fails on every batch on cpu, and on its self-test"
    assert bench.queue.health.problem == problem
    assert (await ask_other()).indices.tolist() == [7]
    assert [SELF_TEST] in well.engine.batches  # it was tested, too
    assert well.health.problem is None
    assert bench.fatal == []
    with pytest.raises(VariantUnhealthy):
        bench.submit(1)


@in_virtual_time
async def test_device_is_lost_once_every_variant_fails():
    bench = Bench()
    others = [bench.scheduler.add(name, FaultyEngine()) for name in ("w", "x")]
    for engine in (bench.engine, *(queue.engine for queue in others)):
        engine.broken = True
    for _ in range(MAX_CONSECUTIVE_FAILURES):
        await bench.outcomes([1])
    await asyncio.sleep(5.0)
    assert [queue.engine.batches for queue in others] == [[[SELF_TEST]]] * 2
    (fault,) = bench.fatal
    assert fault.status == 70


@in_virtual_time
async def test_recovered_variant_starts_counting_anew():
    bench = Bench()
    bench.scheduler.add("w", FaultyEngine())
    bench.engine.broken = True
    for _ in range(MAX_CONSECUTIVE_FAILURES):
        await bench.outcomes([1])
    await asyncio.sleep(5.0)
    assert bench.queue.health.problem
    bench.engine.broken = False
    await bench.recover()
    bench.engine.broken = True
    for _ in range(MAX_CONSECUTIVE_FAILURES - 1):
        await bench.outcomes([1])
    await asyncio.sleep(5.0)
    assert bench.queue.health.problem is None
    assert bench.fatal == []


@in_virtual_time
async def test_recovered_variant_keeps_the_device_in_service():
    """Another variant fails after it; the device computes this one, so it is not lost."""
    bench, other = Bench(), FaultyEngine()
    queue = bench.scheduler.add("w", other)
    bench.engine.broken = True
    for _ in range(MAX_CONSECUTIVE_FAILURES):
        await bench.outcomes([1])
    await asyncio.sleep(5.0)
    bench.engine.broken, other.broken = False, True
    await bench.recover()
    for _ in range(MAX_CONSECUTIVE_FAILURES):
        with pytest.raises(EngineFailed):
            await bench.scheduler.submit(
                queue, image(1), top_k=1, with_embedding=False, context=context()
            )
    await asyncio.sleep(5.0)
    assert queue.health.problem
    assert bench.queue.health.problem is None
    assert bench.fatal == []
