"""Streams of frames: read them, answer them, and hold back whoever sends too fast.

Both deliveries are generators of answers over a generator of frames. Reading goes on in a task of
its own, and never further ahead of the answers that the caller has taken than a fixed number; the
rest waits in the sender, held back by HTTP/2 flow control.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from typing import Any, Generic, Protocol, TypeVar

Frame = TypeVar("Frame")
Reply = TypeVar("Reply")
ReplyT_co = TypeVar("ReplyT_co", covariant=True)

# Answers of a LATEST stream that the caller has not taken yet; then reading stops.
MAX_UNSENT = 64


class Pending(Protocol[ReplyT_co]):
    """What a frame's reply is awaited from, once."""

    def __await__(self) -> Generator[Any, None, ReplyT_co]:
        """Wait for the reply."""
        ...

    def cancel(self) -> object:
        """Give the frame up."""
        ...


async def ordered(
    frames: AsyncIterator[Frame],
    start: Callable[[Frame], Awaitable[Pending[Reply]]],
    window: int,
) -> AsyncGenerator[Reply, None]:
    """Answer every frame, in order.

    Args:
        frames: As they arrive; read on only while fewer than `window` are unanswered.
        start: Begins to compute a frame, once there is room for it; what it returns gives the
            frame's reply. Where that fails, the stream does.
        window: How many frames may be inside at once.

    Raises:
        Exception: Whatever `frames` or a frame raised, after all earlier frames have been answered.
    """
    slots = asyncio.Semaphore(window)
    answers: asyncio.Queue[Pending[Reply] | None] = asyncio.Queue()

    async def read() -> None:
        try:
            async for frame in frames:
                await slots.acquire()
                answers.put_nowait(await start(frame))
                del frame  # or it would be kept until the next one is there
        finally:
            answers.put_nowait(None)

    try:
        async with _running(read(), "read frames") as reading:
            while (pending := await answers.get()) is not None:
                yield await pending
                slots.release()
            await reading
    finally:
        while not answers.empty():
            if (left := answers.get_nowait()) is not None:
                left.cancel()


async def latest(
    frames: AsyncIterator[Frame],
    start: Callable[[Frame], Awaitable[Pending[Reply]]],
    drop: Callable[[Frame, Frame], Reply],
    window: int,
) -> AsyncGenerator[Reply, None]:
    """Answer the newest frame whenever one of `window` places is free, and drop what it replaces.

    Args:
        frames: As they arrive.
        start: Begins to compute a frame, once there is room for it; what it returns gives the
            frame's reply. Where that fails, the stream does.
        drop: Makes the answer of a dropped frame, from it and the one that replaced it.
        window: How many frames are computed at once.

    Raises:
        Exception: Whatever `frames` or a frame raised, after the frames before have been answered.
    """
    unsent = asyncio.Semaphore(MAX_UNSENT)
    answers: asyncio.Queue[Reply | None] = asyncio.Queue()
    newest: LatestSlot[Frame] = LatestSlot()
    starting = asyncio.Lock()

    async def send(reply: Reply) -> None:
        await unsent.acquire()
        answers.put_nowait(reply)

    async def read() -> None:
        try:
            async for frame in frames:
                replaced = newest.put(frame)
                if replaced is not None:
                    await send(drop(replaced, frame))
                del frame, replaced
        finally:
            newest.close()

    async def compute() -> None:
        while True:
            # One frame at a time waits for room in the server: it is outside of every limit
            # until then, and the newer it is when there is room, the better.
            async with starting:
                if (frame := await newest.get()) is None:
                    return
                pending = await start(frame)
            del frame  # or it would be kept until its answer is taken
            await send(await pending)

    async def work() -> None:
        reading = asyncio.create_task(read(), name="read frames")
        computing = [asyncio.create_task(compute(), name="compute frames") for _ in range(window)]
        tasks = (*computing, reading)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            if any(task.done() and task.exception() for task in computing):
                # The stream fails: frames that are being computed are still answered, no other is.
                reading.cancel()
                newest.discard()
            await asyncio.wait(tasks)
            for task in tasks:
                if not task.cancelled():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            answers.put_nowait(None)

    async with _running(work(), "latest frames") as working:
        while (reply := await answers.get()) is not None:
            yield reply
            unsent.release()
        await working


@asynccontextmanager
async def _running(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[asyncio.Task[None]]:
    """Run `work` beside the block, and not longer."""
    task = asyncio.create_task(work, name=name)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class LatestSlot(Generic[Frame]):
    """A place for one frame; a newer one takes it."""

    def __init__(self) -> None:
        self._frame: Frame | None = None
        self._closed = False
        self._changed = asyncio.Event()

    def put(self, frame: Frame) -> Frame | None:
        """Put a frame there; return the one that it replaces."""
        replaced, self._frame = self._frame, frame
        self._changed.set()
        return replaced

    def close(self) -> None:
        """Say that no frame follows."""
        self._closed = True
        self._changed.set()

    def discard(self) -> None:
        """Drop the frame, if there is one, and say that none follows."""
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
