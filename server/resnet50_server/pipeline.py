"""The way of one image through the server: admission, decoding, its batch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from .admission import Admission, Place
from .decode import ImageLimits, Source, decode, check_undecoded, is_at_hand, is_looked_at_fast, length_of
from .decode_pool import DecodePool
from .errors import DeadlineUnreachable, Overloaded
from .held import HeldVariant
from .variant_queue import Result

Given = TypeVar("Given")
# So often does a stream, which waits instead of being refused, ask a full server again.
MAX_PAUSE_S = 0.05


@dataclass(frozen=True)
class Job:
    """What is to be done with an image.

    Attributes:
        variant: The weights.
        top_k: How many categories to return; 0 for none.
        with_embedding: Whether the embedding is wanted.
        deadline: When the answer must be there, in loop time; None for no limit.
        flow: The stream that the image belongs to, if it does. Streams share the server equally,
            and where it is full they wait, whereas a single request is refused at once.
    """

    variant: HeldVariant
    top_k: int
    with_embedding: bool
    deadline: float | None = None
    flow: Hashable | None = None


@dataclass(frozen=True)
class Answer:
    """A result, and how long it took to get there.

    Attributes:
        result: What the engine made of the image.
        decode_s: Decoding, the wait for a thread included, in seconds.
    """

    result: Result
    decode_s: float


class Pipeline:
    """Takes images one by one, each on its own until batches form.

    Args:
        admission: How much may be inside.
        decode_pool: Threads that decode.
        limits: What an image may weigh.
    """

    def __init__(self, admission: Admission, decode_pool: DecodePool, limits: ImageLimits) -> None:
        self.admission = admission
        self.decode_pool = decode_pool
        self.limits = limits

    async def answer(self, source: Source, job: Job) -> Answer:
        """Compute one image.

        Args:
            source: A checked image; see `source_of`.
            job: What is wanted of it.

        Raises:
            ServingError: One of its kinds; see `errors`.
        """
        with await self.admit(source, job):
            return await self.compute(source, job)

    async def admit(self, source: Source, job: Job) -> Place:
        """Take a place for an image.

        Raises:
            Overloaded: There is none, and the image is not of a stream.
            ShuttingDown: The server takes no more images.
        """
        return await _when_free(partial(self.admission.admit, length_of(source)), job)

    async def compute(self, source: Source, job: Job) -> Answer:
        """Compute an image that has its place in the server already; as `answer` otherwise."""
        started = time.perf_counter()
        transform = job.variant.definition.transform
        look, fast = decode, is_at_hand(source, transform)
        if not job.variant.opened.engine.needs_pixels:
            look, fast = check_undecoded, is_looked_at_fast(source)
        if fast:
            pixels = look(source, transform, self.limits)
        else:
            pixels = await self.decode_pool.run(
                partial(look, source, transform, self.limits),
                deadline=job.deadline,
                flow=job.flow,
            )
        decode_s = time.perf_counter() - started
        if job.deadline is not None and asyncio.get_running_loop().time() >= job.deadline:
            raise DeadlineUnreachable("the deadline passed while the image was decoded")
        submit = partial(
            job.variant.scheduler.submit,
            job.variant.queue,
            pixels,
            top_k=job.top_k,
            with_embedding=job.with_embedding,
            deadline=job.deadline,
            flow=job.flow,
        )
        return Answer(await (await _when_free(submit, job)), decode_s)


async def _when_free(enter: Callable[[], Given], job: Job) -> Given:
    """Return what `enter` returns; a stream's job waits for as long as the server is full."""
    while True:
        try:
            return enter()
        except Overloaded as full:
            if job.flow is None:
                raise
            await asyncio.sleep(min(full.retry_after_s, MAX_PAUSE_S))
