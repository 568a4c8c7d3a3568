"""Threads that compute for the event loop, and how a call gets there and back.

`loop.run_in_executor` makes two futures, a lock and a condition for each call, and wakes the loop
for each result. Here a call is one entry of a queue, and results that come together wake the loop
once; docs/adr/0009-cost-of-a-request.md says what that is worth.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import sys
import threading
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias, TypeVar

Result = TypeVar("Result")
Done: TypeAlias = Callable[[Any, BaseException | None], None]

# So often do idle threads look whether the process ends without having closed them.
LOOK_S = 1.0
# Of prctl(2).
PR_SET_NAME = 15


def name_thread() -> None:
    """Tell the system the name of this thread, which Python keeps to itself before 3.14.

    `top -H` and `perf` show its first 15 characters.
    """
    if sys.platform == "linux" and sys.version_info < (3, 14):
        ctypes.CDLL(None).prctl(PR_SET_NAME, threading.current_thread().name.encode(), 0, 0, 0)


class Threads:
    """Runs calls, each in the next free thread; `start` and `close` on one event loop.

    Args:
        count: How many.
        name: What a profiler shows.
        initialize: Runs in each thread before its first call.
    """

    def __init__(self, count: int, name: str, initialize: Callable[[], object]) -> None:
        self._calls: SimpleQueue[tuple[Callable[[], Any], Done] | None] = SimpleQueue()
        self._results: deque[tuple[Done, Any, BaseException | None]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waking = False
        self._initialize = initialize
        self._name = name
        self._numbers = itertools.count()
        self._threads: list[threading.Thread] = []
        for _ in range(count):
            self.add()

    def add(self) -> None:
        """Start one more.

        Raises:
            RuntimeError: The system gives no more threads.
        """
        # No daemons: Python would end them in the middle of a decoder's C++, which aborts.
        thread = threading.Thread(target=self._work, name=f"{self._name}-{next(self._numbers)}")
        thread.start()
        self._threads = [one for one in self._threads if one.is_alive()] + [thread]

    def retire(self) -> None:
        """End one, whichever is free first after the calls that were started."""
        self._calls.put(None)

    def start(self, call: Callable[[], Any], done: Done) -> None:
        """Run a call in a thread, then `done` on the loop.

        Args:
            call: What to run.
            done: Gets what the call returned, or None and what it raised. Must not raise.
        """
        self._loop = asyncio.get_running_loop()
        self._calls.put((call, done))

    def run(self, call: Callable[[], Result]) -> asyncio.Future[Result]:
        """Run a call in a thread; cancelling what is returned does not stop it."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

        def done(result: Result, error: BaseException | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        self.start(call, done)
        return future

    def close(self) -> None:
        """Start no more calls; those that run are left to themselves, their results are dropped."""
        with contextlib.suppress(Empty):
            while True:
                self._calls.get_nowait()
        for _ in self._threads:
            self.retire()

    def _work(self) -> None:
        name_thread()
        self._initialize()
        while (job := self._next()) is not None:
            call, done = job
            try:
                self._deliver(done, call(), None)
            except StopIteration as error:  # which no future takes
                self._deliver(done, None, RuntimeError(repr(error)))
            except BaseException as error:
                self._deliver(done, None, error)
            # Nothing is held on to while the thread waits.
            del job, call, done

    def _next(self) -> tuple[Callable[[], Any], Done] | None:
        """Wait for a call; None when there will be none."""
        while threading.main_thread().is_alive():
            with contextlib.suppress(Empty):
                return self._calls.get(timeout=LOOK_S)
        return None

    def _deliver(self, done: Done, result: Any, error: BaseException | None) -> None:
        """Hand a result to the loop, which may be awake for another one already."""
        self._results.append((done, result, error))
        if not self._waking:
            self._waking = True
            assert self._loop is not None  # a call was started
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(self._finish)

    def _finish(self) -> None:
        # Before looking: what is delivered from now on wakes the loop again.
        self._waking = False
        while self._results:
            done, result, error = self._results.popleft()
            done(result, error)
