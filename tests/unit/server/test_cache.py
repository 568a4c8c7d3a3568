"""Response cache and single-flight, in virtual time."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import os
import tracemalloc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from resnet50.v1 import image_pb2
from resnet50_server.batching.batch import BatchPolicy
from resnet50_server.batching.result import Result
from resnet50_server.batching.scheduler import Scheduler
from resnet50_server.context import RequestContext
from resnet50_server.errors import (
    DeadlineUnreachable,
    EngineFailed,
    InvalidImage,
    QueueFull,
    ShuttingDown,
)
from resnet50_server.images.background import Background
from resnet50_server.images.limits import ImageLimits
from resnet50_server.images.pixel_budget import SMALL_PIXELS, PixelBudget
from resnet50_server.images.source import RawImage
from resnet50_server.inference.admission import Admission
from resnet50_server.inference.pipeline import InferenceTask, Pipeline
from resnet50_server.inference.quotas import Limits
from resnet50_server.inference.response_cache import (
    MAX_INLINE_HASH_BYTES,
    PURGE_CHUNK,
    SHARD_BYTES,
    CacheKey,
    CacheStats,
    ResponseCache,
    content_digest,
)
from resnet50_server.inference.single_flight import SingleFlight
from resnet50_server.variants.spec import parse_variant
from tests.support.virtual_device import FakeEngine, VirtualThreads, image
from tests.support.virtual_time import in_virtual_time

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
        variant: SimpleNamespace | None = None,
        background: Background | None = None,
    ) -> asyncio.Task[Result]:
        if isinstance(source, int):
            source = bytes([source])
        deadline = None if within is None else now() + within
        call = RequestContext("", "", (), bulk=bulk, deadline=deadline, stream=stream)
        task = InferenceTask(variant or self.variant, top_k, embed, background=background)
        return asyncio.create_task(self.pipeline.infer(source, task, call))

    async def uses(self, *asked: asyncio.Task[Result]) -> list[str]:
        return [result.cache for result in await asyncio.gather(*asked)]

    @property
    def stats(self) -> CacheStats:
        return self.cache.stats["IMAGENET1K_V2"]


class Held(SimpleNamespace):
    __hash__ = object.__hash__
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


async def keep(cache: ResponseCache, owner: str, digest: bytes, answer: Result) -> None:
    """Keep what was computed."""

    async def compute() -> Result:
        return answer

    key = CacheKey(owner, owner, digest, 1, answer.embedding is not None)
    assert (await cache.get_or_compute(key, compute)).cache == "none"


async def is_kept(cache: ResponseCache, owner: str, digest: bytes, embedding: bool = False) -> bool:
    async def compute() -> Result:
        raise LookupError

    try:
        await cache.get_or_compute(CacheKey(owner, owner, digest, 1, embedding), compute)
    except LookupError:
        return False
    return True


@in_virtual_time
async def test_hit_is_neither_decoded_nor_computed():
    bench = Bench()
    others = [bench.ask(8, top_k=2, embed=True) for _ in range(2)]
    first = await bench.ask(7, top_k=2, embed=True)
    await asyncio.gather(*others)
    started = now()
    again = await bench.ask(7, top_k=2, embed=True)
    assert now() == started
    assert (bench.decoded, bench.engine.batches) == ([b"\x08", b"\x07"], [[8, 7]])
    assert first.cache == "none"
    assert again.decode_s == 0.0
    for name in ("indices", "probabilities", "embedding"):
        one, other = getattr(first, name), getattr(again, name)
        assert (one.tolist(), one.dtype) == (other.tolist(), other.dtype)
    told = dataclasses.asdict(again)
    assert {name: told[name] for name in ("queue_s", "compute_s", "batch_size", "batch")} == {
        "queue_s": 0.0,
        "compute_s": 0.0,
        "batch_size": 2,
        "batch": None,
    }
    assert again.cache == "hit"


@in_virtual_time
async def test_hit_waits_for_nothing():
    bench = Bench()
    await bench.ask(7)
    task = InferenceTask(bench.variant, 1, False)
    hit = bench.pipeline.infer(b"\x07", task, RequestContext("", "", ()))
    with pytest.raises(StopIteration) as ended:
        hit.send(None)
    assert ended.value.value.cache == "hit"


@pytest.mark.parametrize("other", [{"top_k": 2}, {"embed": True}, {"top_k": 0, "embed": True}])
@in_virtual_time
async def test_other_options_are_another_cache_key(other):
    bench = Bench()
    await bench.ask(7)
    answer = await bench.ask(7, **other)
    assert answer.cache == "none"
    assert len(answer.indices) == other.get("top_k", 1)
    assert (answer.embedding is not None) == other.get("embed", False)
    assert bench.engine.batches == [[7], [7]]
    again = await bench.ask(7, **other)
    assert again.cache == "hit"
    assert len(again.indices) == other.get("top_k", 1)
    assert (again.embedding is not None) == other.get("embed", False)


@in_virtual_time
async def test_reloaded_weights_do_not_share_cache_entries():
    bench = Bench()
    other = bench.load()
    await bench.ask(7)
    assert await bench.uses(bench.ask(7, variant=other)) == ["none"]
    assert other.built.engine.batches == [[7]]


@in_virtual_time
async def test_backgrounds_do_not_share_cache_entries():
    bench = Bench()
    white, dropped = Background((255, 255, 255)), Background(None)
    assert await bench.uses(bench.ask(7, background=white)) == ["none"]
    assert await bench.uses(bench.ask(7), bench.ask(7, background=white)) == ["none", "hit"]
    # The variant drops alpha, so this asks for the same.
    assert await bench.uses(bench.ask(7, background=dropped)) == ["hit"]
    black = Background((0, 0, 0))
    together = bench.ask(8, background=white), bench.ask(8, background=black)
    assert await bench.uses(*together) == ["none", "none"]


def raw(pixels: bytes = bytes(24), **changed) -> RawImage:
    about = {"width": 4, "height": 2, "pixel_format": image_pb2.PIXEL_FORMAT_RGB}
    return RawImage(**about | {"row_stride_bytes": 0} | changed, pixels=pixels)


def test_digest_covers_pixels_and_format():
    gray = image_pb2.PIXEL_FORMAT_GRAY
    different = [
        raw(),
        raw(bytes([1]) + bytes(23)),
        raw(width=2, height=4),
        raw(pixel_format=image_pb2.PIXEL_FORMAT_BGR),
        raw(row_stride_bytes=12),
        raw(color_matrix=image_pb2.COLOR_MATRIX_BT709),
        raw(color_range=image_pb2.COLOR_RANGE_FULL),
        raw(width=8, height=2, pixel_format=gray),
        bytes(24),
        bytes(25),
    ]
    assert len({content_digest(source) for source in different}) == len(different)
    assert content_digest(raw()) == content_digest(raw())


def test_file_and_raw_pixels_have_different_digests():
    spelt = b"\1" + b"".join(n.to_bytes(4, "little") for n in (4, 2, image_pb2.PIXEL_FORMAT_RGB, 0))
    assert content_digest(spelt + bytes(24)) != content_digest(raw())


@in_virtual_time
async def test_large_images_are_hashed_in_a_thread():
    bench = Bench()
    small, large = (bytes([1]) + bytes(MAX_INLINE_HASH_BYTES - 1 + more) for more in (0, 1))
    await asyncio.gather(bench.ask(small), bench.ask(large))
    assert bench.pool.calls == 1 + 2
    assert await bench.uses(bench.ask(small), bench.ask(large)) == ["hit", "hit"]
    assert bench.pool.calls == 1 + 2 + 1


@in_virtual_time
async def test_variant_replaced_during_hashing_is_not_used():
    bench = Bench()
    asked = bench.ask(bytes([1]) + bytes(MAX_INLINE_HASH_BYTES))
    await asyncio.sleep(DECODE_S / 2)
    bench.variant.retired = True
    bench.cache.drop(bench.variant)
    assert await bench.uses(asked) == ["none"]
    assert (len(bench.cache), bench.cache.stats) == (0, {})


@in_virtual_time
async def test_cached_results_are_read_only():
    bench = Bench()
    await bench.ask(7, embed=True)
    hit = await bench.ask(7, embed=True)
    for array in (hit.indices, hit.probabilities, hit.embedding):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


@in_virtual_time
async def test_cached_results_do_not_keep_their_batch_alive():
    bench = Bench()
    made = []

    class Remembering(FakeEngine):
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
async def test_cache_memory_stays_within_its_bound():
    for embedding in (0, 2048):
        cache = ResponseCache(MIB)
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for number in range(200 if embedding else 4000):
            await keep(cache, "v", os.urandom(32), result(embedding, number))
        await asyncio.sleep(0)
        taken = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        assert cache.evictions > 0
        assert taken <= cache.memory_bytes <= MIB
        assert cache.memory_bytes > 0.9 * MIB


@in_virtual_time
async def test_result_that_is_stored_twice_counts_once():
    once, twice = Bench(), Bench()
    await once.ask(7)
    assert await twice.uses(twice.ask(7), twice.ask(7, bulk=True)) == ["none", "none"]
    assert (len(twice.cache), twice.cache.memory_bytes) == (1, once.cache.memory_bytes)


@in_virtual_time
async def test_least_recently_used_result_is_evicted_first():
    cache = ResponseCache(MIB)
    digests = [bytes([number]) for number in range(255)]
    kept = 0
    while not cache.evictions:
        if kept == 100:
            assert await is_kept(cache, "v", digests[0], True)
        await keep(cache, "v", digests[kept], result(2048))
        kept += 1
    left = [number for number in range(kept) if await is_kept(cache, "v", digests[number], True)]
    assert left == [0, *range(1 + cache.evictions, kept)]
    assert len(cache) == kept - cache.evictions


@in_virtual_time
async def test_result_larger_than_the_cache_is_not_stored():
    cache = ResponseCache(8000)
    await keep(cache, "v", b"small", result())
    await keep(cache, "v", b"large", result(2048))
    assert await is_kept(cache, "v", b"small")
    assert not await is_kept(cache, "v", b"large", True)
    assert cache.evictions == 0


@in_virtual_time
async def test_entry_as_large_as_the_cache_evicts_all_others():
    cache = ResponseCache(8500)
    await keep(cache, "v", b"small", result())
    await keep(cache, "v", b"large", result(2048))
    assert not await is_kept(cache, "v", b"small")
    assert await is_kept(cache, "v", b"large", True)
    assert cache.memory_bytes <= 8500


@in_virtual_time
async def test_drop_removes_the_results_of_one_owner_only():
    cache = ResponseCache(4 * MIB)
    for number in range(2 * PURGE_CHUNK + 1):
        await keep(cache, "gone", number.to_bytes(4, "big"), result())
        if not number % 100:
            await keep(cache, "stays", number.to_bytes(4, "big"), result())
    cache.drop("gone")
    cache.drop("never asked")
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(cache) == 21
    assert all([await is_kept(cache, "stays", (100 * n).to_bytes(4, "big")) for n in range(21)])
    fresh = ResponseCache(4 * MIB)
    for number in range(21):
        await keep(fresh, "stays", number.to_bytes(4, "big"), result())
    assert cache.memory_bytes == fresh.memory_bytes


@in_virtual_time
async def test_large_cache_is_sharded_evenly():
    cache = ResponseCache(4 * SHARD_BYTES)
    digests = [content_digest(bytes([number])) for number in range(200)]
    for digest in digests:
        await keep(cache, "v", digest, result())
    assert all([await is_kept(cache, "v", digest) for digest in digests])
    assert [len(shard) > 20 for shard in cache._shards] == [True] * 4
    assert len(cache) == 200
    cache.drop("v")
    for _ in range(5):
        await asyncio.sleep(0)
    assert (len(cache), cache.memory_bytes) == (0, 0)


@in_virtual_time
async def test_result_of_dropped_weights_is_returned_not_stored():
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
async def test_concurrent_requests_share_a_computation(wait_s):
    bench = Bench()
    first = bench.ask(7)
    await asyncio.sleep(wait_s)
    others = [bench.ask(7) for _ in range(5)]
    results = [answer for answer in await asyncio.gather(first, *others)]
    assert (bench.decoded, bench.engine.batches) == ([b"\x07"], [[7]])
    assert now() == DECODE_S + 1.0
    assert [one.cache for one in results] == ["none"] + ["shared"] * 5
    assert [one.indices.tolist() for one in results] == [[7]] * 6
    for other in results[1:]:
        assert other.queue_s > 0.0
        assert other.compute_s == 0.0
        assert (other.batch_size, other.batch) == (1, None)
    assert bench.stats == CacheStats(hits=0, shared=5, misses=1)
    assert await bench.uses(bench.ask(7)) == ["hit"]
    assert bench.stats == CacheStats(hits=1, shared=5, misses=1)


@in_virtual_time
async def test_decoding_continues_if_the_first_request_is_cancelled():
    bench = Bench()
    leader, *others = [bench.ask(7) for _ in range(4)]
    await asyncio.sleep(DECODE_S / 2)
    leader.cancel()
    assert await bench.uses(*others) == ["shared"] * 3
    assert (bench.pool.calls, bench.engine.batches) == (1, [[7]])
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
async def test_computation_is_cancelled_with_its_last_request():
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
async def test_request_during_that_cancellation_is_answered():
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
    assert [answer.indices.tolist() for answer in answers] == [[7], [7]]
    await before


@in_virtual_time
async def test_computation_begun_after_a_cancellation_is_shared():
    bench = Bench()
    cancelled = bench.ask(7)
    await asyncio.sleep(DECODE_S / 2)
    cancelled.cancel()
    first = bench.ask(7)
    await asyncio.sleep(DECODE_S / 2)
    assert await bench.uses(first, bench.ask(7)) == ["none", "shared"]


@in_virtual_time
async def test_cancelled_follower_does_not_cancel_the_computation():
    bench = Bench()
    leader, other = bench.ask(7), bench.ask(7)
    await asyncio.sleep(DECODE_S + 0.5)
    other.cancel()
    assert await bench.uses(leader) == ["none"]
    assert bench.stats == CacheStats(shared=0, misses=1)


@in_virtual_time
async def test_follower_is_refused_at_its_own_deadline():
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
async def test_follower_computes_if_the_starter_is_too_late():
    bench = Bench()
    await bench.ask(1)  # from now on it is known that a batch takes a second
    before = bench.ask(2)
    await asyncio.sleep(DECODE_S + 0.1)
    # Behind the batch that runs they would be there in time, but it takes longer than it should.
    bench.scheduler._in_flight[0].expected_end = now()
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
async def test_hit_needs_no_queue_slot():
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
async def test_end_of_one_computation_keeps_that_of_other_priority():
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
async def test_single_image_does_not_wait_for_the_same_stream_frame():
    bench = Bench(max_batch_size=1)
    frames = []
    for number in range(1, 7):
        frames.append(bench.ask(number, stream="stream"))
        await asyncio.sleep(0.01)
    single = bench.ask(6)
    others = bench.ask(6, stream="other"), bench.ask(5, stream="other")
    assert await bench.uses(single) == ["none"]
    assert bench.engine.batches[:3] == [[1], [2], [6]]
    # Frames of several streams share.
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
    assert bench.engine.batches == [[7], [7]]  # the batch was retried
    bench.engine.error = None
    assert await bench.uses(bench.ask(7)) == ["none"]


@in_virtual_time
async def test_non_finite_result_is_not_stored():
    bench = Bench()
    bench.engine.without_answer = 7
    asked = [bench.ask(7), bench.ask(7), bench.ask(8)]
    one, other, good = await asyncio.gather(*asked, return_exceptions=True)
    assert (type(one), type(other)) == (EngineFailed, EngineFailed)
    assert good.indices.tolist() == [8]
    assert len(bench.cache) == 1
    with pytest.raises(EngineFailed):
        await bench.ask(7)
    bench.engine.without_answer = None
    assert (await bench.ask(7)).indices.tolist() == [7]


@in_virtual_time
async def test_shutdown_fails_all_that_wait():
    bench = Bench()
    asked = [bench.ask(7) for _ in range(3)]
    await asyncio.sleep(DECODE_S + 0.5)
    await bench.scheduler.close()
    errors = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(one) for one in errors} == {ShuttingDown}


@in_virtual_time
async def test_queued_frames_of_one_image_are_computed_once():
    bench = Bench(max_queue_size=1, max_batch_size=1)
    bench.ask(1)
    await asyncio.sleep(DECODE_S + 0.1)
    bench.ask(2)
    await asyncio.sleep(DECODE_S + 0.1)
    frames = [bench.ask(7, stream=stream) for stream in ("one", "other")]
    assert await bench.uses(*frames) == ["none", "shared"]
    assert bench.engine.batches == [[1], [2], [7]]


@in_virtual_time
async def test_pixels_that_need_no_decoding_are_cached_and_coalesced():
    bench = Bench()
    side = bench.variant.spec.transform.resize
    pixels, other = (
        RawImage(side, side, image_pb2.PIXEL_FORMAT_GRAY, 0, bytes([number]) * side**2)
        for number in (7, 8)
    )
    bench.pipeline._decode = lambda source, *_, **__: image(
        bytes(getattr(source, "pixels", source))[0]
    )
    before = bench.ask(1)
    await asyncio.sleep(DECODE_S + 0.1)
    first, second = (bench.ask(pixels, stream="stream") for _ in range(2))
    leaving = bench.ask(other, stream="stream")
    await asyncio.sleep(0.1)
    leaving.cancel()
    assert await bench.uses(first, second) == ["none", "shared"]
    assert await bench.uses(bench.ask(pixels, stream="stream")) == ["hit"]
    await before
    assert bench.pool.calls == 1  # of the one before
    assert bench.engine.batches == [[1], [7]]


@in_virtual_time
async def test_shadow_is_computed_and_not_cached():
    bench = Bench()
    await bench.ask(7)
    task = InferenceTask(bench.variant, 1, False)
    shadow = RequestContext("Shadow", "", (), shadow=True)
    result = await bench.pipeline.infer(b"\x07", task, shadow)
    assert (result.cache, bench.engine.batches) == ("none", [[7], [7]])
    assert bench.stats == CacheStats(misses=1)


@in_virtual_time
async def test_cancelled_image_releases_its_decode_memory():
    bench = Bench()
    large = SMALL_PIXELS + 1
    bench.pipeline._pixels = budget = PixelBudget(large)

    def decode(source, _, reserve, **__) -> np.ndarray:
        with reserve(large):
            return image(source[0])

    bench.pipeline._decode = decode
    with budget.reserve(large):
        cancelled = bench.ask(7)
        await asyncio.sleep(DECODE_S + 0.01)  # it waits for the memory
    await asyncio.sleep(DECODE_S / 2)  # it waits for a thread
    cancelled.cancel()
    assert await asyncio.wait_for(bench.uses(bench.ask(8)), 10) == ["none"]
    assert bench.engine.batches == [[8]]


@in_virtual_time
async def test_without_a_cache_each_image_is_computed():
    bench = Bench()
    bench.pipeline._cache = None
    assert await bench.uses(bench.ask(7), bench.ask(7)) == ["none", "none"]
    assert await bench.uses(bench.ask(7)) == ["none"]
    assert bench.engine.batches == [[7, 7], [7]]


@pytest.mark.parametrize(
    "error",
    [
        QueueFull("max_queue_size", "full", 1.0),
        InvalidImage("image.encoded", "is broken", kind="truncated"),
        ShuttingDown(),
        RuntimeError("a server error"),
    ],
)
@in_virtual_time
async def test_failure_is_copied_to_each_request(error):
    flights, runs = SingleFlight(), []

    async def compute() -> None:
        runs.append(now())
        await asyncio.sleep(1)
        raise error

    waiting = [asyncio.create_task(flights.run("key", compute)) for _ in range(3)]
    errors = await asyncio.gather(*waiting, return_exceptions=True)
    assert [(type(one), str(one), vars(one)) for one in errors] == [
        (type(error), str(error), vars(error))
    ] * 3
    assert len(set(map(id, errors))) == 3
    assert len(runs) == 1


@in_virtual_time
async def test_missed_deadline_is_not_shared():
    flights, runs = SingleFlight(), []

    async def compute() -> int:
        runs.append(now())
        await asyncio.sleep(1)
        if len(runs) == 1:
            raise DeadlineUnreachable("late")
        return 7

    first, *others = [asyncio.create_task(flights.run("key", compute)) for _ in range(3)]
    with pytest.raises(DeadlineUnreachable):
        await first
    assert await asyncio.gather(*others) == [(7, False), (7, True)]
    assert len(runs) == 2


@in_virtual_time
async def test_error_of_a_computation_needs_no_garbage_collection():
    flights, errors = SingleFlight(), []

    class Failed(Exception):
        def __init__(self) -> None:
            errors.append(weakref.ref(self))

    async def compute() -> None:
        raise Failed

    gc.disable()
    try:
        waiting = [asyncio.create_task(flights.run("key", compute)) for _ in range(2)]
        await asyncio.wait(waiting)
        assert [type(one.exception()) for one in waiting] == [Failed, Failed]
        del waiting
        await asyncio.sleep(0.1)
        assert [error() for error in errors] == [None]
    finally:
        gc.enable()
