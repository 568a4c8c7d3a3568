"""Images that wait to be admitted: in order, callers in turn, bulk behind interactive ones."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from resnet50_server.context import BULK_EVERY

if TYPE_CHECKING:
    from .admission import Place


@dataclass(eq=False, slots=True)
class Waiter:
    """An image that waits.

    Attributes:
        caller: Who sent it.
        length: Its bytes.
        bulk: Whether it is in the bulk lane.
        admitted: Gets its permit.
    """

    caller: str
    length: int
    bulk: bool
    admitted: asyncio.Future[Place]


class AdmissionQueue:
    """First come, first served within one caller; callers take turns.

    A caller whose own limits are reached is parked, so that nobody else waits behind it and each
    release costs the same however many wait. Event loop only.
    """

    def __init__(self) -> None:
        # Of each lane, interactive and bulk: callers in the order of their turns, and of each the
        # images in order. The inner dictionaries are ordered sets.
        self._ready: tuple[dict[str, dict[Waiter, None]], ...] = ({}, {})
        self._parked: tuple[dict[str, dict[Waiter, None]], ...] = ({}, {})
        self._since_bulk = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def push(self, waiter: Waiter) -> None:
        """Add an image behind its caller's others."""
        lane, parked = self._ready[waiter.bulk], self._parked[waiter.bulk]
        images = parked.get(waiter.caller)
        if images is None:
            images = lane.setdefault(waiter.caller, {})
        images[waiter] = None
        self._count += 1

    def remove(self, waiter: Waiter) -> None:
        """Take out an image that was given up, or has been admitted."""
        for lane in (self._ready[waiter.bulk], self._parked[waiter.bulk]):
            images = lane.get(waiter.caller)
            if images is not None and waiter in images:
                del images[waiter]
                self._count -= 1
                if not images:
                    del lane[waiter.caller]
                return

    def lanes(self) -> tuple[bool, bool]:
        """Return which lane goes first now; True is bulk, which has one turn in `BULK_EVERY`."""
        return (True, False) if self._since_bulk >= BULK_EVERY - 1 else (False, True)

    def head(self, bulk: bool) -> Waiter | None:
        """Return a lane's first image whose caller is not parked."""
        for images in self._ready[bulk].values():
            return next(iter(images))
        return None

    def pop(self, waiter: Waiter) -> None:
        """Take out a lane's head, which has been admitted; its caller's next turn comes last."""
        lane = self._ready[waiter.bulk]
        images = lane.pop(waiter.caller)
        del images[waiter]
        if images:
            lane[waiter.caller] = images
        self._count -= 1
        if waiter.bulk:
            self._since_bulk = 0
        elif self._ready[True]:
            self._since_bulk += 1

    def park(self, waiter: Waiter) -> None:
        """Pass over the caller of a lane's head until `resume`."""
        self._parked[waiter.bulk][waiter.caller] = self._ready[waiter.bulk].pop(waiter.caller)

    def resume(self, caller: str) -> None:
        """Look at a caller's images again: its own limits may allow one now."""
        for ready, parked in zip(self._ready, self._parked, strict=True):
            if caller in parked:
                ready[caller] = parked.pop(caller)

    def clear(self) -> list[Waiter]:
        """Take out all images; return them."""
        lanes = (*self._ready, *self._parked)
        waiters = [waiter for lane in lanes for images in lane.values() for waiter in images]
        for lane in lanes:
            lane.clear()
        self._count = 0
        return waiters
