"""Threads that decode, in virtual time: what a call takes is known exactly."""

from __future__ import annotations

import asyncio

import pytest
import virtual_time

import resnet50_server.decode_pool
from resnet50_server.decode_pool import DecodePool
from resnet50_server.errors import InvalidImage

LIMIT_S = 10.0


class VirtualThreads:
    """Runs a call, which says how long it takes, for that many virtual seconds.

    Attributes:
        running: Calls that run now.
        most: Calls that have run at once.
    """

    def __init__(self, *_: object) -> None:
        self.running = self.most = 0

    def start(self, call, done) -> None:
        self.running += 1
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
    monkeypatch.setattr(resnet50_server.decode_pool, "Threads", VirtualThreads)


def now() -> float:
    return asyncio.get_running_loop().time()


def test_call_that_takes_too_long_is_answered_at_the_limit_and_its_thread_stays_taken():
    async def call() -> None:
        pool = DecodePool(1, LIMIT_S)
        with pytest.raises(InvalidImage, match=r"within 10 s, the limit \(decode_timeout_s\)") as e:
            await pool.run(lambda: 25.0)
        assert (e.value.field, e.value.kind) == ("image", "timeout")
        assert now() == LIMIT_S
        assert pool.stuck == 1
        assert await pool.run(lambda: 1.0) == 1.0
        assert now() == 26.0  # not before the thread was free
        assert pool.stuck == 0
        assert pool._threads.most == 1

    virtual_time.run(call())


def test_waiting_for_a_thread_is_not_counted():
    async def call() -> None:
        pool = DecodePool(1, LIMIT_S)
        assert await asyncio.gather(*(pool.run(lambda: 8.0) for _ in range(4))) == [8.0] * 4
        assert now() == 32.0

    virtual_time.run(call())


def test_other_threads_go_on_while_one_is_stuck():
    async def call() -> None:
        pool = DecodePool(2, LIMIT_S)
        stuck = asyncio.ensure_future(pool.run(lambda: 100.0))
        assert await asyncio.gather(*(pool.run(lambda: 9.0) for _ in range(5))) == [9.0] * 5
        assert now() == 45.0
        assert (pool.stuck, pool._threads.most) == (1, 2)
        with pytest.raises(InvalidImage):
            await stuck

    virtual_time.run(call())


def test_caller_whose_deadline_passes_while_all_threads_are_stuck_costs_nothing():
    async def call() -> None:
        pool, started = DecodePool(1, LIMIT_S), []
        with pytest.raises(InvalidImage):
            await pool.run(lambda: 50.0)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(pool.run(lambda: started.append(1) or 1.0), 5.0)
        assert await pool.run(lambda: 2.0) == 2.0
        assert now() == 52.0
        assert started == []

    virtual_time.run(call())


def test_thread_of_a_caller_that_left_is_counted_as_stuck_until_it_ends():
    async def call() -> None:
        pool = DecodePool(1, LIMIT_S)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(pool.run(lambda: 20.0), 5.0)
        await asyncio.sleep(10.0)
        assert pool.stuck == 1
        await asyncio.sleep(10.0)
        assert pool.stuck == 0

    virtual_time.run(call())
