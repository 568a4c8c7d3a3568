from __future__ import annotations

import asyncio
import threading

import pytest

from resnet50_server.inference.decode_pool import decode_threads
from resnet50_server.runtime.worker_threads import WorkerThreads


@pytest.fixture
async def threads():
    started = WorkerThreads(2, "test", lambda: None)
    yield started
    started.close()


async def test_calls_run_concurrently_and_return_results(threads):
    meeting = threading.Barrier(2)  # breaks, and fails the calls, unless both are there

    def meet(number: int) -> int:
        meeting.wait(timeout=60)
        return number

    assert await asyncio.gather(
        threads.submit(lambda: meet(1)), threads.submit(lambda: meet(2))
    ) == [
        1,
        2,
    ]


@pytest.mark.parametrize("kind", [ValueError, SystemExit])
async def test_call_errors_reach_the_caller_and_the_thread_lives_on(threads, kind):
    def fail() -> None:
        raise kind("bad")

    for _ in range(3):
        with pytest.raises(kind, match="bad"):
            await threads.submit(fail)
    assert await threads.submit(lambda: 1) == 1


async def test_stop_iteration_fails_its_call_and_no_other(threads):
    def stop() -> None:
        raise StopIteration

    results = await asyncio.gather(
        threads.submit(stop),
        *(threads.submit(lambda: 1) for _ in range(20)),
        return_exceptions=True,
    )
    assert isinstance(results[0], RuntimeError)
    assert results[1:] == [1] * 20


async def test_cancelled_future_gets_no_result(threads):
    entered, leave = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def wait() -> None:
        loop.call_soon_threadsafe(entered.set)
        assert leave.wait(timeout=60)

    running = threads.submit(wait)
    await entered.wait()
    running.cancel()
    leave.set()
    assert await asyncio.gather(*(threads.submit(lambda: 1) for _ in range(10))) == [1] * 10
    assert running.cancelled()


async def test_no_result_of_thousands_is_lost(threads):
    results = await asyncio.gather(*(threads.submit(lambda n=n: n) for n in range(5000)))
    assert results == list(range(5000))


async def test_closed_threads_end(threads):
    await threads.submit(lambda: None)
    threads.close()
    for thread in [one for one in threading.enumerate() if one.name.startswith("test-")]:
        await asyncio.to_thread(thread.join, 10)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("cores", "engine_on_cpu", "threads"),
    [(1, True, 1), (2, True, 1), (16, True, 5), (1, False, 1), (16, False, 16)],
)
def test_decode_threads_leave_the_cores_to_a_cpu_engine(cores, engine_on_cpu, threads):
    assert decode_threads(cores, engine_on_cpu) == threads
