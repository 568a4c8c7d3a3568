"""Batches: how the scheduler forms, submits and completes them, in virtual time."""

from __future__ import annotations

import asyncio
import logging

import pytest

from resnet50_server.batching.batch import BatchPolicy
from resnet50_server.batching.failed_batches import MAX_CONSECUTIVE_FAILURES
from resnet50_server.context import CURRENT_REQUEST, RequestContext
from resnet50_server.errors import (
    EngineFailed,
    QueueFull,
    ShuttingDown,
)
from tests.support.scheduler_bench import Bench
from tests.support.virtual_time import in_virtual_time


@in_virtual_time
async def test_lone_request_starts_at_once():
    bench = Bench()
    result = await bench.submit(7)
    assert result.indices.tolist() == [7]
    assert (result.queue_s, result.batch_size) == (0.0, 1)
    assert result.compute_s == pytest.approx(1.0)


@in_virtual_time
async def test_arrivals_during_a_batch_share_the_next():
    bench = Bench()
    first = bench.submit(0)
    await asyncio.sleep(0.5)
    others = [bench.submit(number) for number in range(1, 6)]
    results = await asyncio.gather(first, *others)
    assert bench.engine.batches == [[0], [1, 2, 3, 4, 5]]
    assert [result.indices[0] for result in results] == [0, 1, 2, 3, 4, 5]
    assert results[3].queue_s == pytest.approx(0.5)


@in_virtual_time
async def test_no_batch_exceeds_max_batch_size():
    bench = Bench(BatchPolicy(max_batch_size=4))
    await asyncio.gather(*(bench.submit(number) for number in range(10)))
    assert [len(batch) for batch in bench.engine.batches] == [4, 4, 2]


@in_virtual_time
async def test_full_queue_is_refused_at_once():
    bench = Bench(BatchPolicy(max_batch_size=1, max_queue_size=2))
    running = bench.submit(0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting = [bench.submit(1), bench.submit(2)]
    with pytest.raises(QueueFull, match=r"max_queue_size \(2\)") as refused:
        bench.submit(3)
    assert refused.value.retry_after_s > 0
    await asyncio.gather(running, *waiting)


@in_virtual_time
async def test_bulk_leaves_a_share_of_the_queue_to_interactive_requests():
    bench = Bench(BatchPolicy(max_batch_size=1, max_queue_size=4))
    calls = [bench.submit(0)]
    await asyncio.sleep(0.1)
    calls += [bench.submit(number, bulk=True) for number in (1, 2, 3)]
    with pytest.raises(QueueFull, match=r"max_queue_size \(4\): 3 .* the rest is for interactive"):
        bench.submit(4, bulk=True)
    calls.append(bench.submit(5))
    with pytest.raises(QueueFull, match=r"max_queue_size \(4\): 4 "):
        bench.submit(6)
    await asyncio.gather(*calls)


@in_virtual_time
async def test_cancelled_request_leaves_the_queue_and_costs_nothing():
    bench = Bench(BatchPolicy(max_queue_size=2))
    running = bench.submit(0)
    await asyncio.sleep(0.1)
    gone, kept = bench.submit(1), bench.submit(2)
    gone.cancel()
    await asyncio.sleep(0)
    assert len(bench.queue.waiting) == 1
    replacement = bench.submit(3)
    await asyncio.gather(running, kept, replacement)
    assert bench.engine.batches == [[0], [2, 3]]


@in_virtual_time
async def test_cancel_during_compute_does_not_disturb_the_batch():
    bench = Bench()
    gone, kept = bench.submit(1), bench.submit(2)
    await asyncio.sleep(0.5)
    gone.cancel()
    assert (await kept).indices.tolist() == [2]
    assert (await bench.submit(3)).indices.tolist() == [3]


@in_virtual_time
async def test_failed_batch_fails_its_requests_only():
    bench = Bench()
    bench.engine.error = RuntimeError("device lost")
    outcomes = await asyncio.gather(bench.submit(1), bench.submit(2), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [EngineFailed, EngineFailed]
    assert isinstance(outcomes[0].__cause__, RuntimeError)
    bench.engine.error = None
    assert (await bench.submit(3)).indices.tolist() == [3]
    assert bench.broken == []


@in_virtual_time
async def test_device_whose_batches_all_fail_is_lost():
    bench = Bench()
    bench.engine.error = RuntimeError("device lost")
    for number in range(MAX_CONSECUTIVE_FAILURES):
        assert bench.broken == []
        with pytest.raises(EngineFailed):
            await bench.submit(number)
    await asyncio.sleep(1.0)  # for the self-test
    assert isinstance(bench.broken[0].__cause__, RuntimeError)
    with pytest.raises(ShuttingDown):
        bench.submit(9)


@in_virtual_time
async def test_nan_output_fails_its_request_only():
    bench = Bench()
    bench.engine.without_answer = 1
    broken, good = await asyncio.gather(bench.submit(1), bench.submit(2), return_exceptions=True)
    assert isinstance(broken, EngineFailed)
    assert good.indices.tolist() == [2]
    with pytest.raises(EngineFailed, match="NaN or Inf"):
        await bench.submit(1, top_k=0, with_embedding=True)


@in_virtual_time
async def test_cancel_as_the_batch_forms_disturbs_no_one():
    """gRPC cancels a call when its deadline passes, which is when the batcher sheds it."""
    bench = Bench()
    await bench.submit(0)
    loop = asyncio.get_running_loop()
    late, kept = bench.submit(1, within=1.5), bench.submit(2)
    late.cancel()  # its callback runs in the next turn
    taken = bench.queue.take_batch(8, loop.time() + 1.0, 0.0)
    assert [waiting.image[0, 0, 0] for waiting in taken] == [2]
    await asyncio.sleep(0)
    assert len(bench.queue.waiting) == 0
    # It was still waiting; the other one is in a batch, and is computed in vain.
    assert (bench.scheduler.cancelled.waiting, bench.scheduler.cancelled.computing) == (1, 0)
    kept.cancel()
    await asyncio.sleep(0)
    assert (bench.scheduler.cancelled.waiting, bench.scheduler.cancelled.computing) == (1, 1)


@in_virtual_time
async def test_scheduler_bug_fails_every_request_and_is_reported():
    bench = Bench()
    first = bench.submit(1)

    def broken_take(*_):
        raise AssertionError("bug in the batcher")

    bench.queue.take_batch = broken_take
    with pytest.raises(ShuttingDown):  # it was not computed: another server may
        await first
    assert isinstance(bench.broken[0].__cause__, AssertionError)
    with pytest.raises(ShuttingDown):
        bench.submit(2)


@in_virtual_time
async def test_queue_delay_fills_a_batch_and_ends_on_time():
    bench = Bench(BatchPolicy(max_batch_size=8, max_queue_delay_ms=200))
    first = bench.submit(0)
    await asyncio.sleep(0.1)
    second = bench.submit(1)
    results = await asyncio.gather(first, second)
    assert bench.engine.batches == [[0, 1]]
    assert results[0].queue_s == pytest.approx(0.2)


@in_virtual_time
async def test_queue_delay_ends_as_soon_as_the_batch_is_full():
    bench = Bench(BatchPolicy(max_batch_size=2, max_queue_delay_ms=5000))
    results = await asyncio.gather(bench.submit(0), bench.submit(1))
    assert results[0].queue_s == pytest.approx(0.0)


@in_virtual_time
async def test_classify_and_embed_share_a_batch():
    for order in ((1, 2), (2, 1)):
        bench, options = Bench(), {1: {"top_k": 3}, 2: {"top_k": 0, "with_embedding": True}}
        asked = {number: bench.submit(number, **options[number]) for number in order}
        classified, embedded = await asked[1], await asked[2]
        assert bench.engine.batches == [list(order)]
        assert (classified.indices.tolist(), classified.embedding) == ([1, 1, 1], None)
        assert (embedded.indices.tolist(), embedded.embedding.tolist()) == ([], [2.0])


@in_virtual_time
async def test_workers_compute_at_the_same_time():
    bench = Bench(BatchPolicy(max_batch_size=1), workers=2)
    calls = [bench.submit(number) for number in range(4)]
    await asyncio.gather(*calls)
    assert bench.device.spans == [(0.0, 1.0), (0.0, 1.0), (1.0, 2.0), (1.0, 2.0)]


@in_virtual_time
async def test_busy_time_is_shared_by_the_workers():
    bench = Bench(BatchPolicy(max_batch_size=1), workers=2)
    await asyncio.gather(bench.submit(1), bench.submit(2))
    assert bench.scheduler.busy_s == pytest.approx(1.0)


@in_virtual_time
async def test_full_batch_is_prefetched_a_smaller_one_just_in_time():
    policy = BatchPolicy(max_batch_size=3)
    bench = Bench(policy, prefetch=1, alpha=1.0, prepare_alpha=0.2)
    await bench.submit(0)
    assert bench.device.spans == [(pytest.approx(0.2), pytest.approx(1.2))]
    first = bench.submit(1)
    await asyncio.sleep(0.5)
    two = [bench.submit(number) for number in (2, 3)]
    await asyncio.sleep(0.1)
    assert bench.engine.batches == [[0], [1]]  # what is still to come may join
    third = bench.submit(4)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert bench.engine.batches == [[0], [1], [2, 3, 4]]
    fifth = bench.submit(5)
    results = await asyncio.gather(first, *two, third, fifth)
    assert bench.engine.batches == [[0], [1], [2, 3, 4], [5]]
    # The device never waits for a batch to be prepared.
    ends = [end for _, end in bench.device.spans]
    assert [start for start, _ in bench.device.spans[2:]] == pytest.approx(ends[1:3])
    assert [result.batch_size for result in results] == [1, 3, 3, 3, 1]
    # Their wait includes the batch that the device computed before theirs.
    assert results[3].queue_s == pytest.approx(0.6)


@in_virtual_time
async def test_batches_in_flight_are_limited():
    bench = Bench(BatchPolicy(max_batch_size=1), prefetch=1)
    calls = [bench.submit(number) for number in range(5)]
    await asyncio.sleep(0.5)
    assert bench.engine.batches == [[0], [1]]
    await asyncio.sleep(1.0)
    assert bench.engine.batches == [[0], [1], [2]]
    await asyncio.gather(*calls)


@in_virtual_time
async def test_failed_batches_in_flight_fail_their_requests_only():
    bench = Bench(BatchPolicy(max_batch_size=1), prefetch=1)
    bench.engine.error = RuntimeError("device lost")
    calls = [bench.submit(number) for number in (1, 2)]
    await asyncio.sleep(2.5)  # both have failed, and their retries are in flight
    bench.engine.error = None
    calls.append(bench.submit(3))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes[:2]] == [EngineFailed, EngineFailed]
    assert outcomes[2].indices.tolist() == [3]


@in_virtual_time
async def test_device_failure_with_batches_in_flight_is_reported_once():
    bench = Bench(BatchPolicy(max_batch_size=1), prefetch=1)
    bench.engine.error = RuntimeError("device lost")
    calls = [bench.submit(number) for number in range(2 * MAX_CONSECUTIVE_FAILURES)]
    await asyncio.gather(*calls, return_exceptions=True)
    await asyncio.sleep(5.0)
    assert len(bench.broken) == 1


@in_virtual_time
async def test_wait_behind_a_slow_batch_is_reported_as_it_was():
    bench = Bench(BatchPolicy(max_batch_size=1), prefetch=1)
    bench.queue.latency.observe(1, 0.1)  # the engine takes 1 s
    results = await asyncio.gather(bench.submit(0), bench.submit(1))
    assert [result.queue_s for result in results] == pytest.approx([0.0, 1.0])


@in_virtual_time
async def test_waiting_for_the_device_is_not_preparation_time():
    bench = Bench(BatchPolicy(max_batch_size=1), prefetch=1, prepare_alpha=0.2)
    await asyncio.gather(*(bench.submit(number) for number in range(5)))
    assert bench.queue.preparation.batch_s(1) == pytest.approx(0.2)


@in_virtual_time
async def test_close_fails_waiting_and_in_flight_requests():
    bench = Bench(BatchPolicy(max_batch_size=1), prefetch=1)
    accepted = [bench.submit(number) for number in range(4)]
    await asyncio.sleep(0.5)
    assert len(bench.engine.batches) == 2
    await bench.scheduler.close()
    outcomes = await asyncio.gather(*accepted, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {ShuttingDown}
    with pytest.raises(ShuttingDown):
        bench.submit(4)
    await asyncio.sleep(5.0)  # the device ends what it had; nothing follows
    assert len(bench.engine.batches) == 2


@in_virtual_time
async def test_many_cancellations_do_not_grow_the_queue():
    bench = Bench()
    running = bench.submit(0)
    await asyncio.sleep(0.1)
    for number in range(5000):
        bench.submit(number % 250).cancel()
        await asyncio.sleep(0)
    assert len(bench.queue.waiting) == 0
    assert bench.queue.waiting.interactive < 200
    await running


@in_virtual_time
async def test_failing_shadows_do_not_lose_the_device():
    bench = Bench(BatchPolicy(max_batch_size=1))
    bench.engine.error = RuntimeError("bad weights")
    for _ in range(2 * MAX_CONSECUTIVE_FAILURES):
        with pytest.raises(EngineFailed):
            await bench.submit(1, shadow=True, bulk=True)
    assert bench.broken == []
    for _ in range(MAX_CONSECUTIVE_FAILURES):
        with pytest.raises(EngineFailed):
            await bench.submit(1)
    await asyncio.sleep(1.0)  # for the self-test
    assert len(bench.broken) == 1


@in_virtual_time
async def test_device_faults_are_logged_without_a_request():
    logged: list[tuple[str, RequestContext | None]] = []

    class Log(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logged.append((record.getMessage(), CURRENT_REQUEST.get(None)))

    bench = Bench()
    bench.engine.error = RuntimeError("as the test wants it")

    async def ask() -> None:
        CURRENT_REQUEST.set(RequestContext("Classify", "other", ()))
        with pytest.raises(EngineFailed):
            await bench.submit(1)

    handler = Log()
    logging.getLogger("resnet50_server").addHandler(handler)
    try:
        await asyncio.create_task(ask())
    finally:
        logging.getLogger("resnet50_server").removeHandler(handler)
    attempts = [f"a batch of 1 failed on variant v (attempt {number} of 2)" for number in (1, 2)]
    assert logged == [(message, None) for message in attempts]
