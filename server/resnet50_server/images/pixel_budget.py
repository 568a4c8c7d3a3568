"""How many pixels are decoded at once: what decoding takes is bounded in memory, not in threads."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeAlias

# What the worst format takes for each pixel while it is decoded, resized and cropped, in bytes
# (WebP with transparency: 21.8), and a JPEG in RGB or grey.
PIXEL_BYTES, JPEG_PIXEL_BYTES = 22, 14
# Images up to this size have a budget of their own, so that large ones are not in their way.
SMALL_PIXELS = 1_000_000
SMALL_BUDGET_PIXELS = 4_000_000

Room: TypeAlias = Callable[[int], AbstractContextManager[None]]
"""Is entered with an image's pixels while it is decoded."""


def any_room(_: int) -> AbstractContextManager[None]:
    """Hold no room: for images that nothing bounds."""
    return nullcontext()


class NoRoom(Exception):
    """As many pixels are being decoded as may be at once; the image has to wait.

    Args:
        pixels: How many it has.
    """

    def __init__(self, pixels: int) -> None:
        super().__init__(pixels)
        self.pixels = pixels


class PixelBudget:
    """Room for pixels, taken and released in decode threads, waited for in the event loop.

    Those that wait go in the order in which they came. One image alone may be larger than the
    budget.

    Args:
        pixels: How many may be decoded at once, small images apart.
    """

    def __init__(self, pixels: int) -> None:
        self._lock = threading.Lock()
        self._lanes = (_Lane(pixels), _Lane(SMALL_BUDGET_PIXELS))

    @contextmanager
    def take(self, pixels: int) -> Iterator[None]:
        """Hold room for an image; in a decode thread.

        Raises:
            NoRoom: There is none.
        """
        lane = self._lane(pixels)
        with self._lock:
            if lane.waiting or not lane.fits(pixels):
                raise NoRoom(pixels)
            lane.used += pixels
        try:
            yield
        finally:
            self._release(lane, pixels)

    async def wait(self, pixels: int) -> Grant:
        """Wait for room for an image, in the event loop."""
        loop, lane = asyncio.get_running_loop(), self._lane(pixels)
        granted: asyncio.Future[None] = loop.create_future()
        with self._lock:
            lane.waiting.append((pixels, granted, loop))
            lane.grant()
        try:
            await granted
        except asyncio.CancelledError:
            told = granted.done() and not granted.cancelled()
            with self._lock:
                if lane.give_up(granted) or told:
                    lane.used -= pixels
                lane.grant()
            raise
        return Grant(self, pixels)

    def release(self, pixels: int) -> None:
        """Give back the room of a grant."""
        self._release(self._lane(pixels), pixels)

    def _release(self, lane: _Lane, pixels: int) -> None:
        with self._lock:
            lane.used -= pixels
            lane.grant()

    def _lane(self, pixels: int) -> _Lane:
        return self._lanes[pixels <= SMALL_PIXELS]


class Grant:
    """Room that has been waited for; used by a decode thread, or given back.

    Args:
        budget: Whose it is.
        pixels: How many.
    """

    def __init__(self, budget: PixelBudget, pixels: int) -> None:
        self._budget = budget
        self._pixels = pixels
        self._lock = threading.Lock()
        self._used = False

    @contextmanager
    def take(self, pixels: int) -> Iterator[None]:
        """Hold the room while the image is decoded; in a decode thread."""
        if not self._mine():
            raise NoRoom(pixels)  # given up before it began
        try:
            yield
        finally:
            self._budget.release(self._pixels)

    def give_back(self) -> None:
        """Give the room back unless a decode thread has it."""
        if self._mine():
            self._budget.release(self._pixels)

    def _mine(self) -> bool:
        """Take the room over, once."""
        with self._lock:
            used, self._used = self._used, True
        return not used


class _Lane:
    """Images of one kind; its users hold the budget's lock."""

    def __init__(self, pixels: int) -> None:
        self._pixels = pixels
        self.used = 0
        self.waiting: deque[tuple[int, asyncio.Future[None], asyncio.AbstractEventLoop]] = deque()
        self._granted: set[asyncio.Future[None]] = set()

    def fits(self, pixels: int) -> bool:
        return not self.used or self.used + pixels <= self._pixels

    def grant(self) -> None:
        """Let in those that wait, in order, as far as they fit."""
        while self.waiting and self.fits(self.waiting[0][0]):
            pixels, future, loop = self.waiting.popleft()
            self.used += pixels
            self._granted.add(future)
            loop.call_soon_threadsafe(self._tell, future)

    def give_up(self, future: asyncio.Future[None]) -> bool:
        """Take out one that waits no longer; return whether it has been let in."""
        self.waiting = deque(one for one in self.waiting if one[1] is not future)
        granted = future in self._granted
        self._granted.discard(future)
        return granted

    def _tell(self, future: asyncio.Future[None]) -> None:
        """Wake one that was let in; in the event loop."""
        if not future.done():
            self._granted.discard(future)
            future.set_result(None)
