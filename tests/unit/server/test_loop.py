"""Calls to an event loop from another thread."""

from __future__ import annotations

import asyncio
import threading

import pytest

from resnet50_server.runtime.loop import LoopTimeout, call_on_loop


async def test_result_and_exception_of_the_function_are_passed_on():
    loop = asyncio.get_running_loop()
    assert await asyncio.to_thread(call_on_loop, loop, asyncio.get_running_loop, 30) is loop
    with pytest.raises(ZeroDivisionError):
        await asyncio.to_thread(call_on_loop, loop, lambda: 1 // 0, 30)

    def time_out() -> None:
        raise TimeoutError  # of the function, not of the loop

    with pytest.raises(TimeoutError):
        await asyncio.to_thread(call_on_loop, loop, time_out, 30)


async def test_blocked_loop_is_reported_and_the_function_is_not_run():
    loop, calls, errors = asyncio.get_running_loop(), [], []

    def call() -> None:
        try:
            call_on_loop(loop, lambda: calls.append(1), 0.01)
        except LoopTimeout as error:
            errors.append(str(error))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()  # the loop is blocked meanwhile
    assert errors == ["the event loop has not responded for 0.01 s"]
    for _ in range(3):
        await asyncio.sleep(0)
    assert calls == []


def test_closed_loop_is_reported():
    loop = asyncio.new_event_loop()
    loop.close()
    with pytest.raises(LoopTimeout, match="is closed"):
        call_on_loop(loop, lambda: None, 30)
