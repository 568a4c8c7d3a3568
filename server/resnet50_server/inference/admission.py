"""Admission control: permits for what is in flight, within limits.

Beyond a limit, single requests are refused with its name. Frames of a stream wait in order
(`AdmissionQueue`) and are admitted by what is released.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from resnet50_server.context import limit_for
from resnet50_server.errors import Overloaded, ShuttingDown

from .admission_queue import AdmissionQueue, Waiter
from .quotas import RETRY_AFTER_S, SHARED_LIMITS, Limits, Quotas, Usage

# How long capacity is reserved for the retry of a single request while frames wait.
RESERVATION_S = 2 * RETRY_AFTER_S


class Admission:
    """Gives permits to images, and counts open streams and uploads. Event loop only.

    Single requests and waiting frames take turns: while single requests are refused, every other
    permit that is released is reserved for the retry of one.

    Args:
        limits: Limits on images in flight.
        clock: Tells the time, in seconds.

    Attributes:
        draining: Set once no more requests are admitted.
        refused_while_draining: How many came after that.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self.draining = False
        self.refused_while_draining = 0
        self._quotas = Quotas(limits, clock)
        self._rated = limits.rate_per_caller > 0
        self._queue = AdmissionQueue()
        # The bytes of the single request that capacity is reserved for; None if it is not.
        self._reserved: int | None = None
        self._reservation_timer: asyncio.TimerHandle | None = None
        self._frames_turn = False

    @property
    def requests(self) -> int:
        """Images in flight."""
        return self._quotas.total.requests

    @property
    def bytes(self) -> int:
        """The sum of their sizes."""
        return self._quotas.total.bytes

    @property
    def streams(self) -> int:
        """Open streams."""
        return self._quotas.total.streams

    @property
    def callers(self) -> int:
        """Callers whose usage or rate is remembered."""
        return len(self._quotas)

    @property
    def waiting(self) -> int:
        """Frames that wait to be admitted."""
        return self._queue.waiting

    def admit(self, caller: str, length: int = 0, *, bulk: bool = False) -> Permit:
        """Return a permit for one image; leaving the `with` block releases it.

        Args:
            caller: Its name.
            length: The image's bytes that have arrived.
            bulk: Whether it leaves a share of the limits to interactive requests.

        Raises:
            Overloaded: A limit is reached; names it.
            ShuttingDown: The server is draining.
        """
        usage = self._checked(
            caller, length, bulk, self._next_frame_bytes() if self._queue.waiting else 0
        )
        if self._queue.waiting:
            self._frames_turn = True
            self._cancel_reservation()
        return Permit(self, caller, usage, bulk, length)

    def try_acquire(self, caller: str, length: int = 0, *, bulk: bool = False) -> Permit | None:
        """Return what `acquire` does if it does not have to wait, else None.

        Raises:
            ShuttingDown: The server is draining.
        """
        if self.draining:
            raise self._closed()
        quotas = self._quotas
        usage = quotas.of(caller)
        if self._queue.waiting or quotas.exceeded(usage, length, bulk):
            return None
        if self._rated and quotas.rate_delay_s(usage):
            return None
        return Permit(self, caller, usage, bulk, length)

    async def acquire(self, caller: str, length: int = 0, *, bulk: bool = False) -> Permit:
        """Return a permit for one frame as soon as there is capacity.

        Args:
            caller: Its name.
            length: The frame's bytes.
            bulk: As `admit`.

        Raises:
            ShuttingDown: The server is draining.
        """
        if (permit := self.try_acquire(caller, length, bulk=bulk)) is not None:
            return permit
        waiter = Waiter(caller, length, bulk, asyncio.get_running_loop().create_future())
        self._queue.push(waiter)
        self._admit_waiting()
        try:
            return await waiter.admitted
        except asyncio.CancelledError:
            if not waiter.admitted.done() or waiter.admitted.cancelled():
                self._queue.remove(waiter)
                self._admit_waiting()  # others may have waited behind it
            elif waiter.admitted.exception() is None:
                waiter.admitted.result().release()
            raise

    def check(self, caller: str, *, bulk: bool = False) -> None:
        """Raise what `admit` would for an image without bytes, and count nothing."""
        self._checked(caller, 0, bulk)

    @contextmanager
    def stream(self, caller: str) -> Iterator[None]:
        """Count an open stream.

        Raises:
            Overloaded: Too many are open; names the limit.
            ShuttingDown: The server is draining.
        """
        if self.draining:
            raise self._closed()
        with self._counted("streams", caller):
            yield

    @contextmanager
    def upload(self, caller: str) -> Iterator[None]:
        """Count an upload that arrives.

        Raises:
            Overloaded: Too many are open; names the limit.
        """
        with self._counted("uploads", caller):
            yield

    def drain(self) -> None:
        """Admit no more images; waiting frames are refused."""
        self.draining = True
        for waiter in self._queue.clear():
            if not waiter.admitted.done():
                waiter.admitted.set_exception(ShuttingDown())

    @contextmanager
    def _counted(self, what: str, caller: str) -> Iterator[None]:
        usage = self._quotas.of(caller)
        if (limit := self._quotas.exceeded_count(what, usage)) is not None:
            raise self._quotas.overloaded(limit, caller, usage)
        self._quotas.add(what, caller, usage, 1)
        try:
            yield
        finally:
            self._quotas.add(what, caller, usage, -1)

    def _closed(self) -> ShuttingDown:
        """Count a request that comes while the server drains; return its error."""
        self.refused_while_draining += 1
        return ShuttingDown()

    def _checked(self, caller: str, length: int, bulk: bool, reserved_bytes: int = 0) -> Usage:
        """Return the usage of a caller that may have one more image."""
        if self.draining:
            raise self._closed()
        quotas = self._quotas
        usage = quotas.of(caller)
        if (limit := quotas.exceeded(usage, length, bulk, reserved_bytes)) is not None:
            self._refuse(limit, caller, usage, length, bulk)
        if self._rated and (delay_s := quotas.rate_delay_s(usage)):
            raise Overloaded(
                "max_rate_per_caller",
                f"max_rate_per_caller ({self.limits.rate_per_caller:g} images/s): {caller} sends"
                " faster",
                delay_s,
            )
        return usage

    def _refuse(self, limit: str, caller: str, usage: Usage, length: int, bulk: bool) -> NoReturn:
        """Refuse a single request; reserve the next capacity for one if it is their turn."""
        if limit in SHARED_LIMITS and self._queue.waiting and not self._frames_turn:
            self._reserve(length)
        raise self._quotas.overloaded(limit, caller, usage, bulk=bulk, waiting=self.waiting)

    def _add_bytes(self, caller: str, usage: Usage, bulk: bool, length: int, counted: int) -> None:
        limit = self._quotas.exceeded_bytes(usage, length, bulk, counted)
        if limit is not None:
            raise self._quotas.overloaded(limit, caller, usage, bulk=bulk, waiting=self.waiting)
        self._quotas.add_bytes(usage, length)

    def _check_bulk(self, caller: str, usage: Usage, length: int) -> None:
        limit = self._quotas.exceeded_as_bulk(usage, length)
        if limit is not None:
            raise self._quotas.overloaded(limit, caller, usage, bulk=True, waiting=self.waiting)

    def _admit_waiting(self) -> None:
        """Admit waiting frames as far as there is capacity."""
        while self._queue.waiting and any(self._admit_next(bulk) for bulk in self._queue.lanes()):
            pass

    def _admit_next(self, bulk: bool) -> bool:
        """Admit the first frame of a lane whose caller may have one; return whether it did."""
        quotas = self._quotas
        reserved, reserved_bytes = (0, 0) if self._reserved is None else (1, self._reserved)
        while (waiter := self._queue.head(bulk)) is not None:
            usage = quotas.of(waiter.caller)
            if quotas.total.requests + reserved >= limit_for(self.limits.requests, bulk):
                return False
            limit = quotas.exceeded(usage, waiter.length, bulk, reserved_bytes)
            if limit in SHARED_LIMITS:
                return False
            if limit is not None:
                self._queue.park(waiter)
            elif delay_s := quotas.rate_delay_s(usage):
                self._queue.park(waiter)
                asyncio.get_running_loop().call_later(delay_s, self._resume, waiter.caller)
            else:
                self._queue.pop(waiter)
                if not waiter.admitted.done():
                    self._frames_turn = False
                    permit = Permit(self, waiter.caller, usage, bulk, waiter.length)
                    waiter.admitted.set_result(permit)
                return True
        return False

    def _resume(self, caller: str) -> None:
        """Admit a caller's frames again: its own limits may allow one now."""
        self._queue.resume(caller)
        self._admit_waiting()

    def _next_frame_bytes(self) -> int:
        """Return the bytes that are reserved for the next frame, if it is the frames' turn."""
        head = self._queue.head(bulk=False) if self._frames_turn else None
        return 0 if head is None else head.length

    def _reserve(self, length: int) -> None:
        """Reserve the next capacity for the retry of a refused request, for a while."""
        if self._reserved is None:
            self._reserved = length
            loop = asyncio.get_running_loop()
            self._reservation_timer = loop.call_later(RESERVATION_S, self._on_reservation_timeout)

    def _cancel_reservation(self) -> None:
        self._reserved = None
        if self._reservation_timer is not None:
            self._reservation_timer.cancel()
            self._reservation_timer = None

    def _on_reservation_timeout(self) -> None:
        self._cancel_reservation()
        self._frames_turn = True
        self._admit_waiting()


class Permit:
    """Permission for one image to be in flight, which it counts; made by `Admission`."""

    __slots__ = ("_admission", "_bulk", "_bytes", "_caller", "_usage")

    def __init__(
        self, admission: Admission, caller: str, usage: Usage, bulk: bool, length: int
    ) -> None:
        self._admission = admission
        self._caller = caller
        self._usage = usage
        self._bulk = bulk
        self._bytes = length
        admission._quotas.add_request(caller, usage, length)

    def add_bytes(self, length: int) -> None:
        """Count more bytes of the image.

        Raises:
            Overloaded: A limit is reached; names it.
        """
        self._admission._add_bytes(self._caller, self._usage, self._bulk, length, self._bytes)
        self._bytes += length

    def make_bulk(self) -> None:
        """Count the image as bulk from now on.

        Raises:
            Overloaded: A limit of bulk requests is reached; names it.
        """
        if not self._bulk:
            self._admission._check_bulk(self._caller, self._usage, self._bytes)
            self._bulk = True

    def release(self, *_: object) -> None:
        """Count the image no longer, and admit waiting frames in its place; once."""
        admission = self._admission
        admission._quotas.remove_request(self._caller, self._usage, self._bytes)
        if admission._queue.waiting:
            admission._resume(self._caller)

    def __enter__(self) -> Permit:
        return self

    __exit__ = release
