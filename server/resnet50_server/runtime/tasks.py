"""Tasks that start at once, where Python can, and only where there is something to run."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def start_task(work: Coroutine[Any, Any, T] | asyncio.Future[T], name: str) -> asyncio.Future[T]:
    """Run a coroutine beside the caller; return its task. A future is in progress already.

    From Python 3.12 on a coroutine runs at once up to where it first waits, and needs no turn of
    the event loop if it never does; before, it starts in the loop's next turn.

    Args:
        work: The coroutine, or a future, which is returned.
        name: The task's.
    """
    if isinstance(work, asyncio.Future):
        return work
    if sys.version_info >= (3, 12):
        loop = asyncio.get_running_loop()
        return asyncio.Task(work, loop=loop, name=name, eager_start=True)
    return asyncio.create_task(work, name=name)
