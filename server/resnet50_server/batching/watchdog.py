"""Notices what does not come back: a batch from the engine, a turn of the event loop.

Time in which the whole process stood still, because it was stopped or its machine was, is not
counted: there are no looks then.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import sys
import threading
from collections.abc import Callable, Sequence

from resnet50_server.runtime.fatal import LoopHung, end_process, open_stack_file
from resnet50_server.runtime.worker_threads import name_thread

from .batch import Running

# Looks within one timeout, and the time between two at most. One that comes late counts as two.
LOOKS, LOOK_S = 10, 1.0
# A batch may take so many times what batches of its size have taken: slow is not hung.
SLOW = 10.0
# The loop's turns take milliseconds, and liveness probes give up after 5 s. It is so much longer
# because a machine that swaps or is throttled comes back by itself.
LOOP_TIMEOUT_S = 30.0
# A C call that keeps the interpreter's lock (the GIL) stops the thread that watches the loop as
# well. So the loop keeps putting off a timer of faulthandler, whose thread needs no lock; it is the
# second line, since it cannot tell why and counts the time in which a process is stopped. Before
# Python 3.11 it goes by the time of day, which jumps.
GIL_TIMEOUT_S = 60.0
HAS_STEADY_TIMER = sys.version_info >= (3, 11)


class BatchWatch:
    """Looks how long the batches of a device have run; on the event loop.

    Args:
        timeout_s: How long one may take, in seconds, or `SLOW` times what is usual; 0: any time.
        running: Batches that were handed over, in that order.
        workers: How many of them compute at once, the first ones.
        on_hung: Called with a batch that has taken longer; then no more is looked at.
    """

    def __init__(
        self,
        timeout_s: float,
        running: Sequence[Running],
        workers: int,
        on_hung: Callable[[Running], None],
    ) -> None:
        self._timeout_s = timeout_s
        self._look_s = min(LOOK_S, timeout_s / LOOKS)
        self._running = running
        self._workers = workers
        self._on_hung = on_hung
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._looked = 0.0

    def start(self) -> None:
        """Look at what runs until nothing does."""
        if self._timeout_s and self._timer is None:
            self._plan()

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _plan(self) -> None:
        self._looked = self._loop.time()
        self._timer = self._loop.call_later(self._look_s, self._look)

    def _look(self) -> None:
        passed_s = min(self._loop.time() - self._looked, 2 * self._look_s)
        for batch in self._running[: self._workers]:
            batch.ran_s += passed_s
            usual_s = batch.queue.latency.batch_s(len(batch.entries))
            if batch.ran_s >= max(self._timeout_s, SLOW * usual_s):
                self._on_hung(batch)
                return
        self._timer = None
        if self._running:
            self._plan()


class LoopWatch:
    """Ends the process if its event loop does not turn; made, and closed, on the loop.

    From a thread, since the loop cannot look at itself; at once, since nobody can be told.

    Args:
        timeout_s: How long it may not turn, in seconds.
        gil_timeout_s: How long it may not turn if that thread cannot run either; then the process
            ends with 1, and the stacks of all threads on stderr.
    """

    def __init__(
        self, timeout_s: float = LOOP_TIMEOUT_S, gil_timeout_s: float = GIL_TIMEOUT_S
    ) -> None:
        self._timeout_s = timeout_s
        self._gil_timeout_s = gil_timeout_s
        self._stack_file = open_stack_file()
        self._look_s = min(LOOK_S, timeout_s / LOOKS)
        self._loop = asyncio.get_running_loop()
        self._turns = 0
        self._closed = threading.Event()
        self._turn()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def close(self) -> None:
        """Look no more."""
        self._closed.set()
        self._timer.cancel()
        faulthandler.cancel_dump_traceback_later()
        os.close(self._stack_file)

    def _turn(self) -> None:
        self._turns += 1
        if HAS_STEADY_TIMER:
            faulthandler.dump_traceback_later(self._gil_timeout_s, file=self._stack_file, exit=True)
        self._timer = self._loop.call_later(self._look_s, self._turn)

    def _watch(self) -> None:
        name_thread()
        seen, still_s = 0, 0.0
        while not self._closed.wait(self._look_s):
            if self._turns != seen:
                seen, still_s = self._turns, 0.0
                continue
            still_s += self._look_s
            if still_s >= self._timeout_s:
                fault = LoopHung(f"the event loop has not turned for {self._timeout_s:g} s")
                end_process(fault.status, f"{fault}; the stacks on stderr say what holds it")
