"""Responses that clients have not taken: bounds their memory and time.

A client that grants no HTTP/2 window makes calls and leaves every response in the server's memory,
which gRPC does not bound (docs/adr/0023-memory-bound.md).
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

log = logging.getLogger(__name__)

# Memory of a call besides its response, in gRPC and in Python: measured 26 KB.
CALL_BYTES = 32 * 1024
# Beyond the limit, calls are cancelled until this share of it is left: finding gRPC's tasks takes
# some milliseconds, however many are cancelled.
KEPT_SHARE = 0.75

# gRPC's coroutine that waits for the end of a call.
_WATCHING = "_schedule_rpc_coro"

_Task = asyncio.Task[Any]
_TASKS = asyncio.Task


@dataclass(eq=False, slots=True)
class _Unsent:
    """A response that gRPC has not sent completely.

    Attributes:
        caller: The caller's name.
        size: Its bytes, including those of the call.
        since: When it was given to gRPC, in loop time.
    """

    caller: str
    size: int
    since: float


class SendBuffer:
    """Counts responses from when they are given to gRPC until its transport has taken them.

    Event loop only.

    Args:
        max_bytes: Limit of their sum. Beyond it the oldest ones of the caller with the most are
            cancelled, so that a client that reads its responses loses none.
        timeout_s: Time limit for a client to take a response, in seconds.
    """

    def __init__(self, max_bytes: int, timeout_s: float) -> None:
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        # Not for each response by itself: cancelling many at once is cheaper.
        self._poll_interval_s = timeout_s / 10
        self._unsent: dict[_Task, _Unsent] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._unsent)

    def add(self, caller: str, length: int) -> None:
        """Count the response of the call that the current task handles, until that task ends.

        Args:
            caller: The caller's name.
            length: The response's bytes.
        """
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None
        if task in self._unsent:
            return
        unsent = _Unsent(caller, length + CALL_BYTES, loop.time())
        self._unsent[task] = unsent
        self.bytes += unsent.size
        # Not the gRPC context's callback, which would be in a reference cycle with the context.
        task.add_done_callback(self._remove)
        if self.bytes > self._max_bytes:
            self._shrink(task)
        if self._timer is None:
            self._timer = loop.call_later(self._timeout_s, self._check_timeouts)

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _remove(self, task: _Task) -> None:
        unsent = self._unsent.pop(task, None)
        if unsent is None:
            return
        self.bytes -= unsent.size

    def _shrink(self, latest: _Task) -> None:
        """Cancel the oldest responses of the callers with the most, down to `KEPT_SHARE`."""
        sizes: Counter[str] = Counter()
        oldest: dict[str, deque[_Task]] = {}
        for task, unsent in self._unsent.items():  # the oldest first
            sizes[unsent.caller] += unsent.size
            if task is not latest:  # not given to gRPC yet
                oldest.setdefault(unsent.caller, deque()).append(task)
        too_many, excess = [], self.bytes - int(KEPT_SHARE * self._max_bytes)
        while excess > 0 and oldest:
            greediest = max(oldest, key=lambda caller: sizes[caller])
            task = oldest[greediest].popleft()
            if not oldest[greediest]:
                del oldest[greediest]
            size = self._unsent[task].size
            sizes[greediest] -= size
            excess -= size
            too_many.append(task)
        self._cancel(too_many, f"responses take more than {self._max_bytes} bytes (max_send_bytes)")

    def _check_timeouts(self) -> None:
        """Cancel the responses that were not taken in time."""
        loop = asyncio.get_running_loop()
        self._timer = None
        late = []
        for task, unsent in self._unsent.items():  # the oldest first
            left_s = unsent.since + self._timeout_s - loop.time()
            if left_s > 0:
                self._timer = loop.call_later(
                    max(left_s, self._poll_interval_s), self._check_timeouts
                )
                break
            late.append(task)
        self._cancel(late, f"the client took none for {self._timeout_s:g} s (send_timeout_s)")

    def _cancel(self, tasks: list[_Task], why: str) -> None:
        if not tasks:
            return
        callers = {self._unsent[task].caller for task in tasks}
        log.warning(
            "cancelled %d calls whose responses were not taken, of %s%s: %s",
            len(tasks),
            min(callers),
            f" and {len(callers) - 1} others" if len(callers) > 1 else "",
            why,
        )
        for task in tasks:
            self._remove(task)
        cancel_calls(tasks)


def cancel_calls(tasks: Iterable[_Task]) -> None:
    """Cancel calls in gRPC, so that it frees them and their responses.

    gRPC has no function for that on the server's side: it cancels a call that Python no longer
    references, and a task of its own, which waits for the call's end, references it too.

    Args:
        tasks: The tasks of their handlers, which may have ended.
    """
    tasks = set(tasks)
    for watching in asyncio.all_tasks():
        coroutine = watching.get_coro()
        if getattr(coroutine, "__name__", "") != _WATCHING:
            continue
        closures = gc.get_referents(coroutine)
        if any(one in tasks for one in gc.get_referents(*closures) if isinstance(one, _TASKS)):
            watching.cancel()
    for task in tasks:
        task.cancel()
