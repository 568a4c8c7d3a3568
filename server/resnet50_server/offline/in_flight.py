"""Images in flight between the thread that wants their results and the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from resnet50_bulk.source import ImageContent
from resnet50_server.batching.result import Result


class InFlight:
    """Images of one run in flight: started and taken in the caller's thread, computed on the loop.

    Wake-ups of threads are a large part of the cost of a small image. One wakes the loop for all
    images that were started since it last ran, and one returns all that ended in one iteration of
    it, as those of a batch do.

    Args:
        loop: The event loop.
        infer: Computes one image.

    Attributes:
        images: Number of images that were started, and not taken yet.
        bytes: The sum of their sizes.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        infer: Callable[[str, ImageContent | Path], Coroutine[Any, Any, Result]],
    ) -> None:
        self.images = self.bytes = 0
        self._loop = loop
        self._infer = infer
        self._new: deque[tuple[str, ImageContent | Path, int]] = deque()
        self._woken = False
        self._done: list[tuple[str, int, asyncio.Task[Result]]] = []
        self._ended: SimpleQueue[list[tuple[str, int, asyncio.Task[Result]]]] = SimpleQueue()

    def start(self, name: str, image: ImageContent | Path, size: int) -> None:
        """Start an image of so many bytes."""
        self.images += 1
        self.bytes += size
        self._new.append((name, image, size))
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._create_tasks)

    def any_ended(self) -> bool:
        """Return whether `ended` would not wait."""
        return not self._ended.empty()

    def ended(self) -> Iterator[tuple[str, asyncio.Task[Result]]]:
        """Wait for images; return the names and tasks of those that have ended."""
        done = self._ended.get()
        self.images -= len(done)
        self.bytes -= sum(size for _, size, _ in done)
        return ((name, task) for name, _, task in done)

    def wait(self) -> None:
        """Wait until none is in flight; results and errors are discarded."""
        while self.images:
            for _, task in self.ended():
                task.exception()

    def _create_tasks(self) -> None:
        self._woken = False  # first: an image that is started from here on wakes the loop again
        while self._new:
            name, image, size = self._new.popleft()
            task = self._loop.create_task(self._infer(name, image))
            task.add_done_callback(partial(self._on_done, name, size))

    def _on_done(self, name: str, size: int, task: asyncio.Task[Result]) -> None:
        if not self._done:
            self._loop.call_soon(self._hand_over)
        self._done.append((name, size, task))

    def _hand_over(self) -> None:
        done, self._done = self._done, []
        self._ended.put(done)
