"""Streams of frames, where no server is needed to see it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from resnet50_server.servicers.frames import answer_latest


async def test_latest_holds_one_frame_while_the_server_is_full_and_then_takes_the_newest():
    room = asyncio.Semaphore(0)
    held: list[int] = []
    everything_read = asyncio.Event()
    ended = asyncio.Event()

    async def frames() -> AsyncIterator[int]:
        for number in range(20):
            yield number
            await asyncio.sleep(0)  # as if it came from the network
        everything_read.set()
        await ended.wait()

    async def start(frame: int) -> asyncio.Future[str]:
        held.append(frame)
        await room.acquire()
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        answer.set_result(f"answered {frame}")
        return answer

    replies: list[str] = []

    async def read() -> None:
        async for reply in answer_latest(frames(), start, lambda old, new: f"dropped {old}", 8):
            replies.append(reply)

    reading = asyncio.create_task(read())
    await everything_read.wait()
    assert held == [0]  # not one for each of the eight places
    room.release()
    while len(held) < 2:
        await asyncio.sleep(0)
    assert held == [0, 19]
    room.release()
    ended.set()
    await reading
    assert sorted(replies) == sorted(
        ["answered 0", "answered 19", *(f"dropped {number}" for number in range(1, 19))]
    )
