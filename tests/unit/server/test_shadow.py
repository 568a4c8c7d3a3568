"""The line of images that a candidate computes as well."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from types import SimpleNamespace

import numpy as np
import pytest

from resnet50_server.batching.result import Result
from resnet50_server.errors import EngineFailed, InvalidImage, Overloaded, Unloading
from resnet50_server.rollout.comparison import Output, SplitStats
from resnet50_server.rollout.shadow import (
    MAX_WAITING,
    MAX_WAITING_BYTES,
    ShadowRequest,
    ShadowWorker,
    output_of,
)
from tests.support.serving import until

CANDIDATE = SimpleNamespace(spec=SimpleNamespace(categories=["dog", "cat"]))
VECTOR = np.array([1.0, 2.0], dtype=np.float32)


class Bench:
    """Shadows whose images are computed when the test says so."""

    def __init__(self) -> None:
        self.jobs: list = []
        self.computing: asyncio.Future | None = None
        self.shadows = ShadowWorker(self.compute, "V2")
        self.stats = SplitStats("a" * 64, "b" * 64)

    async def compute(self, source, task, call):
        assert self.computing is None, "two at once"
        self.jobs.append((source, task, call))
        self.computing = asyncio.get_running_loop().create_future()
        try:
            return await self.computing
        finally:
            self.computing = None

    def add(self, source: bytes = b"image", label: str = "cat") -> None:
        self.shadows.add(ShadowRequest(source, Output(label, VECTOR, 0.001), CANDIDATE, self.stats))

    async def answer(self, error: Exception | None = None) -> None:
        """Let the image that is being computed, or will be next, be computed."""
        await until(lambda: self.computing)
        computing, before = self.computing, len(self.jobs)
        if error is not None:
            computing.set_exception(error)
        else:
            result = Result(np.array([1]), np.ones(1), VECTOR, 0.0, 0.002, 1)
            computing.set_result(result)
        await until(lambda: self.idle or len(self.jobs) > before)

    @property
    def idle(self) -> bool:
        return self.shadows.idle


@contextlib.asynccontextmanager
async def bench():
    one = Bench()
    yield one
    one.shadows.close()
    await until(lambda: one.idle)


async def test_shadow_images_run_one_at_a_time_in_order_as_bulk():
    async with bench() as line:
        for number in range(3):
            line.add(bytes([number]), "cat" if number else "dog")
        for _ in range(3):
            await line.answer()
        assert [source for source, *_ in line.jobs] == [b"\0", b"\1", b"\2"]
        for _, task, call in line.jobs:
            assert (task.variant, call.shadow, call.bulk) == (CANDIDATE, True, True)
            assert (task.top_k, task.with_embedding, call.deadline) == (1, True, None)
        comparison = line.stats.comparison
        assert (comparison.images, comparison.agreed) == (3, 2)
        assert comparison.min_cosine == pytest.approx(1.0)
        assert line.idle  # and starts again
        line.add()
        await line.answer()
        assert comparison.images == 4


async def test_those_that_find_no_room_are_skipped():
    async with bench() as line:
        line.add()
        await until(lambda: line.computing)
        for _ in range(MAX_WAITING):
            assert line.shadows.has_capacity(b"image")
            line.add()
        assert not line.shadows.has_capacity(b"image")
        for _ in range(1000):
            line.add()
        assert line.shadows.waiting == MAX_WAITING
        assert (line.stats.skipped, line.stats.failed) == (1000, 0)
        await line.answer()
        line.add()
        assert line.stats.skipped == 1000


async def test_bytes_that_wait_are_bounded_but_for_one_image():
    huge, half = bytes(MAX_WAITING_BYTES + 1), bytes(MAX_WAITING_BYTES // 2)
    async with bench() as line:
        line.add()
        await until(lambda: line.computing)
        line.add(huge)
        line.add()
        assert line.stats.skipped == 1
        await line.answer()
        line.add(half)
        line.add(half)
        line.add(b"x")
        assert line.stats.skipped == 2
        assert line.shadows.waiting_bytes == 2 * len(half)
        for _ in range(3):
            await line.answer()
        assert line.idle
        assert line.shadows.waiting_bytes == 0
        assert line.stats.comparison.images == 4


async def test_failures_are_counted_and_the_next_image_goes_on(caplog):
    async with bench() as line:
        errors = [
            EngineFailed("the engine failed on this batch"),
            InvalidImage("image", "is not what the candidate takes"),
            RuntimeError("a server error"),
            Overloaded("max_queue_size", "full", 0.1),
            Unloading("the candidate has been replaced"),
        ]
        for _ in (*errors, None):
            line.add()
        for error in errors:
            await line.answer(error)
        await line.answer()
        assert (line.stats.failed, line.stats.skipped) == (3, 1)
        assert line.stats.comparison.images == 1
    faults = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [str(record.exc_info[1]) for record in faults] == ["a server error"]


async def test_after_the_end_nothing_is_computed_or_kept():
    line = Bench()
    for _ in range(5):
        line.add()
    await until(lambda: line.computing)
    line.shadows.close()
    await until(lambda: line.idle)
    line.add()
    assert not line.shadows.waiting
    assert (len(line.jobs), line.idle) == (1, True)
    assert not line.shadows.has_capacity(b"image")


def test_vector_is_copied_out_of_its_batch():
    batch = np.ones((64, 2), dtype=np.float32)
    kept = output_of(Result(np.array([0]), np.ones(1), batch[3], 0.0, 0.002, 64), CANDIDATE)
    batch[:] = 0.0
    assert (kept.label, kept.embedding.tolist()) == ("dog", [1.0, 1.0])
    assert kept.embedding.base is None
