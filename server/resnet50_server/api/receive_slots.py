"""Slots for messages that are being received: bounds their number and memory.

gRPC buffers a message until it is complete, up to `max_message_bytes` per call that reads. Flow
control stops the message of a call that does not read after `listen.UNREAD_BYTES`.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from resnet50_server.errors import Overloaded, Stalled
from resnet50_server.inference.admission import Admission
from resnet50_server.inference.quotas import RETRY_AFTER_S, Limits, message_slots

# Timers of uvloop are due at whole milliseconds.
TIMER_SLACK_S = 1e-3


@dataclass(eq=False, slots=True)
class _Arriving:
    """A call whose message has not arrived.

    Attributes:
        caller: The caller's name.
        task: Waits for it.
        ends: When it times out, in loop time.
        reading: Whether it has a slot.
        late: Whether it timed out.
        replaced: Whether it was cancelled in favour of another caller.
    """

    caller: str
    task: asyncio.Task[Any]
    ends: float
    reading: bool = False
    late: bool = False
    replaced: bool = False


class ReceiveSlots:
    """Reads the one message of a call. Event loop only.

    A fixed number of calls has a slot; the others wait in order, callers in turn. If too many wait,
    the oldest call of the caller with the most is cancelled, so that clients that open calls and
    send nothing delay only their own.

    Args:
        max_bytes: Memory for messages that are being received.
        max_bytes_per_caller: The same per caller.
        max_message_bytes: Maximum size of a message.
        max_calls: Maximum of calls whose message has not arrived.
        timeout_s: Time limit per message, including the wait for a slot, in seconds.

    Attributes:
        timeout_s: As the argument; applies to messages that begin after it is set.
    """

    def __init__(
        self,
        max_bytes: int,
        max_bytes_per_caller: int,
        max_message_bytes: int,
        max_calls: int,
        timeout_s: float,
    ) -> None:
        self._max_bytes = max_bytes
        self._max_calls = max_calls
        self.timeout_s = timeout_s
        slots = message_slots(max_bytes, max_message_bytes)
        self._slots = Admission(
            Limits(
                requests=slots,
                requests_per_caller=min(
                    slots, message_slots(max_bytes_per_caller, max_message_bytes)
                ),
                bytes=sys.maxsize,
                bytes_per_caller=sys.maxsize,
            )
        )
        self._arriving: dict[_Arriving, None] = {}  # in their order
        # One timer for all calls, due when the first of them times out, or before.
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    def __len__(self) -> int:
        return len(self._arriving)

    async def read(self, caller: str, read: Callable[[], Awaitable[Any]]) -> Any:
        """Return the message of a call.

        Args:
            caller: The caller's name.
            read: Waits for the message and returns it.

        Raises:
            Overloaded: The server waits for too many messages.
            Stalled: It takes too long to arrive.
        """
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None
        if len(self._arriving) >= self._max_calls:
            self._replace_oldest(caller)
        arriving = _Arriving(caller, task, loop.time() + self.timeout_s)
        self._arriving[arriving] = None
        if arriving.ends < self._timer_at:
            self._set_timer(loop, arriving.ends)
        try:
            with self._slots.try_acquire(caller) or await self._slots.acquire(caller):
                arriving.reading = True
                return await read()
        except asyncio.CancelledError:
            if arriving.replaced:
                raise self._overloaded(
                    f"max_requests ({self._max_calls}): as many calls wait for their message, the"
                    f" most of them of {caller}; send messages with their calls"
                ) from None
            if arriving.late and not arriving.reading:
                raise self._overloaded(
                    f"max_receive_bytes ({self._max_bytes}): messages of others arrive, and"
                    f" {self.timeout_s:g} s (receive_timeout_s) passed without a free slot"
                ) from None
            if arriving.late:
                raise Stalled(
                    f"the request did not arrive within {self.timeout_s:g} s (receive_timeout_s);"
                    " send large images by the upload methods"
                ) from None
            raise
        finally:
            self._arriving.pop(arriving, None)

    def _replace_oldest(self, caller: str) -> None:
        """Cancel the oldest call of the caller with the most, in favour of another caller."""
        counts = Counter(arriving.caller for arriving in self._arriving)
        most = max(counts, key=lambda name: counts[name])
        if counts[most] <= counts[caller]:
            raise self._overloaded(
                f"max_requests ({self._max_calls}): as many calls wait for their message,"
                f" {counts[caller]} of them of {caller}"
            )
        oldest = next(arriving for arriving in self._arriving if arriving.caller == most)
        del self._arriving[oldest]
        oldest.replaced = True
        oldest.task.cancel()

    def _set_timer(self, loop: asyncio.AbstractEventLoop, ends: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = ends
        self._timer = loop.call_at(ends, self._check_timeouts, loop)

    def _check_timeouts(self, loop: asyncio.AbstractEventLoop) -> None:
        """Cancel the calls that have timed out, and wait for the next one."""
        self._timer, self._timer_at = None, math.inf
        in_time = math.inf
        for arriving in list(self._arriving):
            if arriving.ends > loop.time() + TIMER_SLACK_S:
                in_time = min(in_time, arriving.ends)
            elif not arriving.late:
                arriving.late = True
                arriving.task.cancel()
        if in_time < math.inf:
            self._set_timer(loop, in_time)

    def _overloaded(self, message: str) -> Overloaded:
        return Overloaded(message.partition(" ")[0], message, RETRY_AFTER_S)
