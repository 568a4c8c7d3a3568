"""Messages that are being received, without a server."""

from __future__ import annotations

import asyncio

import pytest

from resnet50_server.api.receive_slots import ReceiveSlots
from resnet50_server.errors import Overloaded, Stalled
from tests.support.virtual_time import in_virtual_time

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


async def test_oldest_call_of_the_busiest_caller_is_replaced():
    slots, never = ReceiveSlots(MIB, MIB, MIB, 3, 60.0), asyncio.Event()
    waiting = [asyncio.create_task(slots.read(caller, never.wait)) for caller in "aab"]
    await asyncio.sleep(0)
    waiting.append(asyncio.create_task(slots.read("c", never.wait)))
    with pytest.raises(Overloaded, match=r"max_requests \(3\): .* the most of them of a"):
        await asyncio.wait_for(asyncio.shield(waiting[0]), 60)
    assert (len(slots), [task.done() for task in waiting[1:]]) == (3, [False] * 3)
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    assert len(slots) == 0


@in_virtual_time
async def test_message_and_slot_that_do_not_come_are_told_apart():
    slots, never = ReceiveSlots(MIB, MIB, MIB, 10, 5.0), asyncio.Event()
    reading, waiting = (asyncio.create_task(slots.read(name, never.wait)) for name in "ab")
    with pytest.raises(Stalled, match=r"did not arrive within 5 s \(receive_timeout_s\)"):
        await reading
    with pytest.raises(Overloaded, match=r"max_receive_bytes \(1048576\): messages of others"):
        await waiting
    assert (len(slots), asyncio.get_running_loop().time()) == (0, 5.0)


@in_virtual_time
async def test_slot_is_passed_to_the_next_call():
    slots, arrived = ReceiveSlots(MIB, MIB, MIB, 10, 5.0), asyncio.Event()
    first, second = (asyncio.create_task(slots.read(name, arrived.wait)) for name in "ab")
    await asyncio.sleep(4.0)
    arrived.set()
    assert await asyncio.gather(first, second) == [True, True]
    assert len(slots) == 0


@in_virtual_time
async def test_each_message_has_the_whole_time_from_its_own_start():
    slots, never, arrived = ReceiveSlots(MIB, MIB, MIB, 10, 5.0), asyncio.Event(), asyncio.Event()
    loop, ended = asyncio.get_running_loop(), {}

    async def read(name: str, message: asyncio.Event) -> None:
        try:
            await slots.read(name, message.wait)
        except (Stalled, Overloaded):
            ended[name] = loop.time()

    tasks = [asyncio.create_task(read("first", arrived))]
    await asyncio.sleep(2.0)
    tasks.append(asyncio.create_task(read("second", never)))
    await asyncio.sleep(1.0)
    arrived.set()
    slots.timeout_s = 1.0
    tasks.append(asyncio.create_task(read("third", never)))
    await asyncio.gather(*tasks)
    assert ended == {"third": 4.0, "second": 7.0}
    assert len(slots) == 0
