"""Which weights may answer at a time, as known by who changes them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class _Span:
    value: str | None
    begins: float
    ends: float = math.inf


class Timeline:
    """Weights behind each name, from when to when.

    While a change is being made both may answer, the old and the new one; before it only the old
    one, and after it only the new one. So a request that begins after a change has been confirmed
    has to be answered by the new weights.

    Values are digests, None for "not served"; for the name "" they are the default variant's names.
    """

    def __init__(self) -> None:
        self._spans: dict[str, list[_Span]] = {}

    def starts(self, name: str, value: str | None) -> None:
        """Say what a name stands for from the start."""
        self._spans[name] = [_Span(value, -math.inf)]

    @contextmanager
    def changing(self, name: str, value: str | None) -> Iterator[None]:
        """Say that a name comes to stand for something else, at some time within the block.

        If the block raises, nothing has changed in the end, but may have been for a while.
        """
        spans = self._spans[name]
        new = _Span(value, time.monotonic())
        spans.append(new)
        try:
            yield
        except BaseException:
            new.ends = time.monotonic()
            raise
        for span in spans[:-1]:
            span.ends = min(span.ends, time.monotonic())

    def now(self, name: str) -> str | None:
        """Return what a name stands for; not while it is being changed."""
        return next(one.value for one in self._spans[name] if one.ends == math.inf)

    def values(self, name: str, since: float, until: float) -> set[str | None]:
        """Return what a name may have stood for between two times (`time.monotonic`)."""
        spans = self._spans.get(name, [_Span(None, -math.inf)])
        return {one.value for one in spans if one.begins <= until and since <= one.ends}

    def digests(self, variant: str, since: float, until: float) -> dict[str, set[str | None]]:
        """Return which variants may answer a request for one, and by which weights.

        Args:
            variant: As the request has it; "" for the default.
            since: When the request was begun.
            until: When its answer had come.
        """
        names = self.values("", since, until) if variant == "" else {variant}
        return {name: self.values(name, since, until) for name in names if name is not None}
