"""ClassifyBatch and EmbedBatch: several images in one message."""

from __future__ import annotations

import asyncio

import grpc
import numpy as np
import pytest

from resnet50.v1 import image_pb2, inference_pb2, inference_pb2_grpc, result_pb2
from resnet50_server.api.image_batch import IMAGES_PER_TURN
from resnet50_server.batching.request_errors import fail_pending
from resnet50_server.errors import ShuttingDown
from tests.support.pictures import encode, picture
from tests.support.scrape import ON, scrape
from tests.support.serving import (
    DECODING,
    computed,
    connected,
    engines_of,
    gate,
    queues_of,
    serving,
    until,
)

PNG = encode(picture())
OTHER = encode(picture(40, 30))


def batch(*images: bytes, kind: str = "Classify", **options):
    request = getattr(inference_pb2, f"{kind}BatchRequest")
    return request(
        options=getattr(inference_pb2, f"{kind}Options")(**options),
        images=[image_pb2.Image(encoded=one) for one in images],
    )


def stub_of(channel) -> inference_pb2_grpc.InferenceServiceStub:
    return inference_pb2_grpc.InferenceServiceStub(channel)


def outcomes(reply) -> list[str]:
    return [one.WhichOneof("outcome") for one in reply.results]


async def test_results_are_those_of_single_calls_in_order():
    pictures = [encode(picture(40 + number, 30)) for number in range(20)]
    async with serving(max_batch_size=4) as server, connected(server) as channel:
        stub = stub_of(channel)
        reply = await stub.ClassifyBatch(batch(*pictures, top_k=3, include_embedding=True))
        singles = [
            await stub.Classify(
                inference_pb2.ClassifyRequest(
                    image=image_pb2.Image(encoded=one),
                    options=inference_pb2.ClassifyOptions(top_k=3, include_embedding=True),
                )
            )
            for one in pictures
        ]
    assert [one.classification for one in reply.results] == [one.classification for one in singles]
    assert {one.variant.digest for one in singles} == {reply.variant.digest}
    for one in reply.results:
        timing = one.timing
        assert timing.total_us >= timing.decode_us + timing.queue_us + timing.compute_us


async def test_embeddings_have_the_options_of_the_call():
    async with serving() as server, connected(server) as channel:
        half = result_pb2.EMBEDDING_TYPE_FLOAT16
        request = batch(PNG, OTHER, kind="Embed", l2_normalize=True, type=half)
        reply = await stub_of(channel).EmbedBatch(request)
    for one in reply.results:
        vector = np.frombuffer(one.embedding.values, "<f2").astype(np.float64)
        assert vector.shape == (2048,)
        assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-3)
        assert one.embedding.l2_normalized


async def test_bad_image_of_a_batch_fails_alone():
    async with (
        serving(max_image_bytes=60_000, **DECODING) as server,
        connected(server) as channel,
    ):
        batches = computed(server)
        images = [PNG, b"not an image", OTHER, b"", bytes(60_001), PNG[:200], PNG]
        reply = await stub_of(channel).ClassifyBatch(batch(*images))
    error, result = "error", "classification"
    assert outcomes(reply) == [result, error, result, error, error, error, result]
    assert sum(map(len, batches)) == 3
    refused = reply.results[4].error
    assert refused.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert "max_image_bytes" in refused.message
    assert [one.TypeName() for one in refused.details] == [
        "google.rpc.BadRequest",
        "google.rpc.RequestInfo",
    ]


@pytest.mark.parametrize(
    ("request_", "field", "text"),
    [
        (batch(), "images", "has 0 images, a call may have 1 to 4 (max_images_per_call)"),
        (batch(*[PNG] * 5), "images", "has 5 images, a call may have 1 to 4"),
        (batch(PNG, top_k=1001), "options.top_k", "1000"),
    ],
    ids=["none", "too many", "top_k"],
)
async def test_bad_batch_is_refused_as_a_whole(request_, field, text):
    async with serving(max_images_per_call=4) as server, connected(server) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            await stub_of(channel).ClassifyBatch(request_)
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert text in refused.value.details()
        assert refused.value.details().startswith(field)


async def test_batch_with_too_many_categories_is_refused():
    async with serving() as server, connected(server) as channel:
        most = await stub_of(channel).ClassifyBatch(batch(*[OTHER] * 20, top_k=1000))
        assert sum(len(one.classification.categories) for one in most.results) == 20_000
        with pytest.raises(grpc.RpcError) as refused:
            await stub_of(channel).ClassifyBatch(batch(*[OTHER] * 21, top_k=1000))
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "21000 categories" in refused.value.details()
    assert "at most 20000" in refused.value.details()


async def test_images_of_a_batch_share_the_engines_batches():
    async with serving(max_batch_size=16) as server, connected(server) as channel:
        batches, (queue,), opened = computed(server), queues_of(server), gate(server)
        call = stub_of(channel).ClassifyBatch(batch(*[OTHER] * 64))
        await until(lambda: len(queue.waiting) >= 48)
        opened.set()
        await call
    sizes = list(map(len, batches))
    assert sum(sizes) == 64
    assert sizes.count(16) >= 3


async def test_batch_proceeds_where_it_gets_no_further_permit():
    async with serving(max_requests=1) as server, connected(server) as channel:
        reply = await stub_of(channel).ClassifyBatch(batch(*[OTHER] * 8))
        assert outcomes(reply) == ["classification"] * 8
        assert server.snapshot().requests == 0


async def test_batch_is_refused_on_a_full_server():
    async with serving(max_requests=1) as server, connected(server) as channel:
        stub, opened = stub_of(channel), gate(server)
        first = stub.ClassifyBatch(batch(OTHER, OTHER))
        await until(lambda: server.snapshot().requests == 1)
        try:
            with pytest.raises(grpc.RpcError) as refused:
                await stub.ClassifyBatch(batch(OTHER))
            assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "max_requests" in refused.value.details()
        finally:
            opened.set()
        assert outcomes(await first) == ["classification"] * 2


async def test_bytes_of_a_batch_are_admitted_with_its_results():
    async with (
        serving(max_request_bytes_per_caller=100_000) as server,
        connected(server) as channel,
    ):
        stub = stub_of(channel)
        assert len((await stub.ClassifyBatch(batch(*[OTHER] * 32))).results) == 32
        other = stub.ClassifyBatch(batch(OTHER))
        with pytest.raises(grpc.RpcError) as refused:  # 32 vectors take 256 KiB
            gated = gate(server)
            running = stub.EmbedBatch(batch(OTHER, kind="Embed"))
            await until(lambda: server.snapshot().requests >= 1)
            try:
                await stub.EmbedBatch(batch(*[OTHER] * 32, kind="Embed"))
            finally:
                gated.set()
                await running
                await other
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "max_request_bytes_per_caller" in refused.value.details()


async def test_cancelled_batch_frees_its_images():
    async with serving(max_batch_size=1) as server, connected(server) as channel:
        stub, opened = stub_of(channel), gate(server)
        call = stub.ClassifyBatch(batch(*[OTHER] * 16))
        await until(lambda: server.snapshot().requests == 16)
        call.cancel()
        try:
            await until(lambda: server.snapshot().requests == 0)
        finally:
            opened.set()


async def test_drain_completes_a_batch_that_was_admitted():
    async with serving(max_batch_size=2, max_requests=4) as server, connected(server) as channel:
        (engine,) = engines_of(server)
        permits, run = [], engine.run
        engine.run = lambda *batch: permits.append(server.parts.admission.requests) or run(*batch)
        stub, opened = stub_of(channel), gate(server)
        call = stub.ClassifyBatch(batch(*[OTHER] * 12))
        await until(lambda: server.snapshot().requests == 4)
        stopping = asyncio.ensure_future(server.stop())
        await until(lambda: server.snapshot().draining)
        opened.set()
        assert outcomes(await call) == ["classification"] * 12
        await stopping
    assert permits.count(1) <= 2  # the call keeps those that it has, until no image is left


async def test_batch_that_a_server_cannot_complete_fails_whole():
    """So that the client sends it to another server."""
    async with serving(max_batch_size=1) as server, connected(server) as channel:
        (queue,), opened = queues_of(server), gate(server)
        call = stub_of(channel).ClassifyBatch(batch(PNG, OTHER, PNG))
        await until(lambda: len(queue.waiting) == 2)
        fail_pending([entry.item for entry in queue.waiting], ShuttingDown)
        with pytest.raises(grpc.RpcError) as refused:
            await call
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        opened.set()
        await until(lambda: not server.snapshot().requests)


async def test_deadline_of_a_batch_ends_all_its_images():
    async with serving(max_batch_size=1) as server, connected(server) as channel:
        stub, opened = stub_of(channel), gate(server)
        try:
            with pytest.raises(grpc.RpcError) as late:
                await stub.ClassifyBatch(batch(*[OTHER] * 4), timeout=0.3)
            assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            await until(lambda: server.snapshot().requests == 0)
        finally:
            opened.set()


async def test_repeated_image_of_a_batch_is_computed_once():
    async with (
        serving(response_cache_bytes=2**20) as server,
        connected(server) as channel,
    ):
        batches = computed(server)
        reply = await stub_of(channel).ClassifyBatch(batch(*[OTHER] * 8))
    assert list(map(len, batches)) == [1]
    assert len({one.classification.SerializeToString() for one in reply.results}) == 1


async def test_failed_images_of_a_batch_are_counted():
    async with serving(**ON, **DECODING) as server, connected(server) as channel:
        await stub_of(channel).ClassifyBatch(batch(PNG, b"no image", PNG))
        counted = await scrape(server)
    assert counted.of("resnet50_image_errors_total", "code") == {"INVALID_ARGUMENT": 1}
    assert counted.of("resnet50_images_total", "outcome") == {"answered": 2, "refused": 1}
    assert counted.of("resnet50_requests_total", "method", "code") == {("ClassifyBatch", "OK"): 1}


@pytest.mark.parametrize("permits", [1, 1024])
async def test_refused_images_of_a_batch_let_other_calls_run(permits):
    refused, seen = [], []

    async def watch() -> None:
        while True:
            seen.append(len(refused))
            await asyncio.sleep(0)

    async with (
        serving(max_images_per_call=4096, max_requests=permits) as server,
        connected(server) as channel,
    ):
        events = server.parts.events
        count = events.image_refused
        events.image_refused = lambda *event: refused.append(event) or count(*event)
        watching = asyncio.ensure_future(watch())
        reply = await stub_of(channel).ClassifyBatch(batch(OTHER, *[b""] * 4000, OTHER, top_k=1))
        watching.cancel()
        assert server.snapshot().requests == 0
    assert outcomes(reply) == ["classification", *["error"] * 4000, "classification"]
    assert max(np.diff(seen)) <= 2 * IMAGES_PER_TURN


async def test_message_of_empty_images_is_refused_unparsed():
    async with serving(**DECODING) as server, connected(server) as channel:
        call = channel.unary_unary("/resnet50.v1.InferenceService/ClassifyBatch")
        with pytest.raises(grpc.aio.AioRpcError, match="more than 16384 fields") as refused:
            await call(b"\x12\x00" * 2**20)
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert len((await stub_of(channel).ClassifyBatch(batch(PNG, OTHER))).results) == 2
