"""Batches for which an engine has no memory, in virtual time."""

from __future__ import annotations

import asyncio
import math
import weakref
from types import MethodType

import numpy as np
import pytest

from resnet50_server.batching.failed_batches import (
    MAX_CONSECUTIVE_FAILURES,
    OOM_LIMIT_S,
    AdaptiveBatchLimit,
)
from resnet50_server.errors import (
    DeadlineUnreachable,
    DoesNotFit,
)
from tests.support.retry_bench import SELF_TEST, Bench, answered
from tests.support.virtual_time import in_virtual_time


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
async def test_halving_a_batch_does_not_use_up_its_retry():
    bench = Bench()
    bench.engine.memory, bench.engine.failures = 10, 1
    assert await bench.outcomes(range(32)) == answered(range(32))


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
async def test_batch_size_limit_ends_after_a_while():
    bench = Bench()
    bench.engine.memory = 10
    await bench.outcomes(range(32))
    bench.engine.memory = math.inf
    await asyncio.sleep(OOM_LIMIT_S - 7.0)
    await bench.outcomes(range(32))
    assert len(bench.engine.batches[-1]) == 8
    await asyncio.sleep(7.0)
    await bench.outcomes(range(32))
    assert len(bench.engine.batches[-1]) == 32


def test_larger_batch_without_memory_does_not_raise_the_limit():
    limit = AdaptiveBatchLimit(32)
    assert limit.on_out_of_memory(16, 0.0)
    assert not limit.on_out_of_memory(32, 1.0)  # was on the engine already
    assert limit.current(2.0) == 8


@in_virtual_time
async def test_out_of_memory_is_logged_once(caplog):
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
    for _ in range(3 * MAX_CONSECUTIVE_FAILURES):
        assert await bench.outcomes(range(8)) == answered(range(8))
    assert bench.fatal == []
    assert [SELF_TEST] not in bench.engine.batches


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
    assert [len(batch) for batch in bench.engine.batches] == [32, 16, 8, 4, 2, 1]
    for _ in range(MAX_CONSECUTIVE_FAILURES - 1):
        await bench.outcomes([1])
    await asyncio.sleep(2.0)
    assert bench.fatal[0].status == 70  # a new process may have more


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
