"""The way of one image through the server: admission, what is kept, decoding, its batch."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Hashable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from resnet50_server.batching.result import Result
from resnet50_server.context import RequestContext
from resnet50_server.errors import Overloaded
from resnet50_server.events import ImageEvent, ServerEvents
from resnet50_server.images.decode import (
    Source,
    decode,
    is_at_hand,
    is_looked_at_fast,
    length_of,
    look,
)
from resnet50_server.images.formats import ImageLimits
from resnet50_server.images.pixel_budget import NoRoom, PixelBudget
from resnet50_server.lifecycle.registry import LoadedVariant

from .admission import Admission, Place
from .decode_pool import DecodePool
from .response_cache import MAX_DIGEST_AT_HAND_BYTES, Asked, ResponseCache, digest_of
from .single_flight import Flight, Urgency, urgency_of

log = logging.getLogger(__name__)


class Job(NamedTuple):
    """What is to be done with an image.

    Attributes:
        variant: The weights.
        top_k: How many categories to return; 0 for none.
        with_embedding: Whether the embedding is wanted.
        call: That the image comes with.
        deadline: When the answer must be there, in loop time; None for no limit.
        flow: The stream that the image belongs to, if it does. Streams share the server equally,
            and where it is full they wait, whereas a single request is refused at once.
        seen: Called with the result when the answer is about to leave; see `traffic`.
        shadow: Whether no caller waits for it.
    """

    variant: LoadedVariant
    top_k: int
    with_embedding: bool
    call: RequestContext
    deadline: float | None = None
    flow: Hashable | None = None
    seen: Callable[[Result, ImageEvent], None] | None = None
    shadow: bool = False


class Answer(NamedTuple):
    """A result, and how long it took to get there.

    Attributes:
        result: What the engine made of the image.
        decode_s: Decoding, the wait for a thread included, in seconds.
        decoded: When that had ended, on the clock of `time.perf_counter`.
    """

    result: Result
    decode_s: float
    decoded: float


class Submitted(NamedTuple):
    """An image that waits for its batch, or whose answer was kept.

    Attributes:
        result: To come, or there; cancelling it takes the image out.
        decode_s: As `Answer.decode_s`.
        decoded: As `Answer.decoded`.
    """

    result: asyncio.Future[Result]
    decode_s: float
    decoded: float


class Pipeline:
    """Takes images one by one, each on its own until batches form.

    Args:
        admission: How much may be inside.
        decode_pool: Threads that decode.
        limits: What an image may weigh.
        events: Receive every image that is answered.
        cache: Keeps answers; None to compute every image.
        max_decode_pixels: How many are decoded at once; None for one image of the largest size.

    Attributes:
        events: As given.
    """

    def __init__(
        self,
        admission: Admission,
        decode_pool: DecodePool,
        limits: ImageLimits,
        events: ServerEvents | None = None,
        cache: ResponseCache | None = None,
        max_decode_pixels: int | None = None,
    ) -> None:
        self.admission = admission
        self.decode_pool = decode_pool
        self.limits = limits
        self.events = events or ServerEvents()
        self._cache = cache
        self._decode = partial(decode, limits=limits)
        self._look = partial(look, limits=limits)
        self._pixels = PixelBudget(max_decode_pixels or limits.max_pixels)

    async def answer(self, source: Source, job: Job) -> Answer:
        """Answer one image that has its place in the server already, and is not of a stream.

        Args:
            source: A checked image; see `source_of`.
            job: What is wanted of it.

        Raises:
            ServingError: One of its kinds; see `errors`.
        """
        begun = self.begin(source, job)
        if isinstance(begun, Submitted):
            return Answer(await begun.result, begun.decode_s, begun.decoded)
        return await begun

    async def admit(self, length: int, job: Job) -> Place:
        """Take a permit for an image of a stream, as soon as there is room.

        Args:
            length: The image's bytes.
            job: What is to be done with it.

        Raises:
            ShuttingDown: The server takes no more images.
        """
        call = job.call
        return await self.admission.acquire(call.caller.name, length, bulk=call.bulk)

    def begin(self, source: Source, job: Job) -> Submitted | Coroutine[Any, Any, Answer]:
        """Begin with an image within this turn of the loop, without a task of its own.

        Args:
            source: An image that has its place in the server already.
            job: What is wanted of it.

        Returns:
            What gives the answer if it has to wait for a thread, for room or for somebody else.

        Raises:
            ServingError: One of its kinds; see `errors`.
        """
        if self._cache is None or job.variant.retired:
            return self._submit_at_hand(source, job) or self.compute(source, job)
        if length_of(source) > MAX_DIGEST_AT_HAND_BYTES:
            return self._digest_and_share(self._cache, source, job)
        asked = _ask(self._cache, digest_of(source), job)
        kept = asked.find()
        if kept is not None:
            return Submitted(_done(kept), 0.0, time.perf_counter())
        urgency = _urgency(job)
        if asked.flight(urgency) is None:
            submitted = self._submit_at_hand(source, job)
            if submitted is not None:
                flight = asked.lead(urgency)
                return submitted._replace(result=flight.carry(submitted.result))
        return self._share(asked, source, job)

    async def _digest_and_share(self, cache: ResponseCache, source: Source, job: Job) -> Answer:
        digest = await self.decode_pool.run(
            partial(digest_of, source), deadline=job.deadline, flow=job.flow, bulk=job.call.bulk
        )
        if job.variant.retired:  # meanwhile
            return await self.compute(source, job)
        return await self._share(_ask(cache, digest, job), source, job)

    async def _share(self, asked: Asked, source: Source, job: Job) -> Answer:
        """Wait for whoever computes the same; compute it for all if nobody does."""
        alone = False
        while (result := asked.find()) is None:
            urgency = _urgency(job)
            flight = None if alone else asked.flight(urgency)
            if flight is None:
                with asked.lead(urgency) as flight:
                    return await self.compute(source, job, flight)
            result = await flight.follow(job.deadline)
            if result is not None:
                break
            alone = flight.crowded
        return Answer(result, 0.0, time.perf_counter())

    def _submit_at_hand(self, source: Source, job: Job) -> Submitted | None:
        """Submit an image that need not wait for a thread or for room; None if it has to."""
        started = time.perf_counter()
        pixels = self._at_hand(source, job)
        if pixels is None:
            return None
        decoded = time.perf_counter()
        try:
            return Submitted(_submit(pixels, job), decoded - started, decoded)
        except Overloaded:
            return None

    async def compute(self, source: Source, job: Job, flight: Flight | None = None) -> Answer:
        """Compute an image whatever is kept; as `answer` otherwise.

        Args:
            source: An image that has its place in the server already.
            job: What is wanted of it.
            flight: Others who wait for the same.
        """
        started = time.perf_counter()
        pixels = self._at_hand(source, job)
        accepted = pixels is None
        if pixels is None:
            deadline, flow, bulk = job.deadline, job.flow, job.call.bulk
            decode_s = self.decode_pool.expected_s(deadline=deadline, flow=flow, bulk=bulk)
            with job.variant.scheduler.accept(
                job.variant.queue, deadline=deadline, flow=flow, bulk=bulk, decode_s=decode_s
            ):
                pixels = await self._decoded(source, job)
        decoded = time.perf_counter()
        result = _submit(pixels, job, accepted)
        if flight is not None:
            result = flight.carry(result)
        return Answer(await result, decoded - started, decoded)

    async def _decoded(self, source: Source, job: Job) -> NDArray[np.uint8]:
        """Return the engine's input, from a decode thread."""
        transform = job.variant.spec.transform
        run = partial(
            self.decode_pool.run, deadline=job.deadline, flow=job.flow, bulk=job.call.bulk
        )
        if not job.variant.built.engine.needs_pixels:
            return await run(partial(self._look, source, transform))
        try:
            return await run(partial(self._decode, source, transform, room=self._pixels.take))
        except NoRoom as no_room:  # its size was not known before
            pixels = no_room.pixels
        grant = await self._pixels.wait(pixels)
        try:
            return await run(partial(self._decode, source, transform, room=grant.take))
        finally:
            grant.give_back()

    def answered(self, job: Job, answer: Answer, started: float) -> ImageEvent:
        """Tell listeners of an answer that is about to leave, and return where its time went.

        Args:
            job: What was wanted.
            answer: What came of it.
            started: When the image was there, on the clock of `time.perf_counter`.
        """
        ended, result = time.perf_counter(), answer.result
        image = ImageEvent(
            job.call,
            job.variant.spec.name,
            ended,
            answer.decode_s,
            result.queue_s,
            result.compute_s,
            ended - started,
            result.batch_size,
            answer.decoded,
            result.batch,
            result.cache,
        )
        self.events.image_answered(image)
        if job.seen is not None:
            try:
                job.seen(result, image)
            except Exception:
                log.exception("a traffic split could not take in an answer; its caller has it")
        return image

    def _at_hand(self, source: Source, job: Job) -> NDArray[np.uint8] | None:
        """Return the engine's input if that takes less than the way into a thread and back."""
        transform = job.variant.spec.transform
        if not job.variant.built.engine.needs_pixels:
            if is_looked_at_fast(source):
                return self._look(source, transform)
        elif is_at_hand(source, transform):
            return self._decode(source, transform)
        return None


def _submit(pixels: NDArray[np.uint8], job: Job, accepted: bool = False) -> asyncio.Future[Result]:
    return job.variant.scheduler.submit(
        job.variant.queue,
        pixels,
        top_k=job.top_k,
        with_embedding=job.with_embedding,
        deadline=job.deadline,
        flow=job.flow,
        bulk=job.call.bulk,
        context=job.call,
        shadow=job.shadow,
        accepted=accepted,
    )


def _ask(cache: ResponseCache, digest: bytes, job: Job) -> Asked:
    name = job.variant.spec.name
    return cache.ask(job.variant, name, digest, job.top_k, job.with_embedding)


def _urgency(job: Job) -> Urgency:
    now = asyncio.get_running_loop().time()
    return urgency_of(now, job.deadline, job.flow, job.call.bulk)


def _done(result: Result) -> asyncio.Future[Result]:
    future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
    future.set_result(result)
    return future
