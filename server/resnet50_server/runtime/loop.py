"""Call a function on an event loop from another thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

Result = TypeVar("Result")


class LoopTimeout(Exception):
    """The event loop did not respond in time, or is closed."""


def call_on_loop(
    loop: asyncio.AbstractEventLoop, function: Callable[[], Result], timeout_s: float
) -> Result:
    """Run a function on an event loop and return its result; blocks the calling thread.

    Raises:
        LoopTimeout: The loop did not run it within `timeout_s`, or is closed.
    """
    future: Future[Result] = Future()

    def run() -> None:
        if not future.set_running_or_notify_cancel():
            return  # timed out meanwhile
        try:
            future.set_result(function())
        except Exception as error:
            future.set_exception(error)

    try:
        loop.call_soon_threadsafe(run)
    except RuntimeError as error:
        raise LoopTimeout("the event loop is closed") from error
    done, _ = wait((future,), timeout_s)
    if not done:
        future.cancel()
        raise LoopTimeout(f"the event loop has not responded for {timeout_s:g} s")
    return future.result()
