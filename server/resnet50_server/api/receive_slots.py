"""Messages that arrive: how many calls may wait for theirs, and how much memory they may take.

gRPC keeps what arrives of a message until it is whole, up to `max_message_bytes` for each call
that reads. A call that does not read is held back after `transport.UNREAD_BYTES`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from resnet50_server.errors import Overloaded, Stalled
from resnet50_server.inference.admission import Admission
from resnet50_server.inference.quotas import RETRY_AFTER_S, Limits, message_slots


@dataclass(eq=False, slots=True)
class _Arriving:
    """A call whose message has not arrived.

    Attributes:
        task: Waits for it.
        reading: Whether gRPC receives it, and not only its beginning.
        late: Whether it took too long.
        replaced: Whether it was ended for another caller.
    """

    task: asyncio.Task[Any]
    reading: bool = False
    late: bool = False
    replaced: bool = False


class ReceiveSlots:
    """Reads the one message of a call. Event loop only.

    A fixed number of calls is read from at once; the others wait in order, callers in turn. A full
    server ends the call that has waited longest of the caller that has the most, so that clients
    that open calls and send nothing are in nobody's way but their own.

    Args:
        max_bytes: Memory for messages that arrive.
        max_bytes_per_caller: The same of one caller.
        max_message_bytes: What one of them may take.
        max_calls: Calls whose message has not arrived.
        timeout_s: How long a message may take, in seconds, the wait included.
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
        self._timeout_s = timeout_s
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
        self._arriving: dict[str, dict[_Arriving, None]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    async def read(self, caller: str, read: Callable[[], Awaitable[Any]]) -> Any:
        """Return what `read` does.

        Args:
            caller: Whose call it is.
            read: Waits for the message.

        Raises:
            Overloaded: The server waits for too many messages.
            Stalled: It takes too long to arrive.
        """
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        arriving = _Arriving(task)
        self._enter(caller, arriving)
        # Not wait_for, which makes a task of its own on Python below 3.12.
        timer = loop.call_later(self._timeout_s, self._give_up, arriving)
        try:
            with await self._slots.acquire(caller):
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
                    f" {self._timeout_s:g} s (receive_timeout_s) were not enough for a turn"
                ) from None
            if arriving.late:
                raise Stalled(
                    f"the request did not arrive within {self._timeout_s:g} s (receive_timeout_s);"
                    " send large images by the upload methods"
                ) from None
            raise
        finally:
            timer.cancel()
            self._leave(caller, arriving)

    def _enter(self, caller: str, arriving: _Arriving) -> None:
        mine = self._arriving.get(caller, {})
        if self._count >= self._max_calls:
            most = max(self._arriving, key=lambda name: len(self._arriving[name]))
            if len(self._arriving[most]) <= len(mine):
                raise self._overloaded(
                    f"max_requests ({self._max_calls}): as many calls wait for their message,"
                    f" {len(mine)} of them of {caller}"
                )
            oldest = next(iter(self._arriving[most]))
            oldest.replaced = True
            oldest.task.cancel()
            self._leave(most, oldest)
        self._arriving.setdefault(caller, mine)[arriving] = None
        self._count += 1

    def _leave(self, caller: str, arriving: _Arriving) -> None:
        mine = self._arriving.get(caller)
        if mine is None or arriving not in mine:
            return
        del mine[arriving]
        self._count -= 1
        if not mine:
            del self._arriving[caller]

    def _give_up(self, arriving: _Arriving) -> None:
        arriving.late = True
        arriving.task.cancel()

    def _overloaded(self, message: str) -> Overloaded:
        return Overloaded(message.partition(" ")[0], message, RETRY_AFTER_S)
