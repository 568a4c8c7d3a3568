"""Sources of a stream's frames without end, and an observer of its calls."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from resnet50_client import AsyncClient, CallObserver, Client
from tests.support.pictures import encode, photo_like

PNG = encode(photo_like(8, 8))


class Frames:
    """Frames without end; blocks before frame `hold_at` until `resume` is set."""

    def __init__(self, hold_at: int | None = None) -> None:
        self.hold_at = hold_at
        self.before: Callable[[int], object] = lambda number: None
        self.blocked = threading.Event()
        self.resume = threading.Event()
        self.closed = threading.Event()

    def __iter__(self):
        try:
            number = 0
            while True:
                self.before(number)
                if number == self.hold_at:
                    self.blocked.set()
                    self.resume.wait(60)
                yield PNG
                number += 1
        finally:
            self.closed.set()


class AsyncFrames(Frames):
    """The same, asynchronous; a frame that is blocked never comes."""

    async def __aiter__(self):
        try:
            number = 0
            while True:
                self.before(number)
                if number == self.hold_at:
                    self.blocked.set()
                    await asyncio.Event().wait()
                yield PNG
                number += 1
        finally:
            self.closed.set()

    __iter__: Any = None  # it is iterated over asynchronously only


# The class of a client, and that of a source which it takes.
SOURCES = [(Client, Frames), (AsyncClient, Frames), (AsyncClient, AsyncFrames)]


class Watching(CallObserver):
    """Records the ends of calls; tells when one waits for its next attempt."""

    def __init__(self) -> None:
        self.waits = threading.Event()
        self.ended: list[tuple[str, BaseException | None]] = []

    def call_retried(self, call, error, pause_s):
        self.waits.set()

    def call_ended(self, call):
        self.ended.append((call.code, call.error))
