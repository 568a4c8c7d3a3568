"""Threads that decode, in virtual time: what a call takes is known exactly."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

import resnet50_server.inference.decode_pool
from resnet50_server.context import RequestContext
from resnet50_server.errors import InvalidImage, ShuttingDown
from resnet50_server.inference.decode_pool import DecodePool
from resnet50_server.runtime.fatal import DecodingHung
from tests.support import virtual_time

LIMIT_S = 10.0


class VirtualThreads:
    """Runs a call, which says how long it takes, for that many virtual seconds.

    Attributes:
        count: How many there are.
        running: Calls that run now.
        most: Calls that have run at once.
        latest: Those that were made last.
    """

    latest: VirtualThreads

    def __init__(self, count: int, *_: object) -> None:
        VirtualThreads.latest = self
        self.count = count
        self.running = self.most = 0

    def add(self) -> None:
        self.count += 1

    def retire(self) -> None:
        self.count -= 1

    def submit_callback(self, call, done) -> None:
        self.running += 1
        assert self.running <= self.count
        self.most = max(self.most, self.running)
        duration_s = call()

        def end() -> None:
            self.running -= 1
            done(duration_s, None)

        asyncio.get_running_loop().call_later(duration_s, end)

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def virtual_threads(monkeypatch):
    monkeypatch.setattr(resnet50_server.inference.decode_pool, "WorkerThreads", VirtualThreads)


def hung_pool(threads: int) -> tuple[DecodePool, list[DecodingHung]]:
    """Return a pool, and what it says when it is lost."""
    faults: list[DecodingHung] = []
    return DecodePool(threads, LIMIT_S, faults.append), faults


def now() -> float:
    return asyncio.get_running_loop().time()


def thread_count() -> int:
    """Return how many threads the pool of this test has."""
    return VirtualThreads.latest.count


def test_decode_timeout_answers_and_starts_a_spare_thread():
    async def call() -> None:
        pool = DecodePool(1, LIMIT_S)
        with pytest.raises(InvalidImage, match=r"within 10 s, the limit \(decode_timeout_s\)") as e:
            await pool.submit(lambda: 25.0)
        assert (e.value.field, e.value.kind) == ("image", "timeout")
        assert now() == LIMIT_S
        assert (pool.stuck, pool.busy, thread_count()) == (1, 1, 2)
        assert await pool.submit(lambda: 1.0) == 1.0
        assert now() == 11.0
        await asyncio.sleep(15.0)  # the call has returned after all
        assert (pool.stuck, pool.busy, thread_count()) == (0, 0, 1)
        assert await asyncio.gather(pool.submit(lambda: 1.0), pool.submit(lambda: 1.0)) == [
            1.0,
            1.0,
        ]
        assert now() == 28.0  # one thread, as before

    virtual_time.run(call())


def test_time_while_the_process_is_stopped_does_not_count():
    async def scenario():
        pool, loop = DecodePool(1, LIMIT_S), asyncio.get_running_loop()
        call = asyncio.ensure_future(pool.submit(lambda: 9.0))
        await asyncio.sleep(5.0)
        loop.now += 3600.0  # SIGSTOP, SIGCONT
        assert await call == 9.0
        with pytest.raises(InvalidImage):
            await pool.submit(lambda: 12.0)

    virtual_time.run(scenario())


def test_slow_decode_warning_names_the_request(caplog):
    async def scenario():
        pool = DecodePool(1, LIMIT_S)
        # The second one starts when the first one ends.
        calls = [
            pool.submit(lambda lasting=lasting: lasting, RequestContext("Classify", name, ()))
            for name, lasting in (("first", 1.0), ("second", 99.0))
        ]
        with pytest.raises(InvalidImage):
            await asyncio.gather(*calls)

    virtual_time.run(scenario())
    (warning,) = caplog.messages
    assert "of request second takes longer than 10 s" in warning


def test_stuck_threads_are_replaced_up_to_a_bound():
    async def call() -> None:
        pool, faults = hung_pool(1)
        for _ in range(1 + pool.spares):
            with pytest.raises(InvalidImage):
                await pool.submit(lambda: 51.0)
        assert thread_count() == pool.stuck == 1 + pool.spares
        # None is free until the first of them returns, a second later.
        assert await pool.submit(lambda: 1.0) == 1.0
        assert now() == 52.0
        assert faults == []
        await asyncio.sleep(100.0)
        assert (pool.stuck, pool.busy, thread_count()) == (0, 0, 1)
        assert faults == []

    virtual_time.run(call())


def test_stuck_threads_are_not_expected_to_take_calls():
    async def call() -> None:
        pool = DecodePool(1, LIMIT_S)
        await pool.submit(lambda: 1.0)
        with pytest.raises(InvalidImage):
            await pool.submit(lambda: 100.0)
        running = pool.submit(lambda: 1.0)
        # It waits for the one thread that is left, and then takes as long itself.
        assert pool.expected_s(RequestContext("Classify", "", ())) == pytest.approx(2.0)
        await running

    virtual_time.run(call())


def test_free_thread_is_expected_to_be_as_fast_as_lately():
    async def call() -> None:
        pool = DecodePool(1, LIMIT_S)
        context = RequestContext("Classify", "", ())
        for seconds in (0.1, 5.0):  # the second one is a large photo
            await pool.submit(partial(float, seconds))
        assert pool.expected_s(context) == pytest.approx(0.1)
        running = pool.submit(lambda: 0.1)
        assert pool.expected_s(context) > 1.0
        await running

    virtual_time.run(call())


def test_pool_with_all_threads_stuck_is_fatal():
    async def call() -> None:
        pool, faults = hung_pool(2)
        calls = [asyncio.ensure_future(pool.submit(lambda: 1000.0)) for _ in range(2 + pool.spares)]
        await asyncio.wait(calls)
        assert {type(one.exception()) for one in calls} == {InvalidImage}
        started = now()
        assert faults == []
        waits = asyncio.ensure_future(pool.submit(lambda: 1.0))
        await asyncio.sleep(LIMIT_S - 0.1)
        assert (faults, waits.done()) == ([], False)
        await asyncio.sleep(0.2)
        assert [type(fault) for fault in faults] == [DecodingHung]
        assert faults[0].status == 72
        assert f"all {2 + pool.spares} decode threads" in str(faults[0])
        assert now() == pytest.approx(started + LIMIT_S + 0.1)
        with pytest.raises(ShuttingDown, match=r"cannot decode images any more: .*; call another"):
            await waits
        with pytest.raises(ShuttingDown, match=r"cannot decode images any more: .*; call another"):
            pool.submit(lambda: 1.0)

    virtual_time.run(call())


def test_pool_without_a_spare_thread_continues(monkeypatch, caplog):
    def refuse(threads: VirtualThreads) -> None:
        raise RuntimeError("can't start new thread")

    async def call() -> None:
        pool, faults = hung_pool(1)
        monkeypatch.setattr(VirtualThreads, "add", refuse)
        with pytest.raises(InvalidImage):
            await pool.submit(lambda: 15.0)
        assert await pool.submit(lambda: 1.0) == 1.0
        assert now() == 16.0
        assert (pool.stuck, thread_count(), faults) == (0, 1, [])

    virtual_time.run(call())
    assert "can't start new thread" in caplog.text


def test_waiting_for_a_thread_is_not_counted():
    async def call() -> None:
        pool = DecodePool(1, LIMIT_S)
        assert await asyncio.gather(*(pool.submit(lambda: 8.0) for _ in range(4))) == [8.0] * 4
        assert now() == 32.0

    virtual_time.run(call())


def test_call_expiring_while_all_threads_are_stuck_is_dropped():
    async def call() -> None:
        pool, started = DecodePool(1, LIMIT_S), []
        for _ in range(1 + pool.spares):
            with pytest.raises(InvalidImage):
                await pool.submit(lambda: 60.0)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(pool.submit(lambda: started.append(1) or 1.0), 5.0)
        assert await pool.submit(lambda: 2.0) == 2.0
        assert now() == 62.0
        assert started == []

    virtual_time.run(call())


def test_stuck_thread_of_a_cancelled_call_is_counted():
    async def call() -> None:
        pool = DecodePool(1, LIMIT_S)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(pool.submit(lambda: 20.0), 5.0)
        await asyncio.sleep(10.0)
        assert pool.stuck == 1
        await asyncio.sleep(10.0)
        assert pool.stuck == 0

    virtual_time.run(call())


def test_call_cancelled_as_a_thread_becomes_free_does_not_run():
    async def call() -> None:
        pool, ran = DecodePool(1, LIMIT_S), []

        def decode() -> float:
            ran.append(now())
            return 1.0

        running, cancelled = pool.submit(lambda: 5.0), pool.submit(decode)
        # In the same iteration of the loop, before the callbacks of the future.
        asyncio.get_running_loop().call_at(5.0 - 1e-10, cancelled.cancel)
        assert await running == 5.0
        await asyncio.sleep(2.0)
        assert (ran, pool.waiting, pool.busy, pool.cancelled) == ([], 0, 0, 1)

    virtual_time.run(call())


def test_cancelled_call_leaves_the_queue_at_once():
    async def call() -> None:
        pool = DecodePool(1, LIMIT_S)
        running, cancelled = pool.submit(lambda: 5.0), pool.submit(lambda: 1.0)
        assert pool.waiting == 1
        cancelled.cancel()
        await asyncio.sleep(0)
        assert (pool.waiting, pool.cancelled) == (0, 1)
        assert await running == 5.0

    virtual_time.run(call())
