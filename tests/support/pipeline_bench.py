"""A pipeline with a response cache and a fake engine, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from resnet50_server.batching.batch import BatchPolicy
from resnet50_server.batching.result import Result
from resnet50_server.batching.scheduler import Scheduler
from resnet50_server.context import RequestContext
from resnet50_server.errors import (
    InvalidImage,
)
from resnet50_server.images.background import Background
from resnet50_server.images.limits import ImageLimits
from resnet50_server.images.pixel_budget import PixelBudget
from resnet50_server.inference.admission import Admission
from resnet50_server.inference.pipeline import InferenceTask, Pipeline
from resnet50_server.inference.quotas import Limits
from resnet50_server.inference.response_cache import (
    CacheStats,
    ResponseCache,
)
from resnet50_server.variants.spec import parse_variant
from tests.support.virtual_device import FakeEngine, VirtualThreads, image

MIB = 2**20
DECODE_S = 0.25
BROKEN = b"broken"


class Pool:
    """Decodes as many as there are at once, each in `DECODE_S`."""

    def __init__(self) -> None:
        self.calls = 0

    def expected_s(self, _) -> float:
        return 0.0

    def submit(self, call, _):
        self.calls += 1
        return asyncio.ensure_future(self._run(call))

    async def _run(self, call):
        await asyncio.sleep(DECODE_S)
        return call()


class Bench:
    """A pipeline with a cache. An image is bytes, of which the first is what the engine answers."""

    def __init__(
        self,
        *,
        cached: bool = True,
        decode: Callable[..., np.ndarray] | None = None,
        pixel_budget: PixelBudget | None = None,
        **policy,
    ) -> None:
        self.cache = ResponseCache(MIB)
        self.pool = Pool()
        self.decoded: list[bytes] = []
        self.scheduler = Scheduler(BatchPolicy(**policy), VirtualThreads())
        pool: Any = self.pool
        self.pipeline: Any = Pipeline(
            Admission(Limits()),
            pool,
            ImageLimits(),
            cache=self.cache if cached else None,
            pixel_budget=pixel_budget,
            decode_image=decode or self.decode,
        )
        self.variant = self.load()
        self.engine = self.variant.built.engine

    def decode(self, source, *_, **__) -> np.ndarray:
        self.decoded.append(source)
        if source == BROKEN:
            raise InvalidImage("image.encoded", "is broken", kind="truncated")
        return image(source[0])

    def load(self) -> SimpleNamespace:
        engine = FakeEngine()
        return Held(
            spec=parse_variant("IMAGENET1K_V2"),
            built=SimpleNamespace(engine=engine),
            queue=self.scheduler.add("v", engine),
            scheduler=self.scheduler,
            retired=False,
        )

    def ask(
        self,
        source,
        *,
        top_k: int = 1,
        embed: bool = False,
        within: float | None = None,
        stream: str | None = None,
        bulk: bool = False,
        variant: Any = None,
        background: Background | None = None,
    ) -> asyncio.Task[Result]:
        if isinstance(source, int):
            source = bytes([source])
        deadline = None if within is None else now() + within
        call = RequestContext("", "", (), bulk=bulk, deadline=deadline, stream=stream)
        asked: Any = variant or self.variant
        task = InferenceTask(asked, top_k, embed, background=background)
        return asyncio.create_task(self.pipeline.infer(source, task, call))

    async def uses(self, *asked: asyncio.Task[Result]) -> list[str]:
        return [result.cache for result in await asyncio.gather(*asked)]

    @property
    def stats(self) -> CacheStats:
        return self.cache.stats["IMAGENET1K_V2"]


class Held(SimpleNamespace):
    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__


def now() -> float:
    return asyncio.get_running_loop().time()


def result(embedding: int = 0, number: int = 0) -> Result:
    return Result(
        np.array([number], dtype=np.int64),
        np.array([0.5], dtype=np.float32),
        np.zeros(embedding, dtype=np.float32) if embedding else None,
        0.1,
        0.1,
        1,
    )
