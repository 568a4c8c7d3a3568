"""Delivery of a stream's responses, without a server."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator

import pytest

from resnet50_server.api.delivery import MAX_UNSENT, latest, ordered
from resnet50_server.errors import ShuttingDown


async def test_latest_keeps_the_newest_frame_while_full():
    room = asyncio.Semaphore(0)
    in_flight: list[int] = []
    everything_read = asyncio.Event()
    ended = asyncio.Event()

    async def frames() -> AsyncIterator[int]:
        for number in range(20):
            yield number
            await asyncio.sleep(0)  # as if it came from the network
        everything_read.set()
        await ended.wait()

    async def start(frame: int) -> asyncio.Future[str]:
        in_flight.append(frame)
        await room.acquire()
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        answer.set_result(f"answered {frame}")
        return answer

    replies: list[str] = []

    async def write(reply: str) -> None:
        replies.append(reply)

    delivery = latest(frames(), start, lambda old, new: f"dropped {old}", write, 8)
    reading = asyncio.create_task(delivery)
    await everything_read.wait()
    assert in_flight == [0]  # not one for each of the eight places
    room.release()
    while len(in_flight) < 2:
        await asyncio.sleep(0)
    assert in_flight == [0, 19]
    room.release()
    ended.set()
    await reading
    assert sorted(replies) == sorted(
        ["answered 0", "answered 19", *(f"dropped {number}" for number in range(1, 19))]
    )


async def test_latest_answers_more_frames_than_may_be_unsent():
    count, replies = 3 * MAX_UNSENT, []

    async def frames() -> AsyncIterator[int]:
        for number in range(count):
            yield number

    async def start(frame: int) -> asyncio.Future[int]:
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        answer.set_result(frame)
        return answer

    async def write(reply: int) -> None:
        replies.append(reply)

    await asyncio.wait_for(latest(frames(), start, lambda old, new: old, write, 1), 10)
    assert sorted(replies) == list(range(count))


async def test_latest_stops_reading_while_its_caller_takes_nothing():
    read = 0

    async def frames() -> AsyncIterator[int]:
        nonlocal read
        while True:  # a sender who never stops
            yield read
            read += 1
            await asyncio.sleep(0)

    async def start(frame: int) -> asyncio.Future[int]:
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        answer.set_result(frame)
        return answer

    async def write(reply: int) -> None:
        await asyncio.Event().wait()

    running = asyncio.create_task(latest(frames(), start, lambda old, new: old, write, 2))
    before = -1
    while read != before and read < 100 * MAX_UNSENT:
        before = read
        for _ in range(100):
            await asyncio.sleep(0)
    assert MAX_UNSENT <= read <= 2 * MAX_UNSENT
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_latest_stream_ends_after_a_failed_computation():
    fails: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    succeeds: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    pending, starts = [fails, succeeds], 0
    taken = 0
    tasks_before = asyncio.all_tasks()

    async def frames() -> AsyncIterator[int]:
        nonlocal taken
        while True:  # a sender who never stops
            yield taken
            taken += 1
            await asyncio.sleep(0)

    async def start(frame: int) -> asyncio.Future[str]:
        nonlocal starts
        starts += 1
        return pending.pop(0)

    replies: list[str] = []

    async def write(reply: str) -> None:
        replies.append(reply)

    delivery = latest(frames(), start, lambda old, new: f"dropped {old}", write, 2)
    reading = asyncio.create_task(delivery)
    while len(replies) < 3:  # both places are taken, and frames are dropped
        await asyncio.sleep(0)
    fails.set_exception(ShuttingDown())
    while len(asyncio.all_tasks() - tasks_before) > 3:  # until no frame is read any more
        await asyncio.sleep(0)
    read_by_then = taken
    succeeds.set_result("answered")
    with pytest.raises(ShuttingDown):
        await reading
    assert replies[-1] == "answered"
    assert (taken, starts) == (read_by_then, 2)
    assert asyncio.all_tasks() == tasks_before


class Frame:
    """A frame that can be watched."""


class Arriving:
    """Frames that arrive, and then no more for a while."""

    def __init__(self, count: int) -> None:
        self._left = count
        self.made: list[weakref.ref[Frame]] = []

    def __aiter__(self) -> Arriving:
        return self

    async def __anext__(self) -> Frame:
        if not self._left:
            await asyncio.Event().wait()
        self._left -= 1
        frame = Frame()
        self.made.append(weakref.ref(frame))
        return frame


@pytest.mark.parametrize("delivery", ["ordered", "latest"])
async def test_frames_that_have_been_started_are_not_kept(delivery):
    """They are counted no more once they are computed, however slowly the caller reads."""
    frames, started = Arriving(4), 0

    async def start(frame: Frame) -> asyncio.Future[str]:
        nonlocal started
        started += 1
        return asyncio.get_running_loop().create_future()

    async def write(reply: str) -> None:
        raise AssertionError("no frame is computed")

    if delivery == "ordered":
        work = ordered(frames, start, write, 8)
    else:
        work = latest(frames, start, lambda old, new: "dropped", write, 8)
    running = asyncio.create_task(work)
    for _ in range(50):
        await asyncio.sleep(0)
    assert started
    assert [frame() for frame in frames.made] == [None] * 4
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_frame_takes_as_many_places_as_its_response_needs():
    started: list[int] = []
    answers: dict[int, asyncio.Future[str]] = {}

    async def frames() -> AsyncIterator[int]:
        for slots in (3, 2, 9, 1):
            yield slots

    async def start(slots: int) -> asyncio.Future[str]:
        started.append(slots)
        answers[slots] = asyncio.get_running_loop().create_future()
        return answers[slots]

    async def write(reply: str) -> None:
        pass

    delivering = asyncio.create_task(ordered(frames(), start, write, 4, lambda slots: slots))
    expected = [3, 2, 9, 1]
    for count, slots in enumerate(expected, 1):
        while len(started) < count:
            await asyncio.sleep(0)
        for _ in range(10):
            await asyncio.sleep(0)
        assert started == expected[:count]
        answers[slots].set_result("answer")
    await delivering
