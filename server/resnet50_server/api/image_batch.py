"""One call about several images."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any

from resnet50.v1 import image_pb2
from resnet50_server.batching.result import Result
from resnet50_server.errors import InvalidRequest, ShuttingDown
from resnet50_server.inference.admission import Permit
from resnet50_server.inference.pipeline import InferenceTask, Pipeline
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
        self._computing: set[asyncio.Future[Result]] = set()
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> Any:
        """Return the response.

        Raises:
            Overloaded: Its images and results exceed a limit of admission control.
            ShuttingDown: The variant or the server accepts no more; to be repeated elsewhere.
        """
        call = self._call
        assert call.permit is not None  # set by the guard
        call.permit.add_bytes(call.message_bytes + len(self._left) * self._task.result_bytes)
        call.stream = self
        self._compute_next(None)
        admitting = start_task(self._admit(), "admit a batch")
        try:
            await self._ended
        finally:
            admitting.cancel()
            for computing in self._computing:
                computing.cancel()
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
            self._compute_next(permit)
            if len(self._left) % IMAGES_PER_TURN == 0:
                await asyncio.sleep(0)

    def _compute_next(self, permit: Permit | None) -> None:
        """Start to compute the next image, if there is one; those that are refused are skipped.

        Args:
            permit: For it; None for the call's own.
        """
        call = self._call
        while self._left and not self._ended.done():
            message, outcome = self._left.popleft()
            try:
                source = parse_image(message, self._pipeline.limits)
                inference = self._router.instrument(self._task.inference, call, source)
                infer = self._pipeline.infer(source, inference, call)
            except Exception as error:
                self._on_error(outcome, error)
            else:
                computing = start_task(infer, "image of a batch")
                self._computing.add(computing)
                on_done = partial(self._on_done, permit, outcome, inference)
                computing.add_done_callback(on_done)
                return
        if permit is not None:
            permit.release()
        if not self._computing and not self._ended.done():
            self._ended.set_result(None)

    def _on_done(
        self,
        permit: Permit | None,
        outcome: Any,
        inference: InferenceTask,
        computing: asyncio.Future[Result],
    ) -> None:
        """Write an image's result into the response; compute the next one, or free its permit."""
        self._computing.remove(computing)
        try:
            result = computing.result()
            if not self._ended.done():
                image = self._pipeline.record(inference, self._call, result, self._started)
                self._task.fill_outcome(outcome, result, image)
        except asyncio.CancelledError:
            self._ended.cancel()
        except Exception as error:
            self._on_error(outcome, error)
        if permit is not None and self._left and not self._pipeline.admission.draining:
            permit.release()
        else:
            self._compute_next(permit)

    def _on_error(self, outcome: Any, error: Exception) -> None:
        """Write an image's error into the response, or end the call."""
        call = self._call
        if self._ended.done():
            return
        if isinstance(error, ShuttingDown):
            self._ended.set_exception(error)  # the call can be repeated at another server
            return
        if is_server_error(error):
            log.error("an image of request %s failed", call.request_id, exc_info=error)
        self._pipeline.events.image_refused(call, error)
        outcome.error.CopyFrom(to_status(error, call.request_id))
