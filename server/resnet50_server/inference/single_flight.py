"""Single-flight: requests for the same computation share one. Event loop only, no locks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from functools import partial
from typing import Any, Generic, TypeVar

from resnet50_server.errors import DeadlineUnreachable

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Computations in progress, by key. Each is cancelled with the last request that waits."""

    def __init__(self) -> None:
        self._running: dict[Hashable, _Computation[T]] = {}

    async def run(
        self,
        key: Hashable,
        compute: Callable[[], Coroutine[Any, Any, T]],
        deadline: float | None = None,
    ) -> tuple[T, bool]:
        """Wait for the computation of `key`; start it if it does not run.

        An error is raised in all requests that wait. The exception is `DeadlineUnreachable`: that
        deadline is the starter's, so the others start the computation again.

        Args:
            key: Key of the computation.
            compute: Starts it. It keeps its own deadline.
            deadline: Until when to wait for a computation of another request, in loop time; None
                for no limit.

        Returns:
            Its result, and whether another request had started it.

        Raises:
            Exception: What `compute` raised; a copy, if another request had started it.
            DeadlineUnreachable: The deadline passed meanwhile.
        """
        while (computation := self._running.get(key)) is not None:
            try:
                return await self._join(computation, key, deadline), True
            except _StarterTooLate:
                pass
            finally:
                # An error's traceback holds this frame, which would hold the error: a cycle.
                del computation
        started = self._start(key, compute)
        try:
            await self._wait(started, key, None)
            return started.task.result(), False
        finally:
            del started

    def _start(
        self, key: Hashable, compute: Callable[[], Coroutine[Any, Any, T]]
    ) -> _Computation[T]:
        task = asyncio.create_task(compute(), name="compute for the cache")
        computation = self._running[key] = _Computation(task)
        task.add_done_callback(partial(self._on_done, key, computation))
        return computation

    async def _join(self, computation: _Computation[T], key: Hashable, deadline: float | None) -> T:
        """Return the result of a computation that another request has started.

        Raises:
            _StarterTooLate: It failed since that request's deadline could not be met.
        """
        task = computation.task
        try:
            if not await self._wait(computation, key, deadline):
                raise DeadlineUnreachable(
                    "the deadline passed while the same image was computed for another request"
                )
            error = task.exception()
            if error is None:
                return task.result()
            if isinstance(error, DeadlineUnreachable):
                raise _StarterTooLate
            # A copy: a traceback grows with each request that raises it.
            raise _copied(error) from error.__cause__
        finally:
            error = None
            del computation, task

    async def _wait(
        self, computation: _Computation[T], key: Hashable, deadline: float | None
    ) -> bool:
        """Return whether a computation has ended by the deadline; the last to leave cancels it."""
        task = computation.task
        timeout = None if deadline is None else deadline - asyncio.get_running_loop().time()
        computation.waiters += 1
        try:
            await asyncio.wait((task,), timeout=timeout)
            return task.done()
        finally:
            computation.waiters -= 1
            if not computation.waiters and not task.done():
                self._remove(key, computation)
                task.cancel()

    def _on_done(self, key: Hashable, computation: _Computation[T], task: asyncio.Task[T]) -> None:
        self._remove(key, computation)
        if not task.cancelled():
            task.exception()  # or asyncio logs it, if all requests were cancelled just now

    def _remove(self, key: Hashable, computation: _Computation[T]) -> None:
        if self._running.get(key) is computation:  # or it has been started again
            del self._running[key]


class _Computation(Generic[T]):
    """A computation that runs, and how many requests wait for it."""

    __slots__ = ("task", "waiters")

    def __init__(self, task: asyncio.Task[T]) -> None:
        self.task = task
        self.waiters = 0


class _StarterTooLate(Exception):
    """The deadline of the request that had started a computation could not be met."""


def _copied(error: BaseException) -> BaseException:
    """Return the same error without its traceback."""
    copied = type(error).__new__(type(error), *error.args)
    copied.__dict__.update(error.__dict__)
    return copied
