"""From a checked image to its result: response cache, decoding, batch."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from resnet50_server.batching.result import Result
from resnet50_server.context import RequestContext
from resnet50_server.errors import InvalidImage
from resnet50_server.events import ImageEvent, ServerEvents
from resnet50_server.images.background import Background
from resnet50_server.images.decode import decode, pixels_without_decoding
from resnet50_server.images.limits import ImageLimits
from resnet50_server.images.pixel_budget import BudgetFull, PixelBudget
from resnet50_server.images.preprocessed import FIELD as PREPROCESSED_FIELD
from resnet50_server.images.source import ImageWarning, PreprocessedImage, Source, size_bytes
from resnet50_server.images.transform import Transform
from resnet50_server.lifecycle.loaded_variant import LoadedVariant

from .admission import Admission
from .decode_pool import DecodePool
from .response_cache import MAX_INLINE_HASH_BYTES, CacheKey, ResponseCache, content_digest

log = logging.getLogger(__name__)


class InferenceTask(NamedTuple):
    """The outputs wanted for an image, and by which weights.

    Attributes:
        variant: The weights.
        top_k: How many categories to return; 0 for none.
        with_embedding: Whether to return the embedding.
        on_result: Called with the result just before the response is sent; see `rollout`.
        background: Colour behind transparent pixels; None for the variant's.
    """

    variant: LoadedVariant
    top_k: int
    with_embedding: bool
    on_result: Callable[[Result, ImageEvent], None] | None = None
    background: Background | None = None

    @property
    def transform(self) -> Transform:
        """The variant's transform, on this background."""
        transform = self.variant.spec.transform
        if self.background is None:
            return transform
        return replace(transform, background=self.background.color)


Inference: TypeAlias = Coroutine[Any, Any, Result] | asyncio.Future[Result]
"""An image that is computed once it is awaited, or already."""


class Pipeline:
    """Computes images one by one; they meet in the batches of their variant's scheduler.

    Args:
        admission: Bounds the images in the server.
        decode_pool: Threads that decode.
        limits: Of a single image.
        events: Told of every image that is answered.
        cache: Stores results; None to compute every image.
        pixel_budget: Bounds the pixels that are decoded at once; None for one image of the largest
            size.
        decode_image: Decodes an image instead of `decode`, in virtual time for example.
    """

    def __init__(
        self,
        admission: Admission,
        decode_pool: DecodePool,
        limits: ImageLimits,
        events: ServerEvents | None = None,
        cache: ResponseCache | None = None,
        pixel_budget: PixelBudget | None = None,
        decode_image: Callable[..., NDArray[np.uint8]] | None = None,
    ) -> None:
        self.admission = admission
        self.decode_pool = decode_pool
        self.limits = limits
        self.events = events or ServerEvents()
        self._cache = cache
        self._decode = partial(decode_image or decode, limits=limits)
        self._pixels = pixel_budget or PixelBudget(limits.max_pixels)

    def infer(self, source: Source, task: InferenceTask, context: RequestContext) -> Inference:
        """Compute one image that has its permit.

        Args:
            source: A checked image; see `parse_image`.
            task: The outputs to compute.
            context: The request that it belongs to.

        Returns:
            Awaited for the result: a future if nothing is left to do but to wait for the batch,
            else a coroutine.

        Raises:
            ServingError: One of its kinds, also when it is awaited; see `errors`.
        """
        if self._cache is None or task.variant.retired or context.shadow:
            return self._compute(source, task, context)
        return self._infer_cached(self._cache, source, task, context)

    async def _infer_cached(
        self, cache: ResponseCache, source: Source, task: InferenceTask, context: RequestContext
    ) -> Result:
        if size_bytes(source) <= MAX_INLINE_HASH_BYTES:
            digest = content_digest(source)
        else:
            digest = await self.decode_pool.submit(partial(content_digest, source), context)
            if task.variant.retired:  # meanwhile
                return await self._compute(source, task, context)
        key = CacheKey(
            task.variant,
            task.variant.spec.name,
            digest,
            task.top_k,
            task.with_embedding,
            task.transform.background,
            priority=(context.bulk, context.stream is not None),
        )
        compute = partial(self._compute, source, task, context)
        return await cache.get_or_compute(key, compute, context.deadline)

    def _compute(self, source: Source, task: InferenceTask, context: RequestContext) -> Inference:
        if isinstance(source, PreprocessedImage) and task.background is not None:
            # Of this image: others of the call may have alpha.
            raise InvalidImage(
                PREPROCESSED_FIELD,
                "has no alpha left for options.background; leave the option out, and composite the"
                " image on that background before it is resized",
                kind="unsupported",
            )
        pixels = pixels_without_decoding(source, task.transform)
        if pixels is None:
            return self._decode_and_compute(source, task, context)
        return _submit(pixels, task, context)

    async def _decode_and_compute(
        self, source: Source, task: InferenceTask, context: RequestContext
    ) -> Result:
        """Decode an image and compute it in a batch.

        Its deadline is checked twice by the scheduler: before decoding is paid for, with the time
        that decoding takes, and when it is queued.
        """
        started = time.perf_counter()
        variant = task.variant
        warnings: list[ImageWarning] = []
        decode_image = partial(self._decode, source, task.transform, warn=warnings.append)
        decode_s = self.decode_pool.expected_s(context)
        with variant.scheduler.accept(variant.queue, context, decode_s):
            try:
                pixels = await self.decode_pool.submit(
                    partial(decode_image, reserve=self._pixels.reserve), context
                )
            except BudgetFull as full:  # the image's size was not known before
                pixels = await self._decode_later(decode_image, context, full.pixels)
        decoded = time.perf_counter()
        result = await _submit(pixels, task, context, accepted=True)
        result.decode_s, result.decoded = decoded - started, decoded
        result.warnings = tuple(warnings)
        return result

    async def _decode_later(
        self,
        decode_image: Callable[..., NDArray[np.uint8]],
        context: RequestContext,
        pixels: int,
    ) -> NDArray[np.uint8]:
        """Decode an image once there is memory for so many pixels."""
        grant = await self._pixels.wait(pixels)
        try:
            decode_granted = partial(decode_image, reserve=grant.reserve)
            return await self.decode_pool.submit(decode_granted, context)
        finally:
            grant.release()

    def record(
        self, task: InferenceTask, context: RequestContext, result: Result, started: float
    ) -> ImageEvent:
        """Tell listeners of a result that is about to be sent; return where its time went.

        Args:
            task: The outputs that were computed.
            context: For which request.
            result: The result.
            started: When the image was there, on the clock of `time.perf_counter`.
        """
        ended = time.perf_counter()
        image = ImageEvent(
            context,
            task.variant.spec.name,
            ended,
            result.decode_s,
            result.queue_s,
            result.compute_s,
            ended - started,
            result.batch_size,
            result.decoded,
            result.batch,
            result.cache,
        )
        self.events.image_answered(image)
        if task.on_result is not None:
            try:
                task.on_result(result, image)
            except Exception:
                log.exception("the traffic split failed to record a result; the client has it")
        return image


def _submit(
    pixels: NDArray[np.uint8], task: InferenceTask, context: RequestContext, accepted: bool = False
) -> asyncio.Future[Result]:
    """Queue a decoded image; see `Scheduler.submit`."""
    variant = task.variant
    return variant.scheduler.submit(
        variant.queue,
        pixels,
        top_k=task.top_k,
        with_embedding=task.with_embedding,
        context=context,
        accepted=accepted,
    )
