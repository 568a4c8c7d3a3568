"""Queue of frames that wait for a permit: callers take turns, bulk behind interactive."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from resnet50_server.context import BULK_EVERY

if TYPE_CHECKING:
    from .admission import Permit


@dataclass(eq=False, slots=True)
class Waiter:
    """A frame that waits.

    Attributes:
        caller: Its sender.
        length: Its bytes.
        bulk: Whether it is in the bulk lane.
        admitted: Resolved with its permit.
    """

    caller: str
    length: int
    bulk: bool
    admitted: asyncio.Future[Permit]


class AdmissionQueue:
    """First come, first served within one caller; callers take turns.

    A caller that has reached its own limits is parked, so that no other waits behind it and each
    release costs the same however many wait. Event loop only.

    Attributes:
        waiting: How many frames wait.
    """

    def __init__(self) -> None:
        # For each lane, interactive and bulk: callers in the order of their turns, each with its
        # frames in order. The inner dictionaries are ordered sets.
        self._ready: tuple[dict[str, dict[Waiter, None]], ...] = ({}, {})
        self._parked: tuple[dict[str, dict[Waiter, None]], ...] = ({}, {})
        self._since_bulk = 0
        self.waiting = 0

    def push(self, waiter: Waiter) -> None:
        """Append a frame to its caller's."""
        lane, parked = self._ready[waiter.bulk], self._parked[waiter.bulk]
        images = parked.get(waiter.caller)
        if images is None:
            images = lane.setdefault(waiter.caller, {})
        images[waiter] = None
        self.waiting += 1

    def remove(self, waiter: Waiter) -> None:
        """Remove a frame that was cancelled or admitted."""
        for lane in (self._ready[waiter.bulk], self._parked[waiter.bulk]):
            images = lane.get(waiter.caller)
            if images is not None and waiter in images:
                del images[waiter]
                self.waiting -= 1
                if not images:
                    del lane[waiter.caller]
                return

    def lanes(self) -> tuple[bool, bool]:
        """Return the lanes in turn; True is bulk, which goes first once in `BULK_EVERY`."""
        return (True, False) if self._since_bulk >= BULK_EVERY - 1 else (False, True)

    def head(self, bulk: bool) -> Waiter | None:
        """Return a lane's first frame whose caller is not parked."""
        for images in self._ready[bulk].values():
            return next(iter(images))
        return None

    def pop(self, waiter: Waiter) -> None:
        """Remove a lane's head, which was admitted; its caller goes to the end."""
        lane = self._ready[waiter.bulk]
        images = lane.pop(waiter.caller)
        del images[waiter]
        if images:
            lane[waiter.caller] = images
        self.waiting -= 1
        if waiter.bulk:
            self._since_bulk = 0
        elif self._ready[True]:
            self._since_bulk += 1

    def park(self, waiter: Waiter) -> None:
        """Skip the caller of a lane's head until `resume`."""
        self._parked[waiter.bulk][waiter.caller] = self._ready[waiter.bulk].pop(waiter.caller)

    def resume(self, caller: str) -> None:
        """Consider a caller again: its own limits may allow a frame now."""
        for ready, parked in zip(self._ready, self._parked, strict=True):
            if caller in parked:
                ready[caller] = parked.pop(caller)

    def clear(self) -> list[Waiter]:
        """Remove all frames; return them."""
        lanes = (*self._ready, *self._parked)
        waiters = [waiter for lane in lanes for images in lane.values() for waiter in images]
        for lane in lanes:
            lane.clear()
        self.waiting = 0
        return waiters
