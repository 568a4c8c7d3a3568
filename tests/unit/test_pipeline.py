"""The way of one image, where no server is needed to see it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
import virtual_time
from pictures import encode, photo_like
from virtual_device import FakeEngine, VirtualThreads, image

import resnet50_server.pipeline
from resnet50_server.admission import Admission, Limits
from resnet50_server.batcher import BatchPolicy, Scheduler
from resnet50_server.call import Call
from resnet50_server.decode_pool import DecodePool
from resnet50_server.errors import DeadlineUnreachable
from resnet50_server.image_file import ImageLimits
from resnet50_server.pipeline import Job, Pipeline
from resnet50_server.variants.definition import define


def test_image_whose_deadline_cannot_be_met_is_refused_before_it_is_decoded(monkeypatch):
    decoded: list[bytes] = []

    def decode(source, *_, **__):
        decoded.append(source)
        return image(1)

    monkeypatch.setattr(resnet50_server.pipeline, "decode", decode)

    async def call() -> None:
        pool = DecodePool(1)
        engine = FakeEngine(alpha=1.0)
        engine.needs_pixels = True
        scheduler = Scheduler(BatchPolicy(), VirtualThreads())
        queue = scheduler.add("v", engine, warm=[(1, 1.0)])
        variant = SimpleNamespace(
            definition=define("IMAGENET1K_V2"),
            opened=SimpleNamespace(engine=engine),
            queue=queue,
            scheduler=scheduler,
        )
        pipeline = Pipeline(Admission(Limits(requests=8, bytes=2**20)), pool, ImageLimits())
        running = scheduler.submit(queue, image(0), top_k=1, with_embedding=False)
        await asyncio.sleep(0)
        now = asyncio.get_running_loop().time()
        # The device is busy for 1 s, and then for 1 s more.
        with pytest.raises(DeadlineUnreachable):
            await pipeline.answer(
                encode(photo_like(64, 48)), Job(variant, 1, False, Call("", "", ()), now + 1.5)
            )
        assert decoded == []
        assert pipeline.admission.requests == 0
        await running
        assert engine.batches == [[0]]
        pool.close()

    virtual_time.run(call())
