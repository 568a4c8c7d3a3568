"""Shadow requests: a candidate computes images that a variant has answered; no client waits.

They run one at a time, so that a client's request waits for one of them at most. Those that arrive
while the queue is full are skipped.
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
from resnet50_server.errors import Overloaded, ServingError, ShuttingDown, TransformMismatch
from resnet50_server.images.background import Background
from resnet50_server.images.source import Source, size_bytes
from resnet50_server.inference.pipeline import InferenceTask
from resnet50_server.lifecycle.loaded_variant import LoadedVariant

from .comparison import Output, SplitStats

log = logging.getLogger(__name__)

Compute: TypeAlias = Callable[[Source, InferenceTask, RequestContext], Awaitable[Result]]

# Limits of the queue for one candidate: a few of its batches, and a few of the largest images.
MAX_WAITING = 16
MAX_WAITING_BYTES = 64 * 2**20


@dataclass(frozen=True)
class ShadowRequest:
    """An image for a candidate to compute.

    Attributes:
        source: The image, as received.
        variant_output: The variant's output for it.
        candidate: Computes it.
        stats: The split's statistics, which count it.
        background: Colour behind transparent pixels; None for the candidate's.
    """

    source: Source
    variant_output: Output
    candidate: LoadedVariant
    stats: SplitStats
    background: Background | None = None


class ShadowWorker:
    """A queue of shadow requests for one candidate. Event loop only.

    Args:
        compute: Computes an image, behind what callers wait for.
        name: The candidate's.

    Attributes:
        waiting_bytes: Size of the images that wait.
    """

    def __init__(self, compute: Compute, name: str) -> None:
        self._compute = compute
        self._name = name
        self._waiting: deque[ShadowRequest] = deque()
        self.waiting_bytes = 0
        self._working: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def waiting(self) -> int:
        """Number of images that wait."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """True while no image waits or is computed."""
        return self._working is None

    def has_capacity(self, source: Source) -> bool:
        """Return whether an image may wait. However long it is, it may if no other does."""
        if self._closed or len(self._waiting) >= MAX_WAITING:
            return False
        return not self._waiting or self.waiting_bytes + size_bytes(source) <= MAX_WAITING_BYTES

    def add(self, shadow: ShadowRequest) -> None:
        """Compute an image when its turn comes; without room it counts as skipped."""
        if not self.has_capacity(shadow.source):
            shadow.stats.skipped += 1
            return
        self._waiting.append(shadow)
        self.waiting_bytes += size_bytes(shadow.source)
        if self.idle:
            # In a context of its own: its log lines do not belong to the call in progress here.
            self._working = Context().run(
                asyncio.create_task, self._work(), name=f"shadows for {self._name}"
            )

    def close(self) -> None:
        """Accept and compute no more."""
        self._closed = True
        self._waiting.clear()
        self.waiting_bytes = 0
        if self._working is not None:
            self._working.cancel()

    async def _work(self) -> None:
        try:
            while self._waiting:
                shadow = self._waiting.popleft()
                self.waiting_bytes -= size_bytes(shadow.source)
                await self._compare(shadow)
                del shadow  # frees its image
        finally:
            self._working = None

    async def _compare(self, shadow: ShadowRequest) -> None:
        candidate, stats = shadow.candidate, shadow.stats
        call = RequestContext("Shadow", "", (), bulk=True, shadow=True, variant=self._name)
        try:
            task = InferenceTask(
                candidate, top_k=1, with_embedding=True, background=shadow.background
            )
            result = await self._compute(shadow.source, task, call)
        except ShuttingDown:
            pass  # the candidate has been replaced or goes, and with it what was counted
        except (Overloaded, TransformMismatch):
            stats.skipped += 1
        except ServingError as error:  # the engine's own are in the log already
            log.debug("candidate %s failed on a shadow: %s", self._name, error)
            stats.failed += 1
        except Exception:
            log.exception("candidate %s failed on a shadow", self._name)
            stats.failed += 1
        else:
            stats.comparison.add(shadow.variant_output, output_of(result, candidate))


def output_of(result: Result, variant: LoadedVariant) -> Output:
    """Return what a comparison needs of a result with an embedding and at least one category."""
    assert result.embedding is not None  # asked for
    label = variant.spec.categories[int(result.indices[0])]
    # A copy: the vector is a part of its batch's.
    return Output(label, result.embedding.copy(), result.compute_s)
