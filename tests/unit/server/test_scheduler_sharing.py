"""A device shared by streams, bulk requests and variants, in virtual time."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from resnet50_server.batching.batch import BatchPolicy
from resnet50_server.context import BULK_EVERY
from resnet50_server.errors import (
    DeadlineUnreachable,
)
from tests.support.scheduler_bench import Bench
from tests.support.virtual_device import FakeEngine
from tests.support.virtual_time import in_virtual_time


@in_virtual_time
async def test_bulk_in_decoding_delays_no_interactive_request():
    bench = Bench(BatchPolicy(max_batch_size=1))
    await bench.submit(0)
    with contextlib.ExitStack() as stack:
        for _ in range(BULK_EVERY - 1):
            stack.enter_context(bench.accept(bulk=True))
        await bench.submit(1, within=1.0)
        with pytest.raises(DeadlineUnreachable):
            bench.submit(2, within=2.0, bulk=True)


@in_virtual_time
async def test_variants_share_the_engine_thread_but_not_batches():
    bench = Bench()
    other_engine = FakeEngine()
    other = bench.scheduler.add("other", other_engine)
    await asyncio.gather(
        bench.submit(1), bench.submit(2, queue=other), bench.submit(3), bench.submit(4, queue=other)
    )
    assert bench.engine.batches == [[1, 3]]
    assert other_engine.batches == [[2, 4]]


async def saturate(bench: Bench, flow: str, window: int, answered: dict[str, int]) -> None:
    """Keep `window` images of a flow waiting for ever, as a stream at full speed does."""

    async def one() -> None:
        while True:
            await bench.submit(0, stream=flow)
            answered[flow] = answered.get(flow, 0) + 1

    await asyncio.gather(*(one() for _ in range(window)))


@in_virtual_time
async def test_streams_share_the_device_equally():
    bench = Bench(BatchPolicy(max_batch_size=8))
    answered: dict[str, int] = {}
    windows = {f"flow {number}": 4 * (1 + number) for number in range(10)}
    tasks = [
        asyncio.create_task(saturate(bench, flow, window, answered))
        for flow, window in windows.items()
    ]
    await asyncio.sleep(500)
    for task in tasks:
        task.cancel()
    shares = [answered[flow] / sum(answered.values()) for flow in windows]
    assert 0.09 < min(shares) <= max(shares) < 0.11


@in_virtual_time
async def test_single_image_waits_for_one_image_of_each_flow():
    bench = Bench(BatchPolicy(max_batch_size=16))
    tasks = [asyncio.create_task(saturate(bench, f"flow {number}", 32, {})) for number in range(10)]
    for _ in range(50):
        await asyncio.sleep(1.7)
        result = await bench.submit(1)
        # The batch that runs, then the one that takes it along.
        assert result.queue_s <= 1.0 + 1e-9
    for task in tasks:
        task.cancel()


@in_virtual_time
async def test_images_of_a_flow_keep_their_order():
    bench = Bench(BatchPolicy(max_batch_size=2))
    await asyncio.gather(*(bench.submit(number, stream="a") for number in range(7)))
    assert [number for batch in bench.engine.batches for number in batch] == list(range(7))


@in_virtual_time
async def test_cancelled_images_of_a_flow_do_not_block_the_rest():
    bench = Bench(BatchPolicy(max_batch_size=1))
    running = bench.submit(0)
    await asyncio.sleep(0.1)
    images = [bench.submit(number, stream="a") for number in range(1, 6)]
    for gone in (0, 1, 3):  # the one in line, the next one, one in the middle
        images[gone].cancel()
    await asyncio.gather(running, images[2], images[4])
    assert bench.engine.batches == [[0], [3], [5]]
    assert len(bench.queue.waiting) == 0


@in_virtual_time
async def test_variant_with_the_earliest_deadline_goes_first():
    bench = Bench()
    slow = FakeEngine(alpha=3.0)
    other = bench.scheduler.add("slow", slow, [(1, 3.0)])
    bench.queue.latency.observe(1, 1.0)
    running = bench.submit(0)
    await asyncio.sleep(0.1)
    patient = bench.submit(1, within=20.0)
    urgent = bench.submit(2, queue=other, within=5.0)
    await asyncio.gather(running, patient, urgent)
    assert [start for start, _ in bench.device.spans] == pytest.approx([0.0, 1.0, 4.0])


@in_virtual_time
async def test_bulk_does_not_hide_its_variants_urgency():
    bench = Bench(BatchPolicy(max_batch_size=1), alpha=0.1)
    other = bench.scheduler.add("w", bench.engine)
    running = [bench.submit(number) for number in range(BULK_EVERY)]
    bulk = bench.submit(97, bulk=True)
    await asyncio.sleep(0.1 * BULK_EVERY - 0.05)  # the last of those is being computed
    rival, urgent = bench.submit(98, within=5.0, queue=other), bench.submit(99, within=4.0)
    assert bench.queue.waiting.peek().item.future is bulk
    await asyncio.gather(*running, bulk, rival, urgent)
    assert bench.engine.batches[BULK_EVERY:] == [[97], [99], [98]]


@in_virtual_time
async def test_batch_is_not_delayed_past_a_deadline_behind_bulk():
    bench = Bench(BatchPolicy(max_batch_size=BULK_EVERY, max_queue_delay_ms=60_000.0))
    running = [bench.submit(number) for number in range(BULK_EVERY)]
    bulk = bench.submit(98, bulk=True)
    await asyncio.sleep(0.5)
    urgent = bench.submit(99, within=5.0)
    assert bench.queue.waiting.peek().item.future is bulk
    await asyncio.gather(*running, bulk, urgent)
    assert bench.engine.batches[1:] == [[98, 99]]


@in_virtual_time
async def test_bulk_of_another_variant_gets_a_sixteenth():
    bench = Bench(BatchPolicy(max_batch_size=1), alpha=0.1)
    other = bench.scheduler.add("w", FakeEngine(alpha=0.2), [(1, 0.2)])
    running = bench.submit(0)
    await asyncio.sleep(0.05)
    bulk = [bench.submit(100 + number, bulk=True, queue=other) for number in range(3)]
    served_at = []
    for one in bulk:
        one.add_done_callback(lambda _: served_at.append(len(bench.engine.batches)))
    waiting = [bench.submit(number) for number in range(1, 80)]
    await asyncio.gather(running, *waiting, *bulk)
    # A batch of theirs lasts as long as two of ours: one for 2 x 16 of ours, and what is left.
    assert bench.engine.batches == [[number] for number in range(80)]
    assert other.engine.batches == [[100], [101], [102]]
    first, second, third = served_at
    assert first == pytest.approx(2 * BULK_EVERY, abs=3)
    assert second - first == pytest.approx(2 * BULK_EVERY, abs=2)
    assert third == 80


@in_virtual_time
async def test_bulk_of_another_variant_runs_when_idle():
    bench = Bench(alpha=0.1)
    other = bench.scheduler.add("w", bench.engine, [(1, 0.1)])
    result = await bench.submit(1, bulk=True, queue=other)
    assert result.queue_s == 0.0
