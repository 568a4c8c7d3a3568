"""Image sources of streams, read one at a time and closed at the stream's end."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterable, Iterable, Sequence
from typing import Any

from .images import AsyncImageInput

log = logging.getLogger(__name__)
END = object()


class Source:
    """An iterable that can be read in one thread and closed in another.

    Args:
        images: The iterable; its iterator is closed if it has a `close` method.
    """

    def __init__(self, images: Iterable[AsyncImageInput]) -> None:
        self._iterator = iter(images)
        # Reentrant: the garbage collector may close a stream, and its source, in any thread.
        self._lock = threading.RLock()
        self._reading = False
        self._closed = False

    def read(self) -> Any:
        """Return the next image, or `END`; may block as long as the iterator does."""
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
                except Exception:  # no other thread waits for this one
                    log.exception("closing a source of images failed")

    def close(self) -> None:
        """Close the iterator; if a thread is reading it, that thread closes it after the read."""
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
        images: The iterable; if it may block, it is read and closed in a thread.
    """

    def __init__(self, images: Iterable[AsyncImageInput] | AsyncIterable[AsyncImageInput]) -> None:
        self._async_iterator = aiter(images) if isinstance(images, AsyncIterable) else None
        self._source = None if isinstance(images, AsyncIterable) else Source(images)
        self._in_memory = isinstance(images, Sequence)

    async def read(self) -> Any:
        """Return the next image, or `END`."""
        if self._async_iterator is not None:
            return await anext(self._async_iterator, END)
        assert self._source is not None
        if self._in_memory:
            return self._source.read()
        return await asyncio.to_thread(self._source.read)

    async def close(self) -> None:
        """Close the source; a thread that is reading it closes it after the read."""
        if self._async_iterator is not None:
            close = getattr(self._async_iterator, "aclose", None)
            if callable(close):
                await close()
        elif not self._in_memory:
            assert self._source is not None
            await asyncio.to_thread(self._source.close)
