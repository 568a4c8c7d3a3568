"""Messages that are being received, without a server."""

from __future__ import annotations

import asyncio

import pytest

from resnet50_server.api.receive_slots import ReceiveSlots
from resnet50_server.errors import Overloaded

MIB = 2**20


async def test_caller_with_the_most_waiting_calls_is_refused():
    slots, never = ReceiveSlots(MIB, MIB, MIB, 3, 60.0), asyncio.Event()
    waiting = [asyncio.create_task(slots.read(caller, never.wait)) for caller in "aab"]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match=r"max_requests \(3\): .* 2 of them of a"):
        await asyncio.wait_for(slots.read("a", never.wait), 10)
    assert (len(slots), [task.done() for task in waiting]) == (3, [False] * 3)
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    assert len(slots) == 0
