"""One call about several images."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol

from resnet50_server.batching.result import Result
from resnet50_server.errors import ShuttingDown
from resnet50_server.events import ImageEvent
from resnet50_server.images.source import Source
from resnet50_server.inference.admission import Permit
from resnet50_server.inference.pipeline import InferenceTask, Pipeline
from resnet50_server.rollout.router import TrafficRouter
from resnet50_server.runtime.tasks import start_task

from .call import Call
from .status import is_server_error

log = logging.getLogger(__name__)

# So many images are started, or refused, before other calls have the event loop.
IMAGES_PER_TURN = 16


class BatchTask(Protocol):
    """The checked options of a call, which also writes its response."""

    @property
    def inference(self) -> InferenceTask:
        """The outputs that the pipeline computes."""
        ...

    @property
    def result_bytes(self) -> int:
        """The size of one result in the response, at most."""
        ...

    def fill_outcome(self, outcome: Any, result: Result, image: ImageEvent) -> None:
        """Write an image's result, and where its time went, into the response."""
        ...

    def fill_error(self, outcome: Any, error: Exception, request_id: str) -> None:
        """Write an image's error into the response, or raise one that ends the call."""
        ...


class ImageBatch:
    """Computes the images of one call; each may fail alone.

    The call's own permit is used for one image after another, so that the call proceeds however
    full the server is. More images are in flight as admission control grants permits for them, in
    turn with other callers' frames: two batches can never wait for each other. The bytes of the
    message are counted already.

    Args:
        images: The images as the request has them, each with its place in the response.
        parse: Returns the checked image of one.
        pipeline: Computes them.
        router: Watches them for traffic splits.
        task: The checked options of the call; writes the response.
        call: The RPC, with its permit.
    """

    def __init__(
        self,
        images: Iterable[tuple[Any, Any]],
        parse: Callable[[Any], Source],
        pipeline: Pipeline,
        router: TrafficRouter,
        task: BatchTask,
        call: Call,
    ) -> None:
        self._parse = parse
        self._pipeline = pipeline
        self._router = router
        self._task = task
        self._call = call
        self._started = time.perf_counter()
        self._left = deque(images)
        self._computing: set[asyncio.Future[Result]] = set()
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Return once the response is written.

        Raises:
            Overloaded: Its images and results exceed a limit of admission control.
            ShuttingDown: The variant or the server accepts no more; to be repeated elsewhere.
        """
        call = self._call
        assert call.permit is not None  # set by the guard
        call.permit.add_bytes(len(self._left) * self._task.result_bytes)
        call.stream = self
        self._compute_next(None)
        admitting = start_task(self._admit(), "admit a batch")
        try:
            await self._ended
        finally:
            admitting.cancel()
            for computing in self._computing:
                computing.cancel()

    async def _admit(self) -> None:
        """Start to compute further images as there are permits for them."""
        admission, caller, bulk = self._pipeline.admission, self._call.caller.name, self._call.bulk
        turn_ends = len(self._left) - IMAGES_PER_TURN
        while self._left and not self._ended.done():
            try:
                permit = admission.try_acquire(caller, bulk=bulk)
                if permit is None:
                    permit = await admission.acquire(caller, bulk=bulk)
            except ShuttingDown:
                return  # the call was admitted before that: the permits it has compute the rest
            self._compute_next(permit)
            if len(self._left) <= turn_ends:
                await asyncio.sleep(0)
                turn_ends = len(self._left) - IMAGES_PER_TURN

    def _compute_next(self, permit: Permit | None) -> None:
        """Start to compute the next image, if there is one; those that are refused are skipped.

        Args:
            permit: For it; None for the call's own.
        """
        call, turn_ends = self._call, len(self._left) - IMAGES_PER_TURN
        while self._left and not self._ended.done():
            if len(self._left) <= turn_ends:
                # Only with the call's own permit: one after another, whatever permits there are.
                if permit is None:
                    asyncio.get_running_loop().call_soon(self._compute_next, None)
                else:
                    permit.release()
                return
            message, outcome = self._left.popleft()
            try:
                source = self._parse(message)
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
        """Write an image's error into the response, or end the call, which then counts it."""
        call = self._call
        if self._ended.done():
            return
        if isinstance(error, ShuttingDown):
            self._ended.set_exception(error)  # the call can be repeated at another server
            return
        try:
            self._task.fill_error(outcome, error, call.request_id)
        except Exception as ending:
            call.image_failed = True
            self._ended.set_exception(ending)
            return
        if is_server_error(error):
            log.error("an image of request %s failed", call.request_id, exc_info=error)
        self._pipeline.events.image_refused(call, error)
