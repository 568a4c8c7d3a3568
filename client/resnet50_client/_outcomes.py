"""Outcomes of images that are not taken yet, in the order of the images or as they come."""

from __future__ import annotations

import collections
from typing import Generic, TypeVar

from ._bulk_images import Outcome

Result = TypeVar("Result")


class OutcomeQueue(Generic[Result]):
    """A queue of outcomes.

    Args:
        ordered: Outcomes are taken in the order of the images; else as they were added.

    Attributes:
        bytes: Size in memory of the outcomes that are not taken.
    """

    def __init__(self, ordered: bool) -> None:
        self._ordered = ordered
        self._ready: collections.deque[Outcome[Result]] = collections.deque()
        self._later: dict[int, Outcome[Result]] = {}
        self._next_index = 0
        self.bytes = 0

    def add(self, outcome: Outcome[Result]) -> None:
        """Add the outcome of an image."""
        self.bytes += outcome.bytes
        if not self._ordered:
            self._ready.append(outcome)
            return
        self._later[outcome.index] = outcome
        while (due := self._later.pop(self._next_index, None)) is not None:
            self._ready.append(due)
            self._next_index += 1

    def take(self) -> Outcome[Result] | None:
        """Remove and return the next outcome; None if there is none now."""
        if not self._ready:
            return None
        outcome = self._ready.popleft()
        self.bytes -= outcome.bytes
        return outcome
