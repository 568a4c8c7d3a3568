"""What becomes of a batch that failed: its images are run again, apart, if that may help.

Whatever the engine raised, one image may be the reason. So the halves of a batch that failed are
run again, and the halves of those that fail; an image that fails alone is told so, and the others
are answered. A device that is broken must not be given two runs for each image, though: once
`MOST_IN_A_ROW` parts in a row have failed and none was computed, what is left fails with them.
Parts of one size run before smaller ones, and of two halves one is sound if one image is the
reason. So one such image is always found (2 log2 n runs); two in one batch are as well, since of
the first two quarters one is sound; and a broken device is found out after 5 runs.

Whether the variant or the device is to blame for batches that fail is told by a grey image, as when
the engine warmed up. A variant that fails on it is out of service, and then every other variant of
the device is given one: the device is lost only if all of them fail.

A batch that the memory did not hold is run again in parts as large as the memory is known to hold
by then (`BatchLimit`). Such a failure says nothing against the device, unless a single image does
not fit.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from resnet50_server.engines.oom import is_out_of_memory
from resnet50_server.errors import DoesNotFit, EngineFailed, ServingError, clear_tracebacks
from resnet50_server.runtime.fatal import DeviceLost

from .batch_limit import HOLD_S
from .queue import PendingRequest, VariantQueue, fail_pending
from .result import Result

log = logging.getLogger(__name__)

# Parts of one batch that may fail one after the other.
MOST_IN_A_ROW = 5
# One batch may fail for what is in it; so many in a row of a variant, or of a device, of which
# nothing could be computed, raise the question whether the variant fails on everything.
MAX_FAILURES = 5
# Whoever has taken the memory needs some time to give it back, or to be ended.
RETRY_S = 5.0


@dataclass(eq=False, slots=True)
class Rescue:
    """One batch that failed, and what was made of it.

    Attributes:
        parts: How many of its parts run, or wait to.
        failed_in_a_row: Parts that have failed since one was computed.
        computed: Whether one was.
        is_doubt: Whether it is no request's batch, but a grey image, to judge the variant by.
    """

    parts: int = 1
    failed_in_a_row: int = 0
    computed: bool = False
    is_doubt: bool = False

    def part_computed(self) -> None:
        """Take in that one of its parts was computed."""
        self.computed, self.failed_in_a_row = True, 0
        self.parts -= 1

    def part_failed(
        self, part: list[PendingRequest], size: int, fits: bool
    ) -> list[list[PendingRequest]]:
        """Take in that one of its parts has failed.

        Args:
            part: Those of its images that still wait for an answer.
            size: How many images it had.
            fits: Whether the device has the memory for so many.

        Returns:
            What is to be run again; nothing if the part is given up.
        """
        again: list[list[PendingRequest]] = []
        if not fits and size > 1:
            again = [part]
        else:
            self.failed_in_a_row += 1
            if size > 1 and not self.hopeless:
                half = (len(part) + 1) // 2
                again = [part[:half], part[half:]]
        again = [images for images in again if images]
        self.parts += len(again) - 1
        return again

    @property
    def hopeless(self) -> bool:
        """Whether what is left of it is not worth another run."""
        return self.failed_in_a_row >= MOST_IN_A_ROW


class Part(NamedTuple):
    """Images of a batch that failed, which wait to be run again."""

    queue: VariantQueue
    images: list[PendingRequest]
    rescue: Rescue


def _failed() -> ServingError:
    return EngineFailed("the engine failed on this image")


class Rescues:
    """What has failed on one device: runs it again, and judges variants and the device by it.

    After `MAX_FAILURES` batches in a row of which nothing could be computed, the variant is given a
    grey image. Only if it fails on that as well it is out of service: an image that its engine
    fails on must not do that to it, however often it is sent.

    Args:
        device: Its name.
        queues: Of the variants that it computes.
        on_lost: Called once it fails on all of them.

    Attributes:
        parts: What waits to be run again, the first one first; it goes before everything else.
    """

    def __init__(
        self,
        device: str,
        queues: Sequence[VariantQueue],
        on_lost: Callable[[DeviceLost], None],
    ) -> None:
        self.parts: deque[Part] = deque()
        self._device = device or "the device"
        self._queues = queues
        self._on_lost = on_lost
        self._failures = 0
        self._doubted: set[VariantQueue] = set()

    def computed(self, queue: VariantQueue, rescue: Rescue | None) -> None:
        """Take in that a batch was computed.

        Args:
            queue: Its variant's.
            rescue: What it is a part of, if it is one.
        """
        self._failures = queue.failures = 0
        queue.failing = False
        if rescue is not None:
            rescue.part_computed()
            if rescue.is_doubt:
                self._doubted.discard(queue)
                log.warning("variant %s computes a grey image on %s", queue.name, self._device)

    def failed(
        self,
        queue: VariantQueue,
        images: list[PendingRequest],
        rescue: Rescue | None,
        error: Exception,
        now: float,
    ) -> bool:
        """Take in that a batch failed: its images will be run again in parts, or are failed now.

        Args:
            queue: Its variant's.
            images: Those that were in it.
            rescue: What it is a part of, if it is one.
            error: What the engine raised.
            now: Loop time.

        Returns:
            Whether the device had no memory for it.
        """
        size, fits = len(images), not is_out_of_memory(error)
        if not fits:
            self._shrink(queue, size, error, now)
        elif rescue is None:
            log.error("a batch of %d failed on variant %s", size, queue.name, exc_info=error)
        if rescue is None and all(waiting.shadow for waiting in images):
            # Nobody is failed by a candidate's, and others show whether the device is lost.
            fail_pending(images, _failed, error)
            return not fits
        rescue = rescue or Rescue()
        left = [waiting for waiting in images if not waiting.future.done()]
        again = rescue.part_failed(left, size, fits)
        if again:
            # The frames of the error hold what the batch took of the memory.
            clear_tracebacks(error)
            self.parts.extend(Part(queue, part, rescue) for part in again)
        elif not rescue.is_doubt:
            if rescue.hopeless:
                left += self._withdraw(lambda part: part.rescue is rescue)
            fail_pending(
                left, _failed if fits else partial(DoesNotFit, self._device, RETRY_S), error
            )
        self._judge(queue, rescue, error)
        return not fits

    def next(self, now: float, free_at: float) -> Part | None:
        """Take out what is run next; fail what would come too late, and pass over what has left.

        Args:
            now: Loop time.
            free_at: When the device is free; see `VariantQueue.ends`.
        """
        while self.parts:
            queue, part, rescue = self.parts.popleft()
            images = queue.in_time(part, now, free_at)
            if not images:
                rescue.parts -= 1
                # Callers who allow little time must not hide that the device computes nothing.
                self._judge(queue, rescue)
                continue
            limit = queue.limit.now(now)
            if len(images) > limit:
                self.parts.appendleft(Part(queue, images[limit:], rescue))
                rescue.parts += 1
            return Part(queue, images[:limit], rescue)
        return None

    def _withdraw(self, which: Callable[[Part], bool]) -> list[PendingRequest]:
        """Take out parts of batches that are given up; return their images."""
        withdrawn = [part for part in self.parts if which(part)]
        for part in withdrawn:
            self.parts.remove(part)
            part.rescue.parts -= 1
        return [waiting for part in withdrawn for waiting in part.images]

    def _shrink(self, queue: VariantQueue, size: int, error: Exception, now: float) -> None:
        """Have smaller batches after one that did not fit; say so if memory is short since now."""
        if queue.limit.did_not_fit(size, now):
            log.warning(
                "variant %s: %s has no memory for a batch of %d (%s: %s); it is run again in parts,"
                " and for %g s batches stay as small as what fits. If this comes often, serve a"
                " smaller --max-batch-size or fewer variants",
                queue.name,
                self._device,
                size,
                type(error).__name__,
                str(error).strip().partition("\n")[0][:200],
                HOLD_S,
            )

    def _judge(
        self,
        queue: VariantQueue,
        rescue: Rescue,
        error: Exception | None = None,
    ) -> None:
        """Judge a variant by a batch that failed, once none of its parts will run any more.

        Args:
            queue: Its variant's.
            rescue: What was made of it.
            error: What the engine raised last, if that has just come.
        """
        if rescue.parts or rescue.computed:
            return
        if rescue.is_doubt:
            self._doubted.discard(queue)
            self._fails_on_everything(queue, error)
            return
        self._failures += 1
        queue.failures += 1
        if max(self._failures, queue.failures) >= MAX_FAILURES:
            self._doubt(queue)

    def _doubt(self, queue: VariantQueue) -> None:
        """Give a variant a grey image next."""
        if queue not in self._doubted:
            self._doubted.add(queue)
            self.parts.appendleft(Part(queue, [_grey(queue.crop)], Rescue(is_doubt=True)))

    def _fails_on_everything(self, queue: VariantQueue, error: Exception | None) -> None:
        """Take a variant out of service, and see whether the device computes any other."""
        queue.failing = True
        left = [one for one in self._queues if not one.failing]
        if not left:
            lost = DeviceLost(
                f"batches fail on {self._device} one after the other, and so does a grey image on"
                " each of its variants; the log says why"
            )
            lost.__cause__ = error
            self._on_lost(lost)
            return
        queue.health.fail(
            f"its engine fails on every batch on {self._device}, and on a grey image",
            "The log has the engine's errors: load the variant again (LoadVariant with replace), or"
            " restart",
        )
        fail_pending(self._withdraw(lambda part: part.queue is queue), queue.unhealthy, error)
        for one in left:
            self._doubt(one)


def _grey(crop: int) -> PendingRequest:
    """Return a grey image that nobody waits for.

    Args:
        crop: Its side, in pixels.
    """
    answered: asyncio.Future[Result] = asyncio.Future()
    answered.add_done_callback(asyncio.Future.exception)  # nobody else looks at it
    image = np.full((crop, crop, 3), 128, dtype=np.uint8)
    grey = PendingRequest(image, 1, False, None, 0.0, answered)
    grey.shadow = True  # what comes of it counts for no request
    return grey
