"""How a device is fed and an engine warmed up."""

from __future__ import annotations

import asyncio
import threading
from functools import partial

import numpy as np
import pytest

import resnet50_server.lifecycle.devices
from resnet50_server.batching.batch import BatchPolicy
from resnet50_server.batching.scheduler import Scheduler
from resnet50_server.engines.base import BatchOutput
from resnet50_server.errors import ShuttingDown, WeightsError
from resnet50_server.lifecycle import loader
from resnet50_server.lifecycle.devices import Devices
from resnet50_server.lifecycle.engine_builder import WARM_UP_S, BuiltEngine, warm_up
from resnet50_server.lifecycle.loaded_variant import LoadedVariant, LoadProgress
from resnet50_server.lifecycle.loader import MIN_DRAIN_S, load_variant, unload_variant
from resnet50_server.settings import Settings
from resnet50_server.variants.spec import parse_variant
from tests.support import virtual_time
from tests.support.virtual_device import FakeEngine, VirtualThreads, context, image


class StatedEngine:
    """Says that a batch took `alpha + beta * n` seconds, and twice that when the size is new."""

    def __init__(self, alpha: float, beta: float) -> None:
        self.alpha, self.beta = alpha, beta
        self.sizes: list[int] = []

    def run(self, images, top_k, with_embeddings) -> BatchOutput:
        count = len(images)
        compute_s = (self.alpha + self.beta * count) * (1 if count in self.sizes else 2)
        self.sizes.append(count)
        indices = np.zeros((count, top_k), dtype=np.int64)
        ones = np.ones((count, top_k), dtype=np.float32)
        return BatchOutput(indices, ones, np.ones((count, 2048), dtype=np.float32), compute_s)

    def padded(self, images: int) -> int:
        return images

    def close(self) -> None:
        pass


class ClosingEngine(FakeEngine):
    """Remembers the threads that it was closed on."""

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__(alpha)
        self.closed_on: list[str] = []

    def close(self) -> None:
        self.closed_on.append(threading.current_thread().name)


def opened(engine: FakeEngine) -> BuiltEngine:
    return BuiltEngine(engine, "torch", "0" * 64, 0, "cpu", "fp32", trained=False)


@pytest.mark.parametrize(
    ("alpha", "beta", "sizes"),
    [
        (0.002, 0.0001, [1, 1, 32, 32]),  # a GPU: all of it
        (0.005, 0.095, [1, 1, 2, 2]),  # a slow CPU: as much as the slope needs
        (0.000, 10.000, [1, 1]),
    ],
)
def test_warming_up_is_as_thorough_as_the_time_for_it_allows(alpha, beta, sizes):
    engine = StatedEngine(alpha, beta)
    measured = warm_up(engine, parse_variant("u=random:0"), max_batch_size=32)
    assert engine.sizes == sizes
    assert measured == [(size, pytest.approx(alpha + beta * size)) for size in sizes[::2]]
    larger = [size for size, _ in measured[1:]]
    assert sum(2 * (alpha + beta * size) for size in larger) <= WARM_UP_S


async def test_gpu_prefetches_one_batch_cpu_runs_one_per_instance():
    devices = Devices(Settings(variants=["u=random:0"], instances=3), lambda error: None)
    try:
        gpu, _ = devices.get("cuda:0")
        assert (gpu.workers, gpu.prefetch) == (1, 1)
        cpu, threads = devices.get("cpu")
        assert (cpu.workers, cpu.prefetch) == (3, 0)
        assert devices.get("cpu")[0] is cpu
        # As many threads as there are batches at once: each waits until all have come.
        together = threading.Barrier(3)
        waiting = [threads.submit(partial(together.wait, 30)) for _ in range(3)]
        assert sorted(await asyncio.gather(*waiting)) == [0, 1, 2]
    finally:
        await devices.close()


async def test_single_device_engine_computes_one_batch_at_a_time():
    settings = Settings(variants=["u=random:0"], engine="timed", instances=3)
    devices = Devices(settings, lambda error: None)
    try:
        scheduler, _ = devices.get("cpu")
        assert (scheduler.workers, scheduler.prefetch) == (1, 0)
    finally:
        await devices.close()


async def no_limit(needed_bytes: int) -> None:
    """Make as much room as is wanted."""


async def test_stop_closes_engines_outside_engine_threads():
    devices = Devices(Settings(variants=["u=random:0"], instances=1), lambda fault: None)
    scheduler, _ = devices.get("cpu")
    engines = [ClosingEngine(), ClosingEngine()]
    for name, engine in zip("ab", engines, strict=True):
        scheduler.add(name, engine)
    await devices.close()
    for engine in engines:
        (thread,) = engine.closed_on
        assert not thread.startswith(("engine", "MainThread"))


@pytest.mark.parametrize("hung", [True, False])
async def test_hung_engine_is_not_closed_or_awaited(hung, monkeypatch, caplog):
    monkeypatch.setattr(
        resnet50_server.lifecycle.devices, "CLOSE_TIMEOUT_S", 600.0 if hung else 0.01
    )
    devices = Devices(Settings(variants=["u=random:0"], instances=1), lambda fault: None)
    scheduler, _ = devices.get("cpu")
    engine, entered, leave = ClosingEngine(), threading.Event(), threading.Event()

    def run(*_) -> None:
        entered.set()
        leave.wait(60)

    engine.run = run
    call = scheduler.submit(
        scheduler.add("a", engine), image(0), top_k=1, with_embedding=False, context=context()
    )
    try:
        assert await asyncio.to_thread(entered.wait, 60)
        scheduler.hung = hung
        await devices.close()
        with pytest.raises(ShuttingDown):
            await call
        assert engine.closed_on == []
        assert ("not closed" in caplog.text) is not hung
    finally:
        leave.set()


async def test_failed_warm_up_closes_outside_engine_threads(monkeypatch):
    engine = ClosingEngine()
    engine.without_answer = 128  # the warm-up image
    monkeypatch.setattr(loader, "build_engine", lambda *_: opened(engine))
    settings = Settings(variants=["u=random:0"], instances=1)
    devices = Devices(settings, lambda error: None)
    try:
        with pytest.raises(WeightsError, match="NaN or infinity"):
            await load_variant(
                settings, devices, parse_variant("u=random:0"), LoadProgress(), no_limit
            )
        (thread,) = engine.closed_on
        assert not thread.startswith(("engine", "MainThread"))
    finally:
        await devices.close()


class AtOnce(VirtualThreads):
    """Runs what is no batch within the turn."""

    async def run(self, call):
        return call()


@pytest.mark.parametrize(
    ("timeout_s", "batch_s", "closed"),
    [(30.0, 20.0, True), (30.0, 40.0, False), (0.0, 0.9 * MIN_DRAIN_S, True)],
)
def test_variant_with_a_hung_batch_leaks_its_engine(timeout_s, batch_s, closed, caplog):
    engine = ClosingEngine(batch_s)

    async def unload() -> tuple[float, bool]:
        loop, threads = asyncio.get_running_loop(), AtOnce()
        scheduler = Scheduler(BatchPolicy(), threads)
        queue = scheduler.add("u", engine)
        variant = LoadedVariant(
            parse_variant("u=random:0"), opened(engine), queue, scheduler, threads
        )
        running = scheduler.submit(
            queue, image(0), top_k=1, with_embedding=False, context=context()
        )
        await asyncio.sleep(0.1)
        freed = await unload_variant(variant, timeout_s)
        took_s = loop.time()
        await running
        return took_s, freed

    took_s, freed = virtual_time.run(unload())
    assert freed is closed
    assert took_s == pytest.approx(batch_s if closed else timeout_s + 0.1, abs=0.05)
    assert bool(engine.closed_on) is closed
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == (not closed)
    assert all("variant u" in text and "30 s" in text for text in errors)
