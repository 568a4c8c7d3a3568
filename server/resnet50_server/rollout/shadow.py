"""Images that a variant has answered and a candidate computes as well; nobody waits for that.

One at a time: whoever comes meanwhile waits for one image at most. Those that come while enough
wait already are left out: a server that has no time for them does not collect them either.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import Context
from dataclasses import dataclass
from typing import TypeAlias

from resnet50_server.batching.result import Result
from resnet50_server.context import RequestContext
from resnet50_server.errors import Overloaded, ServingError, ShuttingDown
from resnet50_server.images.source import Source, size_bytes
from resnet50_server.inference.pipeline import InferenceTask
from resnet50_server.lifecycle.loaded_variant import LoadedVariant

from .split import Seen, Tally

log = logging.getLogger(__name__)

Compute: TypeAlias = Callable[[Source, InferenceTask, RequestContext], Awaitable[Result]]

# What waits for one candidate, at most: a few of its batches, and a few of the largest images.
MAX_WAITING = 16
MAX_WAITING_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Shadow:
    """An image that a candidate is to compute.

    Attributes:
        source: The image, as it came.
        seen: What the variant made of it.
        candidate: Computes it.
        tally: Where it is counted.
    """

    source: Source
    seen: Seen
    candidate: LoadedVariant
    tally: Tally


class Shadows:
    """A line of images for one candidate. Event loop only.

    Args:
        compute: Computes an image, behind what callers wait for.
        name: The candidate's.
    """

    def __init__(self, compute: Compute, name: str) -> None:
        self._compute = compute
        self._name = name
        self._waiting: deque[Shadow] = deque()
        self._bytes = 0
        self._working: asyncio.Task[None] | None = None
        self._closed = False

    def has_room(self, source: Source) -> bool:
        """Return whether an image may wait. However long it is, it may if no other does."""
        if self._closed or len(self._waiting) >= MAX_WAITING:
            return False
        return not self._waiting or self._bytes + size_bytes(source) <= MAX_WAITING_BYTES

    def add(self, shadow: Shadow) -> None:
        """Compute an image when its turn comes; without room it counts as skipped."""
        if not self.has_room(shadow.source):
            shadow.tally.skipped += 1
            return
        self._waiting.append(shadow)
        self._bytes += size_bytes(shadow.source)
        if self._working is None:
            # In a context of its own: what is logged there is none of the call's that goes on here.
            self._working = Context().run(
                asyncio.create_task, self._work(), name=f"shadows for {self._name}"
            )

    def close(self) -> None:
        """Take and compute no more."""
        self._closed = True
        self._waiting.clear()
        self._bytes = 0
        if self._working is not None:
            self._working.cancel()

    async def _work(self) -> None:
        try:
            while self._waiting:
                shadow = self._waiting.popleft()
                self._bytes -= size_bytes(shadow.source)
                await self._compare(shadow)
                del shadow  # its image is not held on to
        finally:
            self._working = None

    async def _compare(self, shadow: Shadow) -> None:
        candidate, tally = shadow.candidate, shadow.tally
        call = RequestContext("Shadow", "", (), bulk=True, variant=self._name)
        try:
            task = InferenceTask(candidate, 1, True, shadow=True)
            result = await self._compute(shadow.source, task, call)
        except ShuttingDown:
            pass  # the candidate has been replaced or goes, and with it what was counted
        except Overloaded:
            tally.skipped += 1
        except ServingError as error:  # the engine's own are in the log already
            log.debug("candidate %s failed on a shadow: %s", self._name, error)
            tally.failed += 1
        except Exception:
            log.exception("candidate %s failed on a shadow", self._name)
            tally.failed += 1
        else:
            tally.comparison.add(shadow.seen, seen(result, candidate))


def seen(result: Result, variant: LoadedVariant) -> Seen:
    """Return what a comparison needs of a result with an embedding and at least one category."""
    assert result.embedding is not None  # asked for
    label = variant.spec.categories[int(result.indices[0])]
    # A copy: the vector is a part of its batch's.
    return Seen(label, result.embedding.copy(), result.compute_s)
