"""Responses that clients have not taken, without a server."""

from __future__ import annotations

import asyncio

from resnet50_server.api.send_buffer import SendBuffer

MIB = 2**20


async def test_response_larger_than_the_limit_is_sent_all_the_same():
    buffer, older_is_counted = SendBuffer(MIB, 60.0), asyncio.Event()

    async def answer(length: int, sent: asyncio.Event) -> None:
        buffer.add("a", length)
        older_is_counted.set()
        await sent.wait()

    older = asyncio.create_task(answer(1, asyncio.Event()))
    await older_is_counted.wait()
    taken = asyncio.Event()
    taken.set()
    await asyncio.create_task(answer(2 * MIB, taken))  # would raise if it were cancelled
    await asyncio.wait([older], timeout=60)
    assert older.cancelled()
    assert (len(buffer), buffer.bytes) == (0, 0)
    buffer.close()
