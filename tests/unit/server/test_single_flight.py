"""Requests for one image share its computation (single-flight), in virtual time."""

from __future__ import annotations

import asyncio
import gc
import weakref

import numpy as np
import pytest

from resnet50.v1 import image_pb2
from resnet50_server.context import RequestContext
from resnet50_server.errors import (
    DeadlineUnreachable,
    EngineFailed,
    InvalidImage,
    QueueFull,
    ShuttingDown,
)
from resnet50_server.images.pixel_budget import SMALL_PIXELS, PixelBudget
from resnet50_server.images.source import RawImage
from resnet50_server.inference.pipeline import InferenceTask
from resnet50_server.inference.response_cache import (
    CacheStats,
)
from resnet50_server.inference.single_flight import SingleFlight
from tests.support.pipeline_bench import BROKEN, DECODE_S, Bench, now
from tests.support.virtual_device import image
from tests.support.virtual_time import in_virtual_time


@pytest.mark.parametrize("wait_s", [0.0, DECODE_S / 2, DECODE_S + 0.5])
@in_virtual_time
async def test_concurrent_requests_share_a_computation(wait_s):
    bench = Bench()
    first = bench.ask(7)
    await asyncio.sleep(wait_s)
    others = [bench.ask(7) for _ in range(5)]
    results = [answer for answer in await asyncio.gather(first, *others)]
    assert (bench.decoded, bench.engine.batches) == ([b"\x07"], [[7]])
    assert now() == DECODE_S + 1.0
    assert [one.cache for one in results] == ["none"] + ["shared"] * 5
    assert [one.indices.tolist() for one in results] == [[7]] * 6
    for other in results[1:]:
        assert other.queue_s > 0.0
        assert other.compute_s == 0.0
        assert (other.batch_size, other.batch) == (1, None)
    assert bench.stats == CacheStats(hits=0, shared=5, misses=1)
    assert await bench.uses(bench.ask(7)) == ["hit"]
    assert bench.stats == CacheStats(hits=1, shared=5, misses=1)


@in_virtual_time
async def test_decoding_continues_if_the_first_request_is_cancelled():
    bench = Bench()
    leader, *others = [bench.ask(7) for _ in range(4)]
    await asyncio.sleep(DECODE_S / 2)
    leader.cancel()
    assert await bench.uses(*others) == ["shared"] * 3
    assert (bench.pool.calls, bench.engine.batches) == (1, [[7]])
    assert leader.cancelled()


@pytest.mark.parametrize("queued", [True, False])
@in_virtual_time
async def test_computation_continues_if_its_first_caller_cancels(queued):
    bench = Bench()
    before = bench.ask(1) if queued else None
    await asyncio.sleep(0.1)
    leader, other = bench.ask(7), bench.ask(7)
    await asyncio.sleep(DECODE_S + 0.1)
    leader.cancel()
    assert await bench.uses(other) == ["shared"]
    assert bench.engine.batches == ([[1], [7]] if queued else [[7]])
    assert leader.cancelled()
    if before is not None:
        await before


@in_virtual_time
async def test_computation_is_cancelled_with_its_last_request():
    bench = Bench()
    before = bench.ask(1)
    await asyncio.sleep(0.1)
    asked = [bench.ask(7) for _ in range(3)]
    await asyncio.sleep(DECODE_S + 0.1)
    for one in asked[:2]:
        one.cancel()
    await asyncio.sleep(0.01)
    assert len(bench.variant.queue.waiting) == 1
    asked[2].cancel()
    await asyncio.sleep(0.01)
    assert len(bench.variant.queue.waiting) == 0
    await before
    late = bench.ask(7)
    assert await bench.uses(late) == ["none"]
    assert bench.engine.batches == [[1], [7]]


@in_virtual_time
async def test_request_during_that_cancellation_is_answered():
    bench = Bench()
    before = bench.ask(1)
    await asyncio.sleep(0.1)
    leader = bench.ask(7)
    await asyncio.sleep(DECODE_S + 0.1)
    leader.cancel()
    late = [bench.ask(7)]
    await asyncio.sleep(0)
    late.append(bench.ask(7))
    answers = await asyncio.gather(*late)
    assert [answer.indices.tolist() for answer in answers] == [[7], [7]]
    await before


@in_virtual_time
async def test_computation_begun_after_a_cancellation_is_shared():
    bench = Bench()
    cancelled = bench.ask(7)
    await asyncio.sleep(DECODE_S / 2)
    cancelled.cancel()
    first = bench.ask(7)
    await asyncio.sleep(DECODE_S / 2)
    assert await bench.uses(first, bench.ask(7)) == ["none", "shared"]


@in_virtual_time
async def test_cancelled_follower_does_not_cancel_the_computation():
    bench = Bench()
    leader, other = bench.ask(7), bench.ask(7)
    await asyncio.sleep(DECODE_S + 0.5)
    other.cancel()
    assert await bench.uses(leader) == ["none"]
    assert bench.stats == CacheStats(shared=0, misses=1)


@in_virtual_time
async def test_follower_is_refused_at_its_own_deadline():
    bench = Bench()
    bench.engine.alpha = 5.0  # which is not known yet
    leader = bench.ask(7, within=1.0)
    other = bench.ask(7, within=2.0)
    with pytest.raises(DeadlineUnreachable, match="for another request"):
        await other
    assert now() == 2.0
    assert await bench.uses(leader) == ["none"]
    assert bench.engine.batches == [[7]]


@in_virtual_time
async def test_follower_computes_if_the_starter_is_too_late():
    bench = Bench()
    await bench.ask(1)  # from now on it is known that a batch takes a second
    bench.engine.alpha = 3.0
    before = bench.ask(2)
    await asyncio.sleep(DECODE_S + 1.1)
    # The batch that runs takes longer than expected; they would be in time if it ended now.
    leader, other = bench.ask(7, within=1.5), bench.ask(7, within=9.0)
    with pytest.raises(DeadlineUnreachable):
        await leader
    assert await bench.uses(other) == ["none"]
    await before
    assert bench.engine.batches == [[1], [2], [7]]


@in_virtual_time
async def test_waiters_take_no_queue_slot_and_keep_their_deadlines():
    bench = Bench(max_queue_size=1, max_batch_size=1)
    bench.ask(1)
    await asyncio.sleep(DECODE_S + 0.1)
    waiting = [bench.ask(2) for _ in range(3)]
    await asyncio.sleep(DECODE_S + 0.1)
    refused = [bench.ask(3) for _ in range(3)]
    errors = await asyncio.gather(*refused, return_exceptions=True)
    assert {type(one) for one in errors} == {QueueFull}
    # Nothing was decoded for them.
    assert now() == pytest.approx(2 * (DECODE_S + 0.1))
    assert bench.pool.calls == 2
    assert await bench.uses(*waiting) == ["none", "shared", "shared"]
    assert await bench.uses(bench.ask(2)) == ["hit"]


@in_virtual_time
async def test_hit_needs_no_queue_slot():
    bench = Bench(max_queue_size=1, max_batch_size=1)
    await bench.ask(7)
    full = [bench.ask(1)]
    await asyncio.sleep(DECODE_S + 0.1)
    full.append(bench.ask(2))
    await asyncio.sleep(DECODE_S + 0.1)
    with pytest.raises(QueueFull):
        await bench.ask(3)
    assert await bench.uses(bench.ask(7)) == ["hit"]
    await asyncio.gather(*full)


@in_virtual_time
async def test_interactive_image_does_not_wait_for_bulk():
    bench = Bench(max_batch_size=1)
    others = [bench.ask(number) for number in range(1, 6)]
    bulk = bench.ask(7, bulk=True)
    await asyncio.sleep(DECODE_S + 0.5)
    interactive = [bench.ask(7), bench.ask(7)]
    later = bench.ask(7, bulk=True)
    done = []
    for one in (*others, bulk):
        one.add_done_callback(lambda one: done.append(one))
    assert await bench.uses(*interactive) == ["none", "shared"]
    assert bulk not in done
    assert await bench.uses(later, bulk) == ["shared", "none"]
    assert bench.engine.batches.count([7]) == 2
    assert len(bench.cache) == 6


@in_virtual_time
async def test_end_of_one_computation_keeps_that_of_other_priority():
    bench = Bench()
    bulk = bench.ask(7, bulk=True)
    await asyncio.sleep(DECODE_S / 2)
    first = bench.ask(7)
    await asyncio.sleep(DECODE_S / 4)
    bulk.cancel()
    await asyncio.sleep(0)
    assert await bench.uses(first, bench.ask(7)) == ["none", "shared"]
    assert bench.engine.batches == [[7]]


@in_virtual_time
async def test_single_image_does_not_wait_for_the_same_stream_frame():
    bench = Bench(max_batch_size=1)
    frames = []
    for number in range(1, 7):
        frames.append(bench.ask(number, stream="stream"))
        await asyncio.sleep(0.01)
    single = bench.ask(6)
    others = bench.ask(6, stream="other"), bench.ask(5, stream="other")
    assert await bench.uses(single) == ["none"]
    assert bench.engine.batches[:3] == [[1], [2], [6]]
    # Frames of several streams share.
    assert await bench.uses(*others) == ["shared", "shared"]
    assert await bench.uses(*frames) == ["none"] * 6
    assert bench.engine.batches.count([5]) == 1


@in_virtual_time
async def test_broken_image_is_decoded_once_for_all_waiters():
    bench = Bench()
    for times in (1, 2):
        asked = [bench.ask(BROKEN) for _ in range(4)]
        errors = await asyncio.gather(*asked, return_exceptions=True)
        assert [(type(one), one.field, one.kind, str(one)) for one in errors] == [
            (InvalidImage, "image.encoded", "truncated", "image.encoded: is broken")
        ] * 4
        assert len(set(map(id, errors))) == 4
        assert len(bench.decoded) == times
    assert len(bench.cache) == 0


@in_virtual_time
async def test_failed_batch_fails_all_waiters_once():
    bench = Bench()
    bench.engine.error = RuntimeError("broken")
    asked = [bench.ask(7) for _ in range(8)]
    errors = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(one) for one in errors} == {EngineFailed}
    assert {type(one.__cause__) for one in errors} == {RuntimeError}
    assert bench.engine.batches == [[7], [7]]  # the batch was retried
    bench.engine.error = None
    assert await bench.uses(bench.ask(7)) == ["none"]


@in_virtual_time
async def test_non_finite_result_is_not_stored():
    bench = Bench()
    bench.engine.without_answer = 7
    asked = [bench.ask(7), bench.ask(7), bench.ask(8)]
    one, other, good = await asyncio.gather(*asked, return_exceptions=True)
    assert (type(one), type(other)) == (EngineFailed, EngineFailed)
    assert good.indices.tolist() == [8]
    assert len(bench.cache) == 1
    with pytest.raises(EngineFailed):
        await bench.ask(7)
    bench.engine.without_answer = None
    assert (await bench.ask(7)).indices.tolist() == [7]


@in_virtual_time
async def test_shutdown_fails_all_that_wait():
    bench = Bench()
    asked = [bench.ask(7) for _ in range(3)]
    await asyncio.sleep(DECODE_S + 0.5)
    await bench.scheduler.close()
    errors = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(one) for one in errors} == {ShuttingDown}


@in_virtual_time
async def test_queued_frames_of_one_image_are_computed_once():
    bench = Bench(max_queue_size=1, max_batch_size=1)
    bench.ask(1)
    await asyncio.sleep(DECODE_S + 0.1)
    bench.ask(2)
    await asyncio.sleep(DECODE_S + 0.1)
    frames = [bench.ask(7, stream=stream) for stream in ("one", "other")]
    assert await bench.uses(*frames) == ["none", "shared"]
    assert bench.engine.batches == [[1], [2], [7]]


@in_virtual_time
async def test_pixels_that_need_no_decoding_are_cached_and_coalesced():
    def decode(source, *_, **__) -> np.ndarray:
        return image(bytes(getattr(source, "pixels", source))[0])

    bench = Bench(decode=decode)
    side = bench.variant.spec.transform.resize
    pixels, other = (
        RawImage(side, side, image_pb2.PIXEL_FORMAT_GRAY, 0, bytes([number]) * side**2)
        for number in (7, 8)
    )
    before = bench.ask(1)
    await asyncio.sleep(DECODE_S + 0.1)
    first, second = (bench.ask(pixels, stream="stream") for _ in range(2))
    leaving = bench.ask(other, stream="stream")
    await asyncio.sleep(0.1)
    leaving.cancel()
    assert await bench.uses(first, second) == ["none", "shared"]
    assert await bench.uses(bench.ask(pixels, stream="stream")) == ["hit"]
    await before
    assert bench.pool.calls == 1  # of the one before
    assert bench.engine.batches == [[1], [7]]


@in_virtual_time
async def test_shadow_is_computed_and_not_cached():
    bench = Bench()
    await bench.ask(7)
    task = InferenceTask(bench.variant, 1, False)
    shadow = RequestContext("Shadow", "", (), shadow=True)
    result = await bench.pipeline.infer(b"\x07", task, shadow)
    assert (result.cache, bench.engine.batches) == ("none", [[7], [7]])
    assert bench.stats == CacheStats(misses=1)


@in_virtual_time
async def test_cancelled_image_releases_its_decode_memory():
    large = SMALL_PIXELS + 1
    budget = PixelBudget(large)

    def decode(source, _, reserve, **__) -> np.ndarray:
        with reserve(large):
            return image(source[0])

    bench = Bench(decode=decode, pixel_budget=budget)
    with budget.reserve(large):
        cancelled = bench.ask(7)
        await asyncio.sleep(DECODE_S + 0.01)  # it waits for the memory
    await asyncio.sleep(DECODE_S / 2)  # it waits for a thread
    cancelled.cancel()
    assert await asyncio.wait_for(bench.uses(bench.ask(8)), 60) == ["none"]
    assert bench.engine.batches == [[8]]


@in_virtual_time
async def test_without_a_cache_each_image_is_computed():
    bench = Bench(cached=False)
    assert await bench.uses(bench.ask(7), bench.ask(7)) == ["none", "none"]
    assert await bench.uses(bench.ask(7)) == ["none"]
    assert bench.engine.batches == [[7, 7], [7]]


@pytest.mark.parametrize(
    "error",
    [
        QueueFull("max_queue_size", "full", 1.0),
        InvalidImage("image.encoded", "is broken", kind="truncated"),
        ShuttingDown(),
        RuntimeError("a server error"),
    ],
)
@in_virtual_time
async def test_failure_is_copied_to_each_request(error):
    flights, runs = SingleFlight(), []

    async def compute() -> None:
        runs.append(now())
        await asyncio.sleep(1)
        raise error

    waiting = [asyncio.create_task(flights.run("key", compute)) for _ in range(3)]
    errors = await asyncio.gather(*waiting, return_exceptions=True)
    assert [(type(one), str(one), vars(one)) for one in errors] == [
        (type(error), str(error), vars(error))
    ] * 3
    assert len(set(map(id, errors))) == 3
    assert len(runs) == 1


@in_virtual_time
async def test_missed_deadline_is_not_shared():
    flights, runs = SingleFlight(), []

    async def compute() -> int:
        runs.append(now())
        await asyncio.sleep(1)
        if len(runs) == 1:
            raise DeadlineUnreachable("late")
        return 7

    first, *others = [asyncio.create_task(flights.run("key", compute)) for _ in range(3)]
    with pytest.raises(DeadlineUnreachable):
        await first
    assert await asyncio.gather(*others) == [(7, False), (7, True)]
    assert len(runs) == 2


@in_virtual_time
async def test_error_of_a_computation_needs_no_garbage_collection():
    flights, errors = SingleFlight(), []

    class Failed(Exception):
        def __init__(self) -> None:
            errors.append(weakref.ref(self))

    async def compute() -> None:
        raise Failed

    gc.disable()
    try:
        waiting = [asyncio.create_task(flights.run("key", compute)) for _ in range(2)]
        await asyncio.wait(waiting)
        assert [type(one.exception()) for one in waiting] == [Failed, Failed]
        del waiting
        await asyncio.sleep(0.1)
        assert [error() for error in errors] == [None]
    finally:
        gc.enable()
