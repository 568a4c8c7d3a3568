"""The images that a caller gives to a stream, read one at a time and closed at the stream's end."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterable, Iterable, Sequence
from typing import Any

from .images import ImageInput

log = logging.getLogger(__name__)
END = object()


class Source:
    """An iterable that may be read in one thread and closed in another.

    Args:
        images: What `iter` makes of it is closed if it can be, as generators can.
    """

    def __init__(self, images: Iterable[ImageInput]) -> None:
        self._iterator = iter(images)
        self._lock = threading.Lock()
        self._reading = False
        self._closed = False

    def read(self) -> Any:
        """Return the next image, or `END`; may block for as long as the iterator does."""
        with self._lock:
            if self._closed:
                return END
            self._reading = True
        try:
            return next(self._iterator, END)
        finally:
            with self._lock:
                self._reading = False
                closed = self._closed
            if closed:
                try:
                    self._close()
                except Exception:  # no one waits for this thread
                    log.exception("a source of images failed as it was closed")

    def close(self) -> None:
        """Close the iterator; if a thread is reading it, that thread does once the read returns."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._reading:
                return
        self._close()

    def _close(self) -> None:
        close = getattr(self._iterator, "close", None)
        if callable(close):
            close()


class AsyncSource:
    """An iterable or an asynchronous iterable, read on an event loop by one task at a time.

    Args:
        images: An iterable that may block is read, and closed, in a thread.
    """

    def __init__(self, images: Iterable[ImageInput] | AsyncIterable[ImageInput]) -> None:
        self._following = aiter(images) if isinstance(images, AsyncIterable) else None
        self._source = None if isinstance(images, AsyncIterable) else Source(images)
        self._at_hand = isinstance(images, Sequence)

    async def read(self) -> Any:
        """Return the next image, or `END`."""
        if self._following is not None:
            return await anext(self._following, END)
        assert self._source is not None
        if self._at_hand:
            return self._source.read()
        return await asyncio.to_thread(self._source.read)

    async def close(self) -> None:
        """Close it; nothing may be reading it but a thread, which closes it once it is done."""
        if self._following is not None:
            close = getattr(self._following, "aclose", None)
            if callable(close):
                await close()
        elif not self._at_hand:
            assert self._source is not None
            await asyncio.to_thread(self._source.close)
