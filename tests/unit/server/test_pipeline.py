"""The way of one image, where no server is needed to see it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

import resnet50_server.inference.decode_pool
from resnet50_server.batching.batch import BatchPolicy
from resnet50_server.batching.scheduler import Scheduler
from resnet50_server.context import RequestContext
from resnet50_server.errors import DeadlineUnreachable
from resnet50_server.images.limits import ImageLimits
from resnet50_server.images.source import PixelFormat, RawImage, Source
from resnet50_server.inference.admission import Admission
from resnet50_server.inference.decode_pool import DecodePool
from resnet50_server.inference.pipeline import InferenceTask, Pipeline
from resnet50_server.inference.quotas import Limits
from resnet50_server.runtime.tasks import start_task
from resnet50_server.variants.spec import parse_variant
from tests.support.pictures import encode, photo_like
from tests.support.virtual_device import FakeEngine, VirtualDecoders, VirtualThreads, context, image
from tests.support.virtual_time import in_virtual_time

PHOTO = encode(photo_like(64, 48))


class Bench:
    """A pipeline in virtual time.

    Args:
        monkeypatch: Puts decoders into it that take time instead of decoding.
        decode_s: How long one takes.
        batch_s: How long the engine takes, one image at a time.

    Attributes:
        decoded: How many images were decoded, or are being.
    """

    def __init__(self, monkeypatch, decode_s: float, batch_s: float) -> None:
        self.decoded = 0
        monkeypatch.setattr(
            resnet50_server.inference.decode_pool,
            "WorkerThreads",
            lambda count, *_: VirtualDecoders(count, decode_s),
        )
        self.engine = FakeEngine(alpha=batch_s)
        self.scheduler = Scheduler(BatchPolicy(max_batch_size=1), VirtualThreads())
        self.queue = self.scheduler.add("v", self.engine, warm=[(1, batch_s)])
        self._variant = SimpleNamespace(
            spec=parse_variant("IMAGENET1K_V2"),
            built=SimpleNamespace(engine=self.engine),
            queue=self.queue,
            scheduler=self.scheduler,
        )
        self.pool = DecodePool(1)
        self.pipeline = Pipeline(
            Admission(Limits(requests=8, bytes=2**20)),
            self.pool,
            ImageLimits(),
            decode_image=self._decode,
        )

    def ask(
        self, within: float | None = None, *, bulk: bool = False, source: Source = PHOTO
    ) -> asyncio.Future:
        deadline = None if within is None else asyncio.get_running_loop().time() + within
        call = RequestContext("", "", (), bulk=bulk, deadline=deadline)
        task = InferenceTask(self._variant, 1, False)
        return start_task(self.pipeline.infer(source, task, call), "ask")

    def _decode(self, *_, **__):
        self.decoded += 1
        return image(1)


@in_virtual_time
async def test_unreachable_deadline_is_refused_before_decoding(monkeypatch):
    bench = Bench(monkeypatch, decode_s=0.0, batch_s=1.0)
    running = bench.scheduler.submit(
        bench.queue, image(0), top_k=1, with_embedding=False, context=context()
    )
    await asyncio.sleep(0)
    # The device is busy for 1 s, and then for 1 s more.
    with pytest.raises(DeadlineUnreachable):
        await bench.ask(within=1.5)
    assert bench.decoded == 0
    assert bench.pipeline.admission.requests == 0
    await running
    assert bench.engine.batches == [[0]]


@in_virtual_time
async def test_pixels_that_need_no_decoding_keep_their_deadline(monkeypatch):
    bench = Bench(monkeypatch, decode_s=0.0, batch_s=1.0)
    side = parse_variant("IMAGENET1K_V2").transform.resize
    raw = RawImage(side, side, PixelFormat.GRAY, 0, b"\1" * side**2)
    running = bench.ask(source=raw)
    await asyncio.sleep(0.1)
    with pytest.raises(DeadlineUnreachable) as refused:
        await bench.ask(within=1.5, source=raw)
    assert not refused.value.accepted
    await running
    assert bench.engine.batches == [[1]]


@in_virtual_time
async def test_undecoded_queue_counts_for_the_deadline_check(monkeypatch):
    bench = Bench(monkeypatch, decode_s=0.1, batch_s=1.0)
    accepted = [bench.ask(within=3.5) for _ in range(3)]
    refused = bench.ask(within=3.5)
    await asyncio.sleep(0.01)
    with pytest.raises(DeadlineUnreachable):
        refused.result()
    await asyncio.gather(*accepted)
    assert bench.decoded == 3
    assert len(bench.engine.batches) == 3


@in_virtual_time
async def test_slow_decoding_counts_for_the_deadline_check(monkeypatch):
    bench = Bench(monkeypatch, decode_s=1.0, batch_s=0.01)
    await bench.ask()
    calls = [bench.ask(within=2.5) for _ in range(4)]
    await asyncio.sleep(0.01)
    assert [call.done() for call in calls] == [False, False, True, True]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes[2:]] == [DeadlineUnreachable] * 2
    assert bench.decoded == 3
    assert len(bench.engine.batches) == 3


@in_virtual_time
async def test_images_are_decoded_by_their_deadlines(monkeypatch):
    bench = Bench(monkeypatch, decode_s=1.0, batch_s=0.01)
    first, bulk, late, soon = (
        bench.ask(),
        bench.ask(within=9.0, bulk=True),
        bench.ask(within=9.0),
        bench.ask(within=8.0),
    )
    ended = []
    for name, call in (("first", first), ("bulk", bulk), ("late", late), ("soon", soon)):
        call.add_done_callback(lambda _, name=name: ended.append(name))
    await asyncio.gather(first, bulk, late, soon)
    assert ended == ["first", "soon", "late", "bulk"]


@in_virtual_time
async def test_request_cancelled_before_it_is_decoded_costs_nothing(monkeypatch):
    bench = Bench(monkeypatch, decode_s=1.0, batch_s=0.01)
    first, gone = bench.ask(), bench.ask()
    await asyncio.sleep(0.5)
    assert bench.queue.accepted == 2
    gone.cancel()
    await first
    await asyncio.gather(gone, return_exceptions=True)
    assert bench.decoded == 1
    assert bench.queue.accepted == 0
    # And no request waits behind it.
    await bench.ask(within=1.02)
