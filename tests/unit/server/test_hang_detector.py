"""The hang detector in virtual time: a batch that runs for too long ends the server."""

from __future__ import annotations

import asyncio

import pytest

import resnet50_server.batching.scheduler
from resnet50_server.batching.batch import BatchPolicy
from resnet50_server.batching.queue import VariantQueue
from resnet50_server.batching.scheduler import Scheduler
from resnet50_server.errors import ShuttingDown
from resnet50_server.runtime.fatal import EngineHung
from tests.support.virtual_device import FakeEngine, VirtualThreads, context, image
from tests.support.virtual_time import in_virtual_time

TIMEOUT_S = 60.0
FOR_EVER = 10.0**6


@pytest.fixture(autouse=True)
def dumped(monkeypatch) -> list[None]:
    """Count the dumps of all stacks instead of writing them."""
    dumps: list[None] = []
    monkeypatch.setattr(
        resnet50_server.batching.scheduler, "dump_stacks", lambda: dumps.append(None)
    )
    return dumps


class Bench:
    def __init__(self, workers: int = 1, prefetch: int = 0, timeout_s: float = TIMEOUT_S) -> None:
        self.faults: list[EngineHung] = []
        self.engine = FakeEngine(alpha=0.0)
        self.scheduler = Scheduler(
            BatchPolicy(max_batch_size=1),
            VirtualThreads(workers),
            self.faults.append,
            workers,
            prefetch,
            device="cpu",
            engine_timeout_s=timeout_s,
        )
        self.queue = self.scheduler.add("v", self.engine)

    def submit(self, lasting: float = 0.0, queue: VariantQueue | None = None):
        """Have a batch computed that takes so long, once it is its turn."""
        queue = queue or self.queue
        call = self.scheduler.submit(
            queue, image(1), top_k=1, with_embedding=False, context=context()
        )
        self.engine.alpha = lasting
        return call


def now() -> float:
    return asyncio.get_running_loop().time()


@in_virtual_time
async def test_hung_batch_fails_all_requests(dumped):
    bench = Bench()
    hung = bench.submit(FOR_EVER)
    await asyncio.sleep(10.0)
    waits = bench.submit()
    await asyncio.wait([hung, waits])
    assert now() == pytest.approx(TIMEOUT_S, abs=2.0)
    for call in (hung, waits):
        assert isinstance(call.exception(), ShuttingDown)
    with pytest.raises(ShuttingDown):
        bench.submit()
    (fault,) = bench.faults
    assert fault.status == 71
    assert "variant v has not returned from the engine for 6" in str(fault)
    assert bench.scheduler.hung
    assert len(dumped) == 1


@in_virtual_time
async def test_long_batch_within_the_timeout_is_not_hung():
    bench = Bench()
    call = bench.submit(TIMEOUT_S - 2.0)
    await asyncio.sleep(30.0)
    later = bench.submit(TIMEOUT_S - 2.0)  # its own time begins when the device comes to it
    await asyncio.wait([call, later])
    assert (call.exception(), later.exception(), bench.faults) == (None, None, [])


@in_virtual_time
async def test_slow_device_has_a_longer_timeout():
    bench = Bench()
    bench.queue.latency.observe(1, 10.0)
    call = bench.submit(99.0)
    await call
    with pytest.raises(ShuttingDown):
        await bench.submit(FOR_EVER)
    assert len(bench.faults) == 1


@in_virtual_time
async def test_time_while_the_process_is_stopped_does_not_count():
    bench, loop = Bench(), asyncio.get_running_loop()
    call = bench.submit(30.0)
    await asyncio.sleep(5.0)
    loop.now += 3600.0  # SIGSTOP, SIGCONT
    await call
    assert bench.faults == []
    with pytest.raises(ShuttingDown):
        await bench.submit(FOR_EVER)
    assert len(bench.faults) == 1


@in_virtual_time
async def test_queued_batch_does_not_count_as_hung():
    bench = Bench(workers=1, prefetch=1)
    calls = [bench.submit(40.0), bench.submit(40.0, bench.scheduler.add("w", bench.engine))]
    await asyncio.wait(calls)  # nothing is known of w's batches, of which one waited for v's
    assert bench.faults == []
    bench = Bench(workers=3)
    hung = bench.submit(FOR_EVER)
    started = now()
    await asyncio.sleep(0.1)
    while not bench.faults:
        others = bench.submit(1.0), asyncio.sleep(1.0)
        await asyncio.gather(*others, return_exceptions=True)
    assert now() - started == pytest.approx(TIMEOUT_S, abs=3.0)
    assert isinstance(hung.exception(), ShuttingDown)


@in_virtual_time
async def test_hang_detector_can_be_turned_off():
    bench = Bench(timeout_s=0.0)
    call = bench.submit(3 * TIMEOUT_S)
    await call
    assert bench.faults == []
