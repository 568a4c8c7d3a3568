"""What is kept, for how long, and who waits for whom; in virtual time."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import gc
import os
import tracemalloc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

import resnet50_server.inference.pipeline
from resnet50.v1 import image_pb2
from resnet50_server.batching.result import Result
from resnet50_server.batching.scheduler import BatchPolicy, Scheduler
from resnet50_server.context import RequestContext
from resnet50_server.errors import (
    DeadlineUnreachable,
    EngineFailed,
    InvalidImage,
    QueueFull,
    ServingError,
    ShuttingDown,
)
from resnet50_server.images.formats import ImageLimits
from resnet50_server.images.raw import RawPixels
from resnet50_server.inference.admission import Admission, Limits
from resnet50_server.inference.lru import SWEPT_AT_ONCE
from resnet50_server.inference.pipeline import Answer, Job, Pipeline, Submitted
from resnet50_server.inference.response_cache import (
    MAX_DIGEST_AT_HAND_BYTES,
    SHELF_BYTES,
    Lookups,
    ResponseCache,
    digest_of,
)
from resnet50_server.variants.spec import parse_variant
from tests.support import virtual_time
from tests.support.virtual_device import FakeEngine, VirtualThreads, image

MIB = 2**20
DECODE_S = 0.25
BROKEN = b"broken"


class Pool:
    """Decodes as many as there are at once, each in `DECODE_S`."""

    def __init__(self) -> None:
        self.calls = 0

    def expected_s(self, **_) -> float:
        return 0.0

    async def run(self, call, **_):
        self.calls += 1
        await asyncio.sleep(DECODE_S)
        return call()


class Bench:
    """A pipeline with a cache. An image is bytes, of which the first is what the engine answers."""

    def __init__(self, cache: ResponseCache | None = None, **policy) -> None:
        self.cache = cache or ResponseCache(MIB)
        self.pool = Pool()
        self.decoded: list[bytes] = []
        self.scheduler = Scheduler(BatchPolicy(**policy), VirtualThreads())
        self.pipeline = Pipeline(Admission(Limits()), self.pool, ImageLimits(), cache=self.cache)
        self.pipeline._decode = self.decode
        self.variant = self.load()
        self.engine = self.variant.built.engine

    def decode(self, source, *_, **__) -> np.ndarray:
        self.decoded.append(source)
        if source == BROKEN:
            raise InvalidImage("image.encoded", "is broken", kind="truncated")
        return image(source[0])

    def load(self) -> SimpleNamespace:
        engine = FakeEngine()
        engine.needs_pixels = True
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
        flow: str | None = None,
        bulk: bool = False,
        variant: SimpleNamespace | None = None,
    ) -> asyncio.Task[Answer]:
        if isinstance(source, int):
            source = bytes([source])
        deadline = None if within is None else now() + within
        call = RequestContext("", "", (), bulk=bulk)
        job = Job(variant or self.variant, top_k, embed, call, deadline, flow)
        return asyncio.create_task(self.pipeline.answer(source, job))

    async def uses(self, *asked: asyncio.Task[Answer]) -> list[str]:
        return [answer.result.cache for answer in await asyncio.gather(*asked)]

    @property
    def lookups(self) -> Lookups:
        return self.cache.lookups["IMAGENET1K_V2"]


class Held(SimpleNamespace):
    __hash__ = object.__hash__
    __eq__ = object.__eq__


def now() -> float:
    return asyncio.get_running_loop().time()


def in_virtual_time(test):
    @functools.wraps(test)
    def run(**options) -> None:
        virtual_time.run(test(**options))

    return run


def result(embedding: int = 0, number: int = 0) -> Result:
    return Result(
        np.array([number], dtype=np.int64),
        np.array([0.5], dtype=np.float32),
        np.zeros(embedding, dtype=np.float32) if embedding else None,
        0.1,
        0.1,
        1,
    )


def keep(cache: ResponseCache, owner: str, digest: bytes, answer: Result) -> None:
    """Keep what was computed."""
    loop = asyncio.get_running_loop()
    computing = loop.create_future()
    flight = cache.ask(owner, owner, digest, 1, answer.embedding is not None).lead((0, 0.0))
    flight.carry(computing)
    computing.set_result(answer)
    flight._land(computing)


def is_kept(cache: ResponseCache, owner: str, digest: bytes, embedding: bool = False) -> bool:
    return cache.ask(owner, owner, digest, 1, embedding).find() is not None


@in_virtual_time
async def test_image_that_comes_again_is_neither_decoded_nor_computed():
    bench = Bench()
    others = [bench.ask(8, top_k=2, embed=True) for _ in range(2)]
    first = await bench.ask(7, top_k=2, embed=True)
    await asyncio.gather(*others)
    started = now()
    again = await bench.ask(7, top_k=2, embed=True)
    assert now() == started
    assert (bench.decoded, bench.engine.batches) == ([b"\x08", b"\x07"], [[8, 7]])
    assert first.result.cache == "none"
    assert again.decode_s == 0.0
    for name in ("indices", "probabilities", "embedding"):
        one, other = getattr(first.result, name), getattr(again.result, name)
        assert (one.tolist(), one.dtype) == (other.tolist(), other.dtype)
    told = dataclasses.asdict(again.result)
    assert {name: told[name] for name in ("queue_s", "compute_s", "batch_size", "batch")} == {
        "queue_s": 0.0,
        "compute_s": 0.0,
        "batch_size": 2,
        "batch": None,
    }
    assert again.result.cache == "hit"


@in_virtual_time
async def test_hit_needs_no_task():
    bench = Bench()
    await bench.ask(7)
    job = Job(bench.variant, 1, False, RequestContext("", "", ()))
    begun = bench.pipeline.begin(b"\x07", job)
    assert isinstance(begun, Submitted)
    assert begun.result.done()


@pytest.mark.parametrize("other", [{"top_k": 2}, {"embed": True}, {"top_k": 0, "embed": True}])
@in_virtual_time
async def test_other_options_are_another_question(other):
    bench = Bench()
    await bench.ask(7)
    answer = await bench.ask(7, **other)
    assert answer.result.cache == "none"
    assert len(answer.result.indices) == other.get("top_k", 1)
    assert (answer.result.embedding is not None) == other.get("embed", False)
    assert bench.engine.batches == [[7], [7]]
    again = await bench.ask(7, **other)
    assert again.result.cache == "hit"
    assert len(again.result.indices) == other.get("top_k", 1)
    assert (again.result.embedding is not None) == other.get("embed", False)


@in_virtual_time
async def test_reloaded_weights_do_not_share_cache_entries():
    bench = Bench()
    other = bench.load()
    await bench.ask(7)
    assert await bench.uses(bench.ask(7, variant=other)) == ["none"]
    assert other.built.engine.batches == [[7]]


def raw(pixels: bytes = bytes(24), **changed) -> RawPixels:
    about = {"width": 4, "height": 2, "pixel_format": image_pb2.PIXEL_FORMAT_RGB}
    return RawPixels(**about | {"row_stride_bytes": 0} | changed, pixels=pixels)


def test_digest_is_of_all_that_makes_an_image():
    gray = image_pb2.PIXEL_FORMAT_GRAY
    different = [
        raw(),
        raw(bytes([1]) + bytes(23)),
        raw(width=2, height=4),
        raw(pixel_format=image_pb2.PIXEL_FORMAT_BGR),
        raw(row_stride_bytes=12),
        raw(width=8, height=2, pixel_format=gray),
        bytes(24),
        bytes(25),
    ]
    assert len({digest_of(source) for source in different}) == len(different)
    assert digest_of(raw()) == digest_of(raw())


def test_file_that_spells_out_pixels_is_not_taken_for_them():
    spelt = b"\1" + b"".join(n.to_bytes(4, "little") for n in (4, 2, image_pb2.PIXEL_FORMAT_RGB, 0))
    assert digest_of(spelt + bytes(24)) != digest_of(raw())


@in_virtual_time
async def test_large_images_are_digested_in_a_thread():
    bench = Bench()
    small, large = (bytes([1]) + bytes(MAX_DIGEST_AT_HAND_BYTES - 1 + more) for more in (0, 1))
    await asyncio.gather(bench.ask(small), bench.ask(large))
    assert bench.pool.calls == 1 + 2
    assert await bench.uses(bench.ask(small), bench.ask(large)) == ["hit", "hit"]
    assert bench.pool.calls == 1 + 2 + 1


@in_virtual_time
async def test_variant_replaced_during_hashing_is_not_used():
    bench = Bench()
    asked = bench.ask(bytes([1]) + bytes(MAX_DIGEST_AT_HAND_BYTES))
    await asyncio.sleep(DECODE_S / 2)
    bench.variant.retired = True
    bench.cache.drop(bench.variant)
    assert await bench.uses(asked) == ["none"]
    assert (len(bench.cache), bench.cache.lookups) == (0, {})


@in_virtual_time
async def test_kept_answers_cannot_be_changed():
    bench = Bench()
    await bench.ask(7, embed=True)
    hit = (await bench.ask(7, embed=True)).result
    for array in (hit.indices, hit.probabilities, hit.embedding):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


@in_virtual_time
async def test_kept_answers_hold_nothing_of_their_batch():
    bench = Bench()
    made = []

    class Remembering(FakeEngine):
        needs_pixels = True

        def run(self, *arguments):
            output = super().run(*arguments)
            made.append(weakref.ref(output.embeddings))
            return output

    bench.variant.queue.engine = Remembering()
    await asyncio.gather(*(bench.ask(number, embed=True) for number in range(4)))
    await asyncio.sleep(1)
    gc.collect()
    assert [one() for one in made] == [None]
    assert len(bench.cache) == 4


@in_virtual_time
async def test_answers_take_no_more_memory_than_is_said():
    for embedding in (0, 2048):
        cache = ResponseCache(MIB)
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for number in range(200 if embedding else 4000):
            keep(cache, "v", os.urandom(32), result(embedding, number))
        await asyncio.sleep(0)
        taken = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        assert cache.evictions > 0
        assert taken <= cache.memory_bytes <= MIB
        assert cache.memory_bytes > 0.9 * MIB


@in_virtual_time
async def test_least_recently_used_answer_goes_first():
    cache = ResponseCache(MIB)
    digests = [bytes([number]) for number in range(255)]
    kept = 0
    while not cache.evictions:
        if kept == 100:
            assert is_kept(cache, "v", digests[0], True)
        keep(cache, "v", digests[kept], result(2048))
        kept += 1
    left = [number for number in range(kept) if is_kept(cache, "v", digests[number], True)]
    assert left == [0, *range(1 + cache.evictions, kept)]
    assert len(cache) == kept - cache.evictions


@in_virtual_time
async def test_answer_that_is_larger_than_the_cache_is_not_kept():
    cache = ResponseCache(8000)
    keep(cache, "v", b"small", result())
    keep(cache, "v", b"large", result(2048))
    assert is_kept(cache, "v", b"small")
    assert not is_kept(cache, "v", b"large", True)
    assert cache.evictions == 0


@in_virtual_time
async def test_entry_as_large_as_the_cache_evicts_all_others():
    cache = ResponseCache(8500)
    keep(cache, "v", b"small", result())
    keep(cache, "v", b"large", result(2048))
    assert not is_kept(cache, "v", b"small")
    assert is_kept(cache, "v", b"large", True)
    assert cache.memory_bytes <= 8500


@in_virtual_time
async def test_dropped_weights_leave_nothing_and_others_all():
    cache = ResponseCache(4 * MIB)
    for number in range(2 * SWEPT_AT_ONCE + 1):
        keep(cache, "gone", number.to_bytes(4, "big"), result())
        if not number % 100:
            keep(cache, "stays", number.to_bytes(4, "big"), result())
    cache.drop("gone")
    cache.drop("never asked")
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(cache) == 21
    assert all(is_kept(cache, "stays", (100 * n).to_bytes(4, "big")) for n in range(21))
    fresh = ResponseCache(4 * MIB)
    for number in range(21):
        keep(fresh, "stays", number.to_bytes(4, "big"), result())
    assert cache.memory_bytes == fresh.memory_bytes


@in_virtual_time
async def test_large_cache_is_divided_and_all_of_it_is_used():
    cache = ResponseCache(4 * SHELF_BYTES)
    digests = [digest_of(bytes([number])) for number in range(200)]
    for digest in digests:
        keep(cache, "v", digest, result())
    assert all(is_kept(cache, "v", digest) for digest in digests)
    assert [len(shelf) > 20 for shelf in cache._shelves] == [True] * 4
    assert len(cache) == 200
    cache.drop("v")
    for _ in range(5):
        await asyncio.sleep(0)
    assert (len(cache), cache.memory_bytes) == (0, 0)


@in_virtual_time
async def test_answer_of_dropped_weights_is_given_but_not_kept():
    bench = Bench()
    asked = [bench.ask(7), bench.ask(7)]
    await asyncio.sleep(DECODE_S / 2)
    bench.variant.retired = True
    bench.cache.drop(bench.variant)
    assert await bench.uses(*asked) == ["none", "shared"]
    assert (len(bench.cache), bench.cache.memory_bytes) == (0, 0)
    assert await bench.uses(bench.ask(7)) == ["none"]
    assert len(bench.cache) == 0


@pytest.mark.parametrize("wait_s", [0.0, DECODE_S / 2, DECODE_S + 0.5])
@in_virtual_time
async def test_what_is_asked_while_it_is_computed_is_computed_once(wait_s):
    bench = Bench()
    first = bench.ask(7)
    await asyncio.sleep(wait_s)
    others = [bench.ask(7) for _ in range(5)]
    results = [answer.result for answer in await asyncio.gather(first, *others)]
    assert (bench.decoded, bench.engine.batches) == ([b"\x07"], [[7]])
    assert now() == DECODE_S + 1.0
    assert [one.cache for one in results] == ["none"] + ["shared"] * 5
    assert [one.indices.tolist() for one in results] == [[7]] * 6
    for other in results[1:]:
        assert other.queue_s > 0.0
        assert other.compute_s == 0.0
        assert (other.batch_size, other.batch) == (1, None)
    assert bench.lookups == Lookups(hits=0, shared=5, misses=1)
    assert await bench.uses(bench.ask(7)) == ["hit"]
    assert bench.lookups == Lookups(hits=1, shared=5, misses=1)


@in_virtual_time
async def test_waiters_continue_if_the_leader_cancels_in_decoding():
    bench = Bench()
    leader, *others = [bench.ask(7) for _ in range(4)]
    await asyncio.sleep(DECODE_S / 2)
    leader.cancel()
    assert await bench.uses(*others) == ["none", "shared", "shared"]
    assert bench.engine.batches == [[7]]
    assert leader.cancelled()


@pytest.mark.parametrize("queued", [True, False])
@in_virtual_time
async def test_computation_continues_if_its_first_caller_cancels(queued):
    bench = Bench()
    before = bench.ask(1) if queued else None
    await asyncio.sleep(0.1)
    leader, other = bench.ask(7), bench.ask(7)
    await asyncio.sleep(DECODE_S + 0.1)
    leader.cancel()
    assert await bench.uses(other) == ["shared"]
    assert bench.engine.batches == ([[1], [7]] if queued else [[7]])
    assert leader.cancelled()
    if before is not None:
        await before


@in_virtual_time
async def test_computation_ends_when_the_last_one_leaves():
    bench = Bench()
    before = bench.ask(1)
    await asyncio.sleep(0.1)
    asked = [bench.ask(7) for _ in range(3)]
    await asyncio.sleep(DECODE_S + 0.1)
    for one in asked[:2]:
        one.cancel()
    await asyncio.sleep(0.01)
    assert len(bench.variant.queue.waiting) == 1
    asked[2].cancel()
    await asyncio.sleep(0.01)
    assert len(bench.variant.queue.waiting) == 0
    await before
    late = bench.ask(7)
    assert await bench.uses(late) == ["none"]
    assert bench.engine.batches == [[1], [7]]


@in_virtual_time
async def test_whoever_asks_just_as_the_last_one_leaves_is_answered():
    bench = Bench()
    before = bench.ask(1)
    await asyncio.sleep(0.1)
    leader = bench.ask(7)
    await asyncio.sleep(DECODE_S + 0.1)
    leader.cancel()
    late = [bench.ask(7)]
    await asyncio.sleep(0)
    late.append(bench.ask(7))
    answers = await asyncio.gather(*late)
    assert [answer.result.indices.tolist() for answer in answers] == [[7], [7]]
    await before


@in_virtual_time
async def test_leaving_does_no_harm_to_the_one_it_waited_for():
    bench = Bench()
    leader, other = bench.ask(7), bench.ask(7)
    await asyncio.sleep(DECODE_S + 0.5)
    other.cancel()
    assert await bench.uses(leader) == ["none"]
    assert bench.lookups == Lookups(shared=0, misses=1)


@in_virtual_time
async def test_whoever_waits_is_refused_at_its_own_deadline():
    bench = Bench()
    bench.engine.alpha = 5.0  # which is not known yet
    leader = bench.ask(7, within=1.0)
    other = bench.ask(7, within=2.0)
    with pytest.raises(DeadlineUnreachable, match="for another request"):
        await other
    assert now() == 2.0
    assert await bench.uses(leader) == ["none"]
    assert bench.engine.batches == [[7]]


@in_virtual_time
async def test_whoever_waited_computes_if_the_other_is_too_late():
    bench = Bench()
    await bench.ask(1)  # from now on it is known that a batch takes a second
    before = bench.ask(2)
    await asyncio.sleep(DECODE_S + 0.1)
    # Behind the batch that runs they would be there in time, but it takes longer than it should.
    bench.scheduler._running[0].ends = now()
    leader, other = bench.ask(7, within=1.5), bench.ask(7, within=9.0)
    with pytest.raises(DeadlineUnreachable):
        await leader
    assert await bench.uses(other) == ["none"]
    await before
    assert bench.engine.batches == [[1], [2], [7]]


@in_virtual_time
async def test_waiters_take_no_queue_slot_and_keep_their_deadlines():
    bench = Bench(max_queue_size=1, max_batch_size=1)
    bench.ask(1)
    await asyncio.sleep(DECODE_S + 0.1)
    waiting = [bench.ask(2) for _ in range(3)]
    await asyncio.sleep(DECODE_S + 0.1)
    refused = [bench.ask(3) for _ in range(3)]
    errors = await asyncio.gather(*refused, return_exceptions=True)
    assert {type(one) for one in errors} == {QueueFull}
    # Nothing was decoded for them.
    assert now() == pytest.approx(2 * (DECODE_S + 0.1))
    assert bench.pool.calls == 2
    assert await bench.uses(*waiting) == ["none", "shared", "shared"]
    assert await bench.uses(bench.ask(2)) == ["hit"]


@in_virtual_time
async def test_hit_needs_no_room_in_the_queue():
    bench = Bench(max_queue_size=1, max_batch_size=1)
    await bench.ask(7)
    full = [bench.ask(1)]
    await asyncio.sleep(DECODE_S + 0.1)
    full.append(bench.ask(2))
    await asyncio.sleep(DECODE_S + 0.1)
    with pytest.raises(QueueFull):
        await bench.ask(3)
    assert await bench.uses(bench.ask(7)) == ["hit"]
    await asyncio.gather(*full)


@in_virtual_time
async def test_interactive_image_does_not_wait_for_bulk():
    bench = Bench(max_batch_size=1)
    others = [bench.ask(number) for number in range(1, 6)]
    bulk = bench.ask(7, bulk=True)
    await asyncio.sleep(DECODE_S + 0.5)
    interactive = [bench.ask(7), bench.ask(7)]
    later = bench.ask(7, bulk=True)
    done = []
    for one in (*others, bulk):
        one.add_done_callback(lambda one: done.append(one))
    assert await bench.uses(*interactive) == ["none", "shared"]
    assert bulk not in done
    assert await bench.uses(later, bulk) == ["shared", "none"]
    assert bench.engine.batches.count([7]) == 2
    assert len(bench.cache) == 6


@in_virtual_time
async def test_end_of_one_computation_hides_no_other_of_the_same():
    bench = Bench()
    bulk = bench.ask(7, bulk=True)
    await asyncio.sleep(DECODE_S / 2)
    first = bench.ask(7)
    await asyncio.sleep(DECODE_S / 4)
    bulk.cancel()
    await asyncio.sleep(0)
    assert await bench.uses(first, bench.ask(7)) == ["none", "shared"]
    assert bench.engine.batches == [[7]]


@in_virtual_time
async def test_image_that_is_due_earlier_does_not_wait():
    bench = Bench(max_batch_size=1)
    others = [bench.ask(number, within=5.0) for number in range(1, 4)]
    leader = bench.ask(7, within=9.0)
    await asyncio.sleep(DECODE_S + 0.1)
    urgent = bench.ask(7, within=2.5)
    assert await bench.uses(urgent) == ["none"]
    assert now() < DECODE_S + 0.1 + 2.5
    assert await bench.uses(leader, *others) == ["none"] * 4


@in_virtual_time
async def test_unary_image_does_not_wait_for_the_same_frame():
    bench = Bench(max_batch_size=1)
    frames = []
    for number in range(1, 7):
        frames.append(bench.ask(number, flow="stream"))
        await asyncio.sleep(0.01)
    alone = bench.ask(6)
    # Frames wait for what stands alone, and for each other.
    others = bench.ask(6, flow="other"), bench.ask(5, flow="other")
    assert await bench.uses(alone) == ["none"]
    assert bench.engine.batches[:3] == [[1], [2], [6]]
    assert await bench.uses(*others) == ["shared", "shared"]
    assert await bench.uses(*frames) == ["none"] * 6
    assert bench.engine.batches.count([5]) == 1


@in_virtual_time
async def test_broken_image_is_decoded_once_for_all_waiters():
    bench = Bench()
    for times in (1, 2):
        asked = [bench.ask(BROKEN) for _ in range(4)]
        errors = await asyncio.gather(*asked, return_exceptions=True)
        assert [(type(one), one.field, one.kind, str(one)) for one in errors] == [
            (InvalidImage, "image.encoded", "truncated", "image.encoded: is broken")
        ] * 4
        assert len(set(map(id, errors))) == 4
        assert len(bench.decoded) == times
    assert len(bench.cache) == 0


@in_virtual_time
async def test_failed_batch_fails_all_waiters_once():
    bench = Bench()
    bench.engine.error = RuntimeError("broken")
    asked = [bench.ask(7) for _ in range(8)]
    errors = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(one) for one in errors} == {EngineFailed}
    assert {type(one.__cause__) for one in errors} == {RuntimeError}
    assert bench.engine.batches == [[7]]
    bench.engine.error = None
    assert await bench.uses(bench.ask(7)) == ["none"]


@in_virtual_time
async def test_answer_that_is_not_a_number_is_not_kept():
    bench = Bench()
    bench.engine.without_answer = 7
    asked = [bench.ask(7), bench.ask(7), bench.ask(8)]
    one, other, good = await asyncio.gather(*asked, return_exceptions=True)
    assert (type(one), type(other)) == (EngineFailed, EngineFailed)
    assert good.result.indices.tolist() == [8]
    assert len(bench.cache) == 1
    with pytest.raises(EngineFailed):
        await bench.ask(7)
    bench.engine.without_answer = None
    assert (await bench.ask(7)).result.indices.tolist() == [7]


@in_virtual_time
async def test_all_who_wait_are_told_when_the_server_stops():
    bench = Bench()
    asked = [bench.ask(7) for _ in range(3)]
    await asyncio.sleep(DECODE_S + 0.5)
    await bench.scheduler.close()
    errors = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(one) for one in errors} == {ShuttingDown}


@in_virtual_time
async def test_frames_that_wait_for_room_are_computed_once():
    bench = Bench(max_queue_size=1, max_batch_size=1)
    bench.ask(1)
    await asyncio.sleep(DECODE_S + 0.1)
    bench.ask(2)
    await asyncio.sleep(DECODE_S + 0.1)
    frames = [bench.ask(7, flow=flow) for flow in ("one", "other")]
    assert await bench.uses(*frames) == ["none", "shared"]
    assert bench.engine.batches == [[1], [2], [7]]


@in_virtual_time
async def test_pixels_at_hand_are_computed_once_and_kept(monkeypatch):
    bench = Bench()
    bench.engine.needs_pixels = False
    monkeypatch.setattr(resnet50_server.inference.pipeline, "is_looked_at_fast", lambda _: True)
    bench.pipeline._look = bench.decode
    before = bench.ask(1)
    await asyncio.sleep(0.1)
    job = Job(bench.variant, 1, False, RequestContext("", "", ()), None, "stream")
    first = bench.pipeline.begin(b"\x07", job)
    second = asyncio.ensure_future(bench.pipeline.begin(b"\x07", job))
    leaving = bench.pipeline.begin(b"\x08", job)
    await asyncio.sleep(0.1)
    leaving.result.cancel()
    assert (await first.result).cache == "none"
    assert (await second).result.cache == "shared"
    assert (await bench.pipeline.begin(b"\x07", job).result).cache == "hit"
    await before
    assert bench.pool.calls == 0
    assert bench.engine.batches == [[1], [7]]


@in_virtual_time
async def test_without_a_cache_each_image_is_computed():
    bench = Bench()
    bench.pipeline._cache = None
    assert await bench.uses(bench.ask(7), bench.ask(7)) == ["none", "none"]
    assert await bench.uses(bench.ask(7)) == ["none"]
    assert bench.engine.batches == [[7, 7], [7]]


@in_virtual_time
async def test_every_reason_of_its_own_lets_others_go_on():
    """Whatever refuses the leader, but for the image and the engine, is no reason for others."""
    reasons = {kind for kind in ServingError.__subclasses__() if kind.__module__.endswith("errors")}
    assert {DeadlineUnreachable, ShuttingDown} <= reasons
    for error in (
        QueueFull("max_queue_size", "full", 1.0),
        DeadlineUnreachable("late"),
        ShuttingDown(),
        RuntimeError("a fault of ours"),
        asyncio.CancelledError(),
    ):
        cache = ResponseCache(MIB)
        asked = cache.ask("v", "v", b"", 1, False)
        flight = asked.lead((0, 0.0))
        following = asyncio.ensure_future(flight.follow(None))
        await asyncio.sleep(0)
        with pytest.raises(type(error)), flight:
            raise error
        assert await following is None
        assert asked.flight((9, 0.0)) is None
