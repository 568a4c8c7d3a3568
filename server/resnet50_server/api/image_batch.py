"""One call about several images."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from resnet50.v1 import image_pb2
from resnet50_server.errors import InvalidRequest, ShuttingDown
from resnet50_server.inference.admission import Permit
from resnet50_server.inference.pipeline import Pipeline
from resnet50_server.rollout.router import TrafficRouter
from resnet50_server.runtime.tasks import start_task

from .call import Call
from .image_source import parse_image
from .status import is_server_error, to_status
from .tasks import Task

log = logging.getLogger(__name__)

# Images x top_k of a call: each category costs the event loop about 1.5 us.
MAX_CATEGORIES = 20_000
# So many images are started before other calls have the event loop.
IMAGES_PER_TURN = 16


class ImageBatch:
    """Computes the images of one call; each may fail alone.

    The call's own permit is used for one image after another, so that the call proceeds however
    full the server is. More images are in flight as admission control grants permits for them, in
    turn with other callers' frames: two batches can never wait for each other.

    Args:
        images: The images.
        pipeline: Computes them.
        router: Watches them for traffic splits.
        task: The checked options of the call.
        call: The RPC, with its permit.

    Raises:
        InvalidRequest: The results would have too many categories.
    """

    def __init__(
        self,
        images: Sequence[image_pb2.Image],
        pipeline: Pipeline,
        router: TrafficRouter,
        task: Task,
        call: Call,
    ) -> None:
        if (categories := len(images) * task.inference.top_k) > MAX_CATEGORIES:
            raise InvalidRequest(
                "options.top_k",
                f"is {task.inference.top_k} for {len(images)} images, {categories} categories; a"
                f" call is answered with at most {MAX_CATEGORIES}: send fewer images a call",
            )
        self._pipeline = pipeline
        self._router = router
        self._task = task
        self._call = call
        self._started = time.perf_counter()
        self._response = task.batch_response()
        outcomes = [self._response.results.add() for _ in images]
        self._left = deque(zip(images, outcomes, strict=True))
        self._computing: set[asyncio.Task[None]] = set()

    async def run(self, message_bytes: int) -> Any:
        """Return the response.

        Args:
            message_bytes: The size of the request.

        Raises:
            Overloaded: Its images and results exceed a limit of admission control.
            ShuttingDown: The variant or the server accepts no more; to be repeated elsewhere.
        """
        call = self._call
        assert call.permit is not None  # set by the guard
        call.permit.add_bytes(message_bytes + len(self._left) * self._task.result_bytes)
        call.stream = self
        first = self._left.popleft()
        admitting = start_task(self._admit(), "admit a batch")
        try:
            await self._compute(*first)
            while self._left:
                await self._compute(*self._left.popleft())
            await asyncio.gather(*self._computing)
        finally:
            for running in (admitting, *self._computing):
                running.cancel()
        return self._response

    async def _admit(self) -> None:
        """Start to compute further images as there are permits for them."""
        admission, caller, bulk = self._pipeline.admission, self._call.caller.name, self._call.bulk
        while self._left:
            try:
                permit = admission.try_acquire(caller, bulk=bulk)
                if permit is None:
                    permit = await admission.acquire(caller, bulk=bulk)
            except ShuttingDown:
                return  # the call was admitted before that: the permits it has compute the rest
            if not self._left:
                permit.release()
                return
            computing = start_task(
                self._compute_under(permit, *self._left.popleft()), "image of a batch"
            )
            self._computing.add(computing)
            computing.add_done_callback(_retrieve)
            if len(self._left) % IMAGES_PER_TURN == 0:
                await asyncio.sleep(0)

    async def _compute_under(self, permit: Permit, image: image_pb2.Image, outcome: Any) -> None:
        with permit:
            await self._compute(image, outcome)
            while self._left and self._pipeline.admission.draining:
                await self._compute(*self._left.popleft())

    async def _compute(self, message: image_pb2.Image, outcome: Any) -> None:
        """Compute an image, and write its result or its error into the response."""
        call = self._call
        try:
            source = parse_image(message, self._pipeline.limits)
            inference = self._router.instrument(self._task.inference, call, source)
            result = await self._pipeline.infer(source, inference, call)
        except ShuttingDown:
            raise  # fails the call: it can be repeated at another server
        except Exception as error:
            if is_server_error(error):
                log.error("an image of request %s failed", call.request_id, exc_info=error)
            self._pipeline.events.image_refused(call, error)
            outcome.error.CopyFrom(to_status(error, call.request_id))
        else:
            image = self._pipeline.record(inference, call, result, self._started)
            self._task.fill_outcome(outcome, result, image)


def _retrieve(computing: asyncio.Task[None]) -> None:
    """Mark an error as retrieved, or asyncio would log it: the call fails with the first one."""
    if not computing.cancelled():
        computing.exception()
