"""The response cache: its keys, its memory, and what it does not store; in virtual time."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import os
import tracemalloc
import weakref

import pytest

from resnet50.v1 import image_pb2
from resnet50_server.batching.result import Result
from resnet50_server.context import RequestContext
from resnet50_server.images.background import Background
from resnet50_server.images.source import RawImage
from resnet50_server.inference import response_cache
from resnet50_server.inference.pipeline import InferenceTask
from resnet50_server.inference.response_cache import (
    MAX_INLINE_HASH_BYTES,
    PURGE_CHUNK,
    CacheKey,
    ResponseCache,
    content_digest,
)
from tests.support.pipeline_bench import DECODE_S, MIB, Bench, now, result
from tests.support.virtual_device import FakeEngine
from tests.support.virtual_time import in_virtual_time


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
async def test_large_cache_is_sharded_evenly(monkeypatch):
    cache = ResponseCache(MIB)
    await keep(cache, "v", content_digest(b""), result())
    monkeypatch.setattr(response_cache, "SHARD_BYTES", 70 * cache.memory_bytes)
    cache = ResponseCache(4 * response_cache.SHARD_BYTES)
    digests = [content_digest(bytes([number])) for number in range(200)]
    for digest in digests:
        await keep(cache, "v", digest, result())
    assert all([await is_kept(cache, "v", digest) for digest in digests])
    assert (len(cache), cache.evictions) == (200, 0)
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
