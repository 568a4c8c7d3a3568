"""Bound the memory of decoding: how many pixels are decoded at once."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeAlias

# Bytes for each pixel of the worst format while it is decoded, resized and cropped
# (WebP with transparency: 21.8), and a JPEG in RGB or grey.
PIXEL_BYTES, JPEG_PIXEL_BYTES = 22, 14
# Images up to this size have a budget of their own, so that they do not wait for large ones.
SMALL_PIXELS = 1_000_000
SMALL_BUDGET_PIXELS = 4_000_000

Reserve: TypeAlias = Callable[[int], AbstractContextManager[None]]
"""Reserves memory for so many pixels while the context is open."""


def unbounded(_: int) -> AbstractContextManager[None]:
    """Reserve nothing."""
    return nullcontext()


class BudgetFull(Exception):
    """The image has to wait until others have been decoded.

    Args:
        pixels: How many it has.
    """

    def __init__(self, pixels: int) -> None:
        super().__init__(pixels)
        self.pixels = pixels


class PixelBudget:
    """Pixels that may be decoded at once: reserved in decode threads, waited for on the event loop.

    First come, first served. One image alone may be larger than the budget.

    Args:
        pixels: How many may be decoded at once, small images apart.
    """

    def __init__(self, pixels: int) -> None:
        self._lock = threading.Lock()
        self._lanes = (_Lane(pixels), _Lane(SMALL_BUDGET_PIXELS))

    @contextmanager
    def reserve(self, pixels: int) -> Iterator[None]:
        """Reserve memory for an image; in a decode thread.

        Raises:
            BudgetFull: It has to wait.
        """
        lane = self._lane(pixels)
        with self._lock:
            if lane.waiting or not lane.fits(pixels):
                raise BudgetFull(pixels)
            lane.used += pixels
        try:
            yield
        finally:
            self._release(lane, pixels)

    async def wait(self, pixels: int) -> Grant:
        """Wait until an image may be decoded; on the event loop."""
        loop, lane = asyncio.get_running_loop(), self._lane(pixels)
        granted: asyncio.Future[None] = loop.create_future()
        with self._lock:
            lane.waiting.append((pixels, granted, loop))
            lane.grant()
        try:
            await granted
        except asyncio.CancelledError:
            resolved = granted.done() and not granted.cancelled()
            with self._lock:
                if lane.cancel(granted) or resolved:
                    lane.used -= pixels
                lane.grant()
            raise
        return Grant(self, pixels)

    def release(self, pixels: int) -> None:
        """Release the pixels of a grant."""
        self._release(self._lane(pixels), pixels)

    def _release(self, lane: _Lane, pixels: int) -> None:
        with self._lock:
            lane.used -= pixels
            lane.grant()

    def _lane(self, pixels: int) -> _Lane:
        return self._lanes[pixels <= SMALL_PIXELS]


class Grant:
    """Pixels that were waited for; used by a decode thread, or released.

    Args:
        budget: Its budget.
        pixels: How many.
    """

    def __init__(self, budget: PixelBudget, pixels: int) -> None:
        self._budget = budget
        self._pixels = pixels
        self._lock = threading.Lock()
        self._used = False

    @contextmanager
    def reserve(self, pixels: int) -> Iterator[None]:
        """Keep the pixels reserved while the image is decoded; in a decode thread."""
        if not self._claim():
            raise BudgetFull(pixels)  # released before it began
        try:
            yield
        finally:
            self._budget.release(self._pixels)

    def release(self) -> None:
        """Release the pixels unless a decode thread uses them."""
        if self._claim():
            self._budget.release(self._pixels)

    def _claim(self) -> bool:
        """Return whether this is the first use."""
        with self._lock:
            used, self._used = self._used, True
        return not used


class _Lane:
    """The budget of one size class; used under the lock of `PixelBudget`."""

    def __init__(self, pixels: int) -> None:
        self._pixels = pixels
        self.used = 0
        self.waiting: deque[tuple[int, asyncio.Future[None], asyncio.AbstractEventLoop]] = deque()
        self._granted: set[asyncio.Future[None]] = set()

    def fits(self, pixels: int) -> bool:
        return not self.used or self.used + pixels <= self._pixels

    def grant(self) -> None:
        """Grant waiting images in order, as far as they fit."""
        while self.waiting and self.fits(self.waiting[0][0]):
            pixels, future, loop = self.waiting.popleft()
            self.used += pixels
            self._granted.add(future)
            loop.call_soon_threadsafe(self._resolve, future)

    def cancel(self, future: asyncio.Future[None]) -> bool:
        """Remove a waiting image; return whether it had been granted."""
        self.waiting = deque(entry for entry in self.waiting if entry[1] is not future)
        granted = future in self._granted
        self._granted.discard(future)
        return granted

    def _resolve(self, future: asyncio.Future[None]) -> None:
        """Resolve the future of a granted image; on the event loop."""
        if not future.done():
            self._granted.discard(future)
            future.set_result(None)
