"""Image sources of streams, read one at a time and closed at the stream's end."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import queue
import threading
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any, TypeAlias

from .images import AsyncImageInput

log = logging.getLogger(__name__)
END = object()
_Job: TypeAlias = tuple["Future[Any]", Callable[[], Any]]


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
                    self.close_iterator()
                except Exception:  # no other thread waits for this one
                    log.exception("closing a source of images failed")

    def close(self) -> None:
        """Close the iterator; if a thread is reading it, that thread closes it after the read."""
        if self.end():
            self.close_iterator()

    def end(self) -> bool:
        """Read no more; return True if the iterator is to be closed, by the caller."""
        with self._lock:
            ended, self._closed = self._closed, True
            return not (ended or self._reading)

    def close_iterator(self) -> None:
        """Close the iterator after `end`; may block as long as it does."""
        close = getattr(self._iterator, "close", None)
        if callable(close):
            close()


class _Thread:
    """A thread for functions that may block for any time, one after the other.

    A daemon: a program ends although a camera sends nothing. asyncio's own threads are few, and are
    waited for at the end.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._started = False

    async def run(self, function: Callable[[], Any]) -> Any:
        """Run a function with the context variables of the task; return its result."""
        if not self._started:
            threading.Thread(
                target=_perform, args=[self._jobs], name="resnet50 source", daemon=True
            ).start()
            self._started = True
        result: Future[Any] = Future()
        self._jobs.put((result, functools.partial(contextvars.copy_context().run, function)))
        return await asyncio.wrap_future(result)

    def end(self) -> None:
        """End the thread after what it runs."""
        self._jobs.put(None)

    __del__ = end


def _perform(jobs: queue.SimpleQueue[_Job | None]) -> None:
    """Run the functions of a `_Thread`."""
    while (job := jobs.get()) is not None:
        result, function = job
        if not result.set_running_or_notify_cancel():
            continue
        try:
            result.set_result(function())
        except BaseException as error:  # of the source; raised in the task
            result.set_exception(error)
        del result, function, job  # the image is the task's now


class AsyncSource:
    """An iterable or an asynchronous iterable, read on an event loop by one task at a time.

    Args:
        images: The iterable; if it may block, it is read and closed in a thread of its own.
    """

    def __init__(self, images: Iterable[AsyncImageInput] | AsyncIterable[AsyncImageInput]) -> None:
        self._async_iterator = aiter(images) if isinstance(images, AsyncIterable) else None
        self._source = None if isinstance(images, AsyncIterable) else Source(images)
        self._in_memory = isinstance(images, Sequence)
        self._thread = _Thread()

    async def read(self) -> Any:
        """Return the next image, or `END`."""
        if self._async_iterator is not None:
            return await anext(self._async_iterator, END)
        assert self._source is not None
        if self._in_memory:
            return self._source.read()
        return await self._thread.run(self._source.read)

    async def close(self) -> None:
        """Close the source; a thread that is reading it closes it after the read."""
        if self._async_iterator is not None:
            close = getattr(self._async_iterator, "aclose", None)
            if callable(close):
                await close()
        elif not self._in_memory:
            assert self._source is not None
            if self._source.end():
                await self._thread.run(self._source.close_iterator)
            self._thread.end()
