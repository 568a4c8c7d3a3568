"""Delivery of a stream's responses: every frame in order, or the latest one.

Both read frames in a task of their own, never further ahead of the responses that the client has
taken than a fixed number; HTTP/2 flow control holds back the rest at the client.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

Frame = TypeVar("Frame")
Reply = TypeVar("Reply")
ReplyT_co = TypeVar("ReplyT_co", covariant=True)
Write: TypeAlias = Callable[[Reply], Awaitable[Any]]

# Responses of a LATEST stream that the client has not taken; then reading pauses.
MAX_UNSENT = 64


class Pending(Protocol[ReplyT_co]):
    """A frame in flight; awaiting it, once, gives the response."""

    def __await__(self) -> Generator[Any, None, ReplyT_co]:
        """Wait for the response."""
        ...

    def cancel(self) -> object:
        """Cancel the frame."""
        ...


async def ordered(
    frames: AsyncIterator[Frame],
    start: Callable[[Frame], Awaitable[Pending[Reply]]],
    write: Write[Reply],
    window: int,
    slots_of: Callable[[Frame], int] | None = None,
) -> None:
    """Answer every frame, in order.

    Args:
        frames: Read only while fewer than `window` are unanswered.
        start: Starts to compute a frame once it is admitted. If it raises, the stream fails.
        write: Sends a response; waits while the client takes none.
        window: Maximum of frames in flight.
        slots_of: Returns how many of them a frame counts for, as its response is that much larger;
            one that exceeds the window is in flight alone. None for one each.

    Raises:
        Exception: From `frames` or a frame, after all earlier frames have been answered.
    """
    free, ended = window, False
    in_flight: deque[tuple[Pending[Reply], int]] = deque()
    started, freed = asyncio.Event(), asyncio.Event()

    async def read() -> None:
        nonlocal free, ended
        try:
            async for frame in frames:
                slots = 1 if slots_of is None else max(1, min(slots_of(frame), window))
                while free < slots:
                    freed.clear()
                    await freed.wait()
                free -= slots
                in_flight.append((await start(frame), slots))
                started.set()
                del frame  # else it would be referenced until the next one arrives
        finally:
            ended = True
            started.set()

    try:
        async with _running(read(), "read frames") as reading:
            while in_flight or not ended:
                if not in_flight:
                    started.clear()
                    await started.wait()
                    continue
                pending, slots = in_flight.popleft()
                await write(await pending)
                free += slots
                freed.set()
            await reading
    finally:
        for pending, _ in in_flight:
            pending.cancel()


async def latest(
    frames: AsyncIterator[Frame],
    start: Callable[[Frame], Awaitable[Pending[Reply]]],
    drop: Callable[[Frame, Frame], Reply],
    write: Write[Reply],
    window: int,
) -> None:
    """Answer the latest frame whenever fewer than `window` are in flight; drop what it replaces.

    Args:
        frames: As they arrive.
        start: Starts to compute a frame once it is admitted. If it raises, the stream fails.
        drop: Returns the response to a dropped frame, from it and the one that replaced it.
        write: Sends a response; waits while the client takes none.
        window: Maximum of frames in flight.

    Raises:
        Exception: From `frames` or a frame, after the frames in flight have been answered.
    """
    unsent = asyncio.Semaphore(MAX_UNSENT)
    replies: asyncio.Queue[Reply | None] = asyncio.Queue()
    slot: LatestSlot[Frame] = LatestSlot()
    starting = asyncio.Lock()

    async def send(reply: Reply) -> None:
        await unsent.acquire()
        replies.put_nowait(reply)

    async def read() -> None:
        try:
            async for frame in frames:
                replaced = slot.put(frame)
                if replaced is not None:
                    await send(drop(replaced, frame))
                del frame, replaced
        finally:
            slot.close()

    async def compute() -> None:
        while True:
            # One frame at a time waits for its admission: until then it counts towards no limit,
            # and the later it is taken from the slot, the newer it is.
            async with starting:
                if (frame := await slot.get()) is None:
                    return
                pending = await start(frame)
            del frame  # else it would be referenced until its response is sent
            await send(await pending)

    async def work() -> None:
        reading = asyncio.create_task(read(), name="read frames")
        computing = [asyncio.create_task(compute(), name="compute frames") for _ in range(window)]
        tasks = (*computing, reading)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            if any(task.done() and task.exception() for task in computing):
                # The stream fails: frames in flight are still answered, no others.
                reading.cancel()
                slot.discard()
            await asyncio.wait(tasks)
            for task in tasks:
                if not task.cancelled():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            replies.put_nowait(None)

    async with _running(work(), "latest frames") as working:
        while (reply := await replies.get()) is not None:
            await write(reply)
            unsent.release()
        await working


@asynccontextmanager
async def _running(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[asyncio.Task[None]]:
    """Run `work` as a task during the block, and cancel it at its end."""
    task = asyncio.create_task(work, name=name)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class LatestSlot(Generic[Frame]):
    """Keeps the latest frame."""

    def __init__(self) -> None:
        self._frame: Frame | None = None
        self._closed = False
        self._changed = asyncio.Event()

    def put(self, frame: Frame) -> Frame | None:
        """Store a frame; return the one that it replaces."""
        replaced, self._frame = self._frame, frame
        self._changed.set()
        return replaced

    def close(self) -> None:
        """Declare that no frame follows."""
        self._closed = True
        self._changed.set()

    def discard(self) -> None:
        """Drop the frame, if there is one, and close."""
        self._frame = None
        self.close()

    async def get(self) -> Frame | None:
        """Wait for a frame and take it; None if none follows."""
        while self._frame is None:
            if self._closed:
                return None
            self._changed.clear()
            await self._changed.wait()
        frame, self._frame = self._frame, None
        return frame
