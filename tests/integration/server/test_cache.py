"""The response cache of a real server, as callers see it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from resnet50.v1 import image_pb2, inference_pb2, inference_pb2_grpc, result_pb2
from resnet50_client import (
    AsyncClient,
    DeadlineExceededError,
    InvalidImageError,
    InvalidRequestError,
    OverloadedError,
)
from resnet50_server.inference.response_cache import MAX_INLINE_HASH_BYTES
from resnet50_server.rollout.split import Split
from tests.support.administering import ADMIN, administered
from tests.support.clients import KINDS, Caller
from tests.support.pictures import encode, photo_like, picture
from tests.support.scrape import ON, scrape_once
from tests.support.serving import DECODING, computed, connected, gate, queues_of, serving, until

PNG = encode(picture())
OTHER = encode(picture(48, 48))
V1, V2 = "IMAGENET1K_V1", "IMAGENET1K_V2"
CACHE = {"response_cache_bytes": 8 * 2**20}
CACHING = DECODING | CACHE
HIT, SHARED = result_pb2.CACHE_USE_HIT, result_pb2.CACHE_USE_SHARED
COMPUTED = result_pb2.CACHE_USE_UNSPECIFIED


@pytest.mark.parametrize("kind", KINDS)
async def test_image_that_comes_again_is_answered_from_the_cache(kind):
    async with serving(**CACHING) as server, Caller(kind, server.addresses[0]) as client:
        batches = computed(server)
        first, again = await client.classify(PNG), await client.classify(PNG)
    assert list(map(len, batches)) == [1]
    assert (first.timing.cache, again.timing.cache) == (None, "hit")
    assert again.categories == first.categories
    assert again.variant == first.variant
    timing = again.timing
    assert (timing.decode_ms, timing.queue_ms, timing.compute_ms) == (0.0, 0.0, 0.0)
    assert timing.total_ms > 0.0
    assert timing.batch_size == 1
    assert repr(timing).endswith("cache hit)")


async def test_nothing_is_kept_unless_it_is_asked_for():
    async with serving(**DECODING) as server, AsyncClient(server.addresses[0]) as client:
        batches = computed(server)
        assert [(await client.classify(PNG)).timing.cache for _ in range(2)] == [None, None]
        assert list(map(len, batches)) == [1, 1]


async def test_real_weights_answer_the_same_again():
    settings = {"variants": ["untrained=random:0"], "engine": "torch", "device": "cpu"}
    photo = encode(photo_like(300, 260), "JPEG")
    async with (
        serving(max_batch_size=1, **settings, **CACHE) as server,
        AsyncClient(server.addresses[0]) as client,
    ):
        first = await client.classify(photo, top_k=3, include_embedding=True)
        again = await client.classify(photo, top_k=3, include_embedding=True)
        assert again.timing.cache == "hit"
        assert again.categories == first.categories
        np.testing.assert_array_equal(again.embedding.vector, first.embedding.vector)
        assert again.embedding.space == first.embedding.space


async def test_options_that_only_change_how_it_is_told_share_an_answer():
    async with serving(**CACHING) as server, AsyncClient(server.addresses[0]) as client:
        batches = computed(server)
        plain = await client.embed(PNG)
        unit = await client.embed(PNG, l2_normalize=True)
        half = await client.embed(PNG, dtype="float16")
        assert [one.timing.cache for one in (plain, unit, half)] == [None, "hit", "hit"]
        assert np.linalg.norm(unit.vector) == pytest.approx(1.0, abs=1e-5)
        assert half.vector.dtype == np.float16
        np.testing.assert_array_equal((await client.embed(PNG)).vector, plain.vector)
        everything = await client.classify(PNG)
        nothing = await client.classify(PNG, min_probability=1.0)
        assert (nothing.timing.cache, nothing.categories) == ("hit", ())
        assert len(everything.categories) == 5
        fewer = await client.classify(PNG, top_k=4)
        assert (fewer.timing.cache, len(fewer.categories)) == (None, 4)
        assert list(map(len, batches)) == [1, 1, 1]


async def test_wrong_options_are_refused_whatever_is_kept():
    async with serving(**CACHING) as server, AsyncClient(server.addresses[0]) as client:
        await client.classify(PNG)
        with pytest.raises(InvalidRequestError, match="top_k"):
            await client.classify(PNG, top_k=1001)
        with pytest.raises(InvalidRequestError, match="min_probability"):
            await client.classify(PNG, min_probability=2.0)


async def test_uploads_frames_and_single_images_share_answers():
    large = encode(photo_like(400, 400))
    assert len(large) > MAX_INLINE_HASH_BYTES

    async def parts():
        yield inference_pb2.ClassifyUploadRequest(options={})
        for start in range(0, len(large), 100_000):
            yield inference_pb2.ClassifyUploadRequest(chunk=large[start : start + 100_000])

    async with serving(**CACHING) as server, connected(server) as channel:
        batches, stub = computed(server), inference_pb2_grpc.InferenceServiceStub(channel)
        assert (await stub.ClassifyUpload(parts())).timing.cache == COMPUTED
        assert (await stub.ClassifyUpload(parts())).timing.cache == HIT
        image = image_pb2.Image(encoded=large)
        reply = await stub.Classify(inference_pb2.ClassifyRequest(image=image))
        assert reply.timing.cache == HIT
        async with AsyncClient(server.addresses[0]) as client:
            sent = [large, PNG, large, PNG, b"no image", large]
            items = [one async for one in client.classify_many(sent, return_exceptions=True)]
            assert isinstance(items.pop(4), InvalidImageError)
            uses = [one.timing.cache for one in items]
            assert (uses[0], uses[2], uses[4]) == ("hit", "hit", "hit")
            # Both are in flight at the same time: either may be the first.
            once, other = sorted((uses[1], uses[3]), key=lambda use: use is not None)
            assert once is None
            assert other in ("hit", "shared")
            latest = [one async for one in client.classify_stream([PNG], delivery="latest")]
            assert latest[0].result.timing.cache == "hit"
        assert list(map(len, batches)) == [1, 1]


async def test_frames_stay_in_order_though_some_are_there_at_once():
    images = [encode(picture(16 + n, 16)) for n in range(10)]
    async with serving(**CACHING) as server, AsyncClient(server.addresses[0]) as client:
        for kept in images[::2]:
            await client.embed(kept)
        opened = gate(server)
        answers = []

        async def stream() -> None:
            async for answer in client.embed_stream(images):
                answers.append(answer)

        streaming = asyncio.ensure_future(stream())
        await until(lambda: len(answers) == 1)
        opened.set()
        await streaming
    assert [answer.frame_id for answer in answers] == list(range(10))
    assert [answer.result.timing.cache for answer in answers] == ["hit", None] * 5


async def test_same_image_in_flight_is_computed_once():
    async with serving(max_batch_size=4, **CACHING) as server, connected(server) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        batches, opened = computed(server), gate(server)
        request = inference_pb2.ClassifyRequest(image=image_pb2.Image(encoded=PNG))
        calls = [stub.Classify(request) for _ in range(20)]
        await until(lambda: server.snapshot().requests == 20)
        opened.set()
        timings = [(await call).timing for call in calls]
    assert list(map(len, batches)) == [1]
    assert sorted(timing.cache for timing in timings) == [COMPUTED] + [SHARED] * 19
    for timing in timings:
        assert timing.total_us >= timing.decode_us + timing.queue_us + timing.compute_us
        if timing.cache == SHARED:
            assert (timing.decode_us, timing.compute_us, timing.batch_size) == (0, 0, 1)
            assert timing.queue_us > 0


async def test_caller_who_leaves_takes_nobody_along():
    async with serving(**CACHING) as server, AsyncClient(server.addresses[0]) as client:
        batches, opened = computed(server), gate(server)
        first = asyncio.ensure_future(client.classify(PNG, timeout_s=0.3))
        await until(lambda: server.snapshot().requests == 1)
        second = asyncio.ensure_future(client.classify(PNG))
        with pytest.raises(DeadlineExceededError):
            await first
        opened.set()
        assert (await second).timing.cache in ("shared", None)
        # The batch that ran was not for nothing.
        assert list(map(len, batches)) == [1]


async def test_cache_hit_is_answered_while_the_queue_is_full():
    settings = CACHING | {"max_queue_size": 1, "max_batch_size": 1}
    async with serving(**settings) as server, AsyncClient(server.addresses[0]) as client:
        await client.classify(PNG)
        opened = gate(server)
        (queue,) = queues_of(server)
        full = [asyncio.ensure_future(client.classify(encode(picture(16, 16))))]
        await until(lambda: server.snapshot().batches["cpu"])
        full.append(asyncio.ensure_future(client.classify(encode(picture(17, 16)))))
        await until(lambda: len(queue.waiting) == 1)
        with pytest.raises(OverloadedError, match="max_queue_size"):
            await client.classify(OTHER)
        assert (await client.classify(PNG)).timing.cache == "hit"
        opened.set()
        await asyncio.gather(*full)


async def test_kept_answers_count_towards_a_callers_rate():
    settings = CACHING | {"max_rate_per_caller": 0.001}
    async with serving(**settings) as server, AsyncClient(server.addresses[0]) as client:
        await client.classify(PNG)
        with pytest.raises(OverloadedError, match="max_rate_per_caller"):
            await client.classify(PNG)


def variants_folder(folder: Path) -> Path:
    """Make the folder of a server's variants, next to which its tokens are."""
    (folder / "variants").mkdir()
    return folder / "variants"


async def test_replaced_and_unloaded_variants_leave_no_answers(tmp_path):
    settings = CACHING | {"variants": [V2, V1]}
    async with (
        administered(variants_folder(tmp_path), **settings) as server,
        AsyncClient(server.addresses[0], token=ADMIN) as client,
    ):

        async def uses(variant: str) -> list[str | None]:
            return [(await client.classify(PNG, variant=variant)).timing.cache for _ in range(2)]

        for variant in (V2, V1):
            assert await uses(variant) == [None, "hit"]
        assert server.snapshot().cache.entries == 2
        await server.parts.control.load(V1, replace=True)
        assert server.snapshot().cache.entries == 1
        # The weights are the same as before, and yet they are asked themselves.
        assert await uses(V1) == [None, "hit"]
        await server.parts.control.unload(V1)
        assert server.snapshot().cache.entries == 1
        assert await uses(V2) == ["hit", "hit"]


async def test_stream_after_a_swap_gets_no_answer_of_the_old_weights(tmp_path):
    async with (
        administered(variants_folder(tmp_path), **CACHING) as server,
        AsyncClient(server.addresses[0], token=ADMIN) as client,
    ):

        async def frames():
            for number in range(4):
                if number == 2:
                    await server.parts.control.load(V2, replace=True)
                yield PNG
                await until(lambda number=number: len(uses) > number)

        uses: list[str | None] = []
        async for answer in client.classify_stream(frames()):
            uses.append(answer.result.timing.cache)
    assert uses == [None, "hit", None, "hit"]


async def test_split_compares_only_what_the_variant_has_computed():
    settings = CACHING | {"variants": [V1, V2]}
    async with serving(**settings) as server, AsyncClient(server.addresses[0]) as client:
        active = server.parts.traffic.set(Split(V1, V2, shadow_percent=100.0))
        uses = [(await client.classify(PNG, variant=V1)).timing.cache for _ in range(3)]
        await client.classify(OTHER, variant=V1)
        await until(lambda: active.stats.comparison.images == 2)
        assert uses == [None, "hit", "hit"]
        assert active.stats.variant_answers.answered == 4
        # Shadow results of the candidate are not cached.
        assert (await client.classify(PNG, variant=V2)).timing.cache is None


async def test_cache_hits_are_counted_apart_from_computed_images():
    async with serving(**CACHING, **ON) as server, AsyncClient(server.addresses[0]) as client:
        opened = gate(server)
        both = [asyncio.ensure_future(client.classify(PNG)) for _ in range(2)]
        await until(lambda: server.snapshot().requests == 2)
        opened.set()
        timings = [one.timing for one in await asyncio.gather(*both)]
        timings += [(await client.classify(PNG)).timing for _ in range(3)]
        assert [one.cache for one in timings].count("hit") == 3
        found = await scrape_once(
            server, lambda found: found.of("resnet50_requests_total", "method") == {"Classify": 5}
        )
    assert found.of("resnet50_cache_lookups_total", "variant", "outcome") == {
        (V2, "hit"): 3,
        (V2, "shared"): 1,
        (V2, "miss"): 1,
    }
    assert found.one("resnet50_cache_entries") == 1
    assert found.one("resnet50_cache_bytes") == server.snapshot().cache.bytes > 0
    assert found.one("resnet50_cache_evictions_total") == 0
    assert found.one("resnet50_images_total", variant=V2, outcome="answered") == 5
    assert found.of("resnet50_stage_duration_seconds_count", "stage") == {
        "total": 5,
        "decode": 1,
        "queue": 1,
        "compute": 1,
    }
    assert found.one("resnet50_batch_size_count", variant=V2) == 1


async def test_lookups_are_counted_from_the_start():
    async with serving(**CACHING, **ON) as server:
        found = await scrape_once(server, lambda _: True)
    for outcome in ("hit", "shared", "miss"):
        assert found.one("resnet50_cache_lookups_total", variant=V2, outcome=outcome) == 0
