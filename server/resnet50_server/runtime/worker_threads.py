"""Worker threads for blocking work of the event loop.

`loop.run_in_executor` makes two futures, a lock and a condition for each call, and wakes the loop
for each result. Here a call is one entry of a queue, and results that are posted together wake the
loop once; docs/adr/0009-request-overhead.md has the measurements.
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
Callback: TypeAlias = Callable[[Any, BaseException | None], None]

# How often idle threads check whether the process is exiting without having closed them.
POLL_INTERVAL_S = 1.0
# Of prctl(2).
PR_SET_NAME = 15


def name_thread() -> None:
    """Set the system's name of this thread, which Python does itself only from 3.14 on.

    `top -H` and `perf` show its first 15 characters.
    """
    if sys.platform == "linux" and sys.version_info < (3, 14):
        ctypes.CDLL(None).prctl(PR_SET_NAME, threading.current_thread().name.encode(), 0, 0, 0)


class WorkerThreads:
    """Runs calls, each in the next free thread; submit and close on one event loop.

    Args:
        count: Number of threads.
        name: Prefix of their names, which profilers show.
        initialize: Runs in each thread before its first call.
    """

    def __init__(self, count: int, name: str, initialize: Callable[[], object]) -> None:
        self._calls: SimpleQueue[tuple[Callable[[], Any], Callback] | None] = SimpleQueue()
        self._results: deque[tuple[Callback, Any, BaseException | None]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waking = False
        self._initialize = initialize
        self._name = name
        self._numbers = itertools.count()
        self._threads: list[threading.Thread] = []
        for _ in range(count):
            self.add()

    def add(self) -> None:
        """Start one more thread.

        Raises:
            RuntimeError: The system's limit of threads is reached.
        """
        # No daemons: Python would end them in the middle of a decoder's C++, which aborts.
        thread = threading.Thread(target=self._work, name=f"{self._name}-{next(self._numbers)}")
        thread.start()
        self._threads = [one for one in self._threads if one.is_alive()] + [thread]

    def retire(self) -> None:
        """End one thread, the first that is free after the calls submitted so far."""
        self._calls.put(None)

    def submit_callback(self, call: Callable[[], Any], callback: Callback) -> None:
        """Run a call in a thread, then a callback on the loop.

        Args:
            call: The function to run.
            callback: Gets the result of the call, or None and the exception. Must not raise.
        """
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        self._calls.put((call, callback))

    def submit(self, call: Callable[[], Result]) -> asyncio.Future[Result]:
        """Run a call in a thread; cancelling the returned future does not stop the call."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

        def resolve(result: Result, error: BaseException | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        self.submit_callback(call, resolve)
        return future

    def close(self) -> None:
        """Start no more calls and end the threads; does not wait for calls that run."""
        with contextlib.suppress(Empty):
            while True:
                self._calls.get_nowait()
        for _ in self._threads:
            self.retire()

    def _work(self) -> None:
        name_thread()
        self._initialize()
        while (job := self._next_call()) is not None:
            call, callback = job
            try:
                self._post_result(callback, call(), None)
            except StopIteration as error:  # futures do not accept it
                self._post_result(callback, None, RuntimeError(repr(error)))
            except BaseException as error:
                self._post_result(callback, None, error)
            # An idle thread must keep nothing alive.
            del job, call, callback

    def _next_call(self) -> tuple[Callable[[], Any], Callback] | None:
        """Wait for a call; None if the thread shall end."""
        while True:
            try:
                return self._calls.get(timeout=POLL_INTERVAL_S)
            except Empty:
                if not threading.main_thread().is_alive():
                    return None

    def _post_result(self, callback: Callback, result: Any, error: BaseException | None) -> None:
        """Pass a result to the loop; wakes it unless another result already has."""
        self._results.append((callback, result, error))
        if not self._waking:
            self._waking = True
            assert self._loop is not None  # a call was submitted
            try:
                self._loop.call_soon_threadsafe(self._run_callbacks)
            except RuntimeError:  # the loop is closed
                self._results.clear()

    def _run_callbacks(self) -> None:
        # Reset first: a result that is posted from now on wakes the loop again.
        self._waking = False
        while self._results:
            callback, result, error = self._results.popleft()
            callback(result, error)
