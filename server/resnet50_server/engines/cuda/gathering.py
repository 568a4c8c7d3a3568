"""Calls that come while another one runs, made together as the next one."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Gathering(Generic[Item, Result]):
    """Lets threads that each have one item share calls of a function that takes many.

    No call waits for others to join it: what has gathered is what came while the last one ran.

    Args:
        together: Takes items, returns a result or an exception for each; one call at a time.
        limit: How many items it takes, at most.
    """

    def __init__(
        self, together: Callable[[Sequence[Item]], Sequence[Result | Exception]], limit: int
    ) -> None:
        self._together = together
        self._limit = limit
        self._running = threading.Lock()
        self._waiting: deque[tuple[Item, Future[Result]]] = deque()

    def call(self, item: Item) -> Result:
        """Return the result for `item`; blocks.

        Raises:
            Exception: What the function gave for this item, or raised for all of a call.
        """
        future: Future[Result] = Future()
        self._waiting.append((item, future))
        # Whoever comes in finds that its item has been dealt with, or deals with all that wait.
        with self._running:
            while not future.done():
                self._deal()
        return future.result()

    def _deal(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(self._limit, len(self._waiting)))]
        results: Sequence[Result | Exception]
        try:
            results = self._together([item for item, _ in batch])
        except Exception as error:
            results = [error] * len(batch)
        for (_, future), result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
