"""Computations that several requests wait for. Event loop only, no locks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable
from dataclasses import replace
from types import TracebackType
from typing import Any, TypeAlias

from resnet50_server.batching.fair_queue import virtual_deadline
from resnet50_server.batching.result import Result
from resnet50_server.errors import DeadlineUnreachable, EngineFailed, InvalidImage, Overloaded

Urgency: TypeAlias = tuple[int, float]
"""What of two requests the queues would take first: the smaller one."""


def urgency_of(now: float, deadline: float | None, flow: Hashable | None, bulk: bool) -> Urgency:
    """Return how urgent a request is.

    A frame's turn depends on its own stream, so frames come behind all that stand alone.

    Args:
        now: Loop time.
        deadline: In loop time; None for no limit.
        flow: The stream that it belongs to, if it does.
        bulk: Whether it gives way to interactive ones.
    """
    if bulk:
        return 2, 0.0
    return (0, virtual_deadline(now, deadline)) if flow is None else (1, 0.0)


Landed: TypeAlias = "Callable[[Flight, Result | None], None]"


class Flight:
    """A computation, and all who wait for it: its leader, and followers. Made by `Asked.lead`.

    It goes on while anybody waits. If it fails for a reason of its leader's, who has left or is
    refused, followers are told to ask again; what is wrong with the image is wrong for all.

    As a context, of what comes before the batch: an error within it ends the flight.

    Args:
        urgency: Its leader's.
        landed: Called once it has ended, with the result if there is one.
        shared: Called for each follower that gets the result.

    Attributes:
        urgency: The same.
        crowded: Whether it ended because there was no room. So it will for others, who had better
            try all at once than in turn.
    """

    __slots__ = (
        "_computing",
        "_landed",
        "_leader",
        "_loop",
        "_shared",
        "_waiting",
        "crowded",
        "urgency",
    )

    def __init__(self, urgency: Urgency, landed: Landed, shared: Callable[[], None]) -> None:
        self.urgency = urgency
        self.crowded = False
        self._landed = landed
        self._shared = shared
        self._loop = asyncio.get_running_loop()
        self._computing: asyncio.Future[Result] | None = None
        self._leader: asyncio.Future[Result] | None = None
        self._waiting: dict[asyncio.Future[Any], None] = {}  # followers, as they came

    def __enter__(self) -> Flight:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None and self._computing is None:
            self._landed(self, None)
            self._release(error)

    def carry(self, computing: asyncio.Future[Result]) -> asyncio.Future[Result]:
        """Wait for a batch.

        Args:
            computing: Its result to come; cancelled when nobody waits any more.

        Returns:
            The same for the leader, who leaves by cancelling it.
        """
        self._computing = computing
        self._leader = leader = self._loop.create_future()
        leader.add_done_callback(self._left)
        computing.add_done_callback(self._land)
        return leader

    async def follow(self, deadline: float | None) -> Result | None:
        """Wait for the result.

        Args:
            deadline: Until when, in loop time; None for no limit.

        Returns:
            None if the computation ended without one, for a reason of its leader's: ask again.

        Raises:
            InvalidImage: The image cannot be read.
            EngineFailed: The engine fails on it.
            DeadlineUnreachable: There is no result yet.
        """
        joined = time.perf_counter()
        waiter: asyncio.Future[Result | None] = self._loop.create_future()
        self._waiting[waiter] = None
        waiter.add_done_callback(self._left)
        timer = None
        if deadline is not None:
            timer = self._loop.call_at(deadline, _expire, waiter)
        try:
            result = await waiter
        finally:
            if timer is not None:
                timer.cancel()
            # An error's traceback holds this frame, which would hold the error: a circle.
            del waiter
        if result is None:
            return None
        self._shared()
        waited_s = time.perf_counter() - joined
        return replace(result, queue_s=waited_s, compute_s=0.0, batch=None, cache="shared")

    def _left(self, waiter: asyncio.Future[Any]) -> None:
        """See that one waits no longer; the last one ends the computation."""
        self._waiting.pop(waiter, None)
        computing, leader = self._computing, self._leader
        if computing is None or leader is None or computing.done():
            return
        if leader.done() and not self._waiting:
            self._landed(self, None)
            computing.cancel()

    def _land(self, computing: asyncio.Future[Result]) -> None:
        """Tell everybody how it ended."""
        leader = self._leader
        assert leader is not None  # `carry` made it
        if computing.cancelled():
            return  # nobody waits
        error = computing.exception()
        if error is None:
            result = computing.result()
            for waiter in (leader, *self._waiting):
                if not waiter.done():
                    waiter.set_result(result)
            self._landed(self, result)
        else:
            self._landed(self, None)
            if not leader.done():
                leader.set_exception(error)
            self._release(error)

    def _release(self, error: BaseException) -> None:
        """Let followers fail as the leader did, or go on by themselves."""
        self.crowded = isinstance(error, Overloaded)
        for waiter in self._waiting:
            if waiter.done():
                continue
            # To each its own, as a traceback grows with whoever raises it.
            if isinstance(error, InvalidImage):
                waiter.set_exception(InvalidImage(error.field, error.reason, kind=error.kind))
            elif isinstance(error, EngineFailed):
                # Computing it again, each in turn, would fail as many batches in a row.
                failure = type(error)(*error.args)
                failure.__cause__ = error.__cause__
                waiter.set_exception(failure)
            else:
                waiter.set_result(None)


def _expire(waiter: asyncio.Future[Result | None]) -> None:
    if not waiter.done():
        waiter.set_exception(
            DeadlineUnreachable(
                "the deadline passed while the same image was computed for another request"
            )
        )
