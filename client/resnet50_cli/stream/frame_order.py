"""Answers in the order of their frames, for the annotated video."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Generic, TypeVar

from resnet50_client._frames import FrameAnswer
from resnet50_client.images import ImageInput

Result = TypeVar("Result")


class FrameOrder(Generic[Result]):
    """Puts answers in order, and limits the number of frames that wait for it.

    With delivery "latest" many frames can be dropped behind one that is being computed; their
    pixels are kept until that one is answered.

    Args:
        images: Yields the frames; read and closed by the SDK's thread.
        stop: No frame is read after this is set.
        limit: Maximum number of frames between `images` and `in_order`.
    """

    def __init__(
        self, images: Generator[ImageInput, None, None], stop: threading.Event, limit: int
    ) -> None:
        self._images = images
        self._stop = stop
        self._slots = threading.Semaphore(limit)
        self._early: dict[int, FrameAnswer[Result]] = {}
        self._next_id = 0
        self._closed = False

    def images(self) -> Iterator[ImageInput]:
        """Yield the frames, as far as the limit allows."""
        with closing(self._images):
            while self._acquire_slot():
                try:
                    image = next(self._images)
                except StopIteration:
                    return
                yield image

    def in_order(self, answer: FrameAnswer[Result]) -> Iterator[FrameAnswer[Result]]:
        """Add an answer; yield those that are due."""
        self._early[answer.frame_id] = answer
        while (due := self._early.pop(self._next_id, None)) is not None:
            self._next_id += 1
            yield due
            self._slots.release()

    def close(self) -> None:
        """End the frames."""
        self._closed = True

    def _acquire_slot(self) -> bool:
        while not (self._stop.is_set() or self._closed):
            if self._slots.acquire(timeout=0.1):
                return True
        return False
