"""`classify_many`, `embed_many` and `embed_batch` of both clients, in calls of several images."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import numpy as np
import pytest

from resnet50_client import (
    AsyncClient,
    CallObserver,
    Classification,
    Client,
    EmbeddingSpaceError,
    InvalidImageError,
    TransformMismatchError,
)
from resnet50_client.testing import FakeServer
from tests.support.bulk_calls import PNG, TINY, collect, labels, numbered
from tests.support.clients import Caller, items
from tests.support.scripted_batches import BatchServer, scripted_batches
from tests.support.serving import serving

# Results


async def test_results_are_those_of_the_images_in_order(kind):
    async with scripted_batches() as server, Caller(kind, server.address) as client:
        results = await collect(client, "classify_many", numbered(300))
    assert labels(results) == [str(number) for number in range(300)]
    assert sorted(server.images) == sorted(numbered(300))
    assert max(map(len, server.calls)) > 8


async def test_images_of_all_kinds_have_results(kind, tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(PNG)
    images = [path, PNG, str(path), TINY] * 30
    async with serving() as server, Caller(kind, server.addresses[0]) as client:
        results = await collect(client, "classify_many", images, top_k=2)
        vectors = await collect(client, "embed_many", images[:5], l2_normalize=True)
    assert [len(result) for result in results] == [2] * 120
    assert [vector.vector.shape for vector in vectors] == [(2048,)] * 5


@pytest.mark.parametrize("make", [list, iter, dict.fromkeys], ids=["list", "iterator", "keys"])
async def test_sources_of_every_kind_are_read_whole(kind, make):
    async with scripted_batches() as server, Caller(kind, server.address) as client:
        images = make(numbered(50))
        images = images.keys() if isinstance(images, dict) else images
        assert len(await collect(client, "classify_many", images)) == 50


async def test_async_iterable_is_a_source():
    async def images() -> AsyncIterator[bytes]:
        for image in numbered(50):
            await asyncio.sleep(0)
            yield image

    async with scripted_batches() as server, AsyncClient(server.address) as client:
        results = [one async for one in client.classify_many(images())]
    assert labels(results) == [str(number) for number in range(50)]


async def test_no_images_give_no_results(kind):
    async with serving() as server, Caller(kind, server.addresses[0]) as client:
        assert await collect(client, "classify_many", []) == []
        batch = await client.embed_batch([])
    assert batch.vectors.shape == (0, 2048)
    assert batch.space is None


async def test_first_error_is_raised_after_the_results_before_it(kind):
    images = [PNG, PNG, b"no image", PNG]
    async with serving() as server, Caller(kind, server.addresses[0]) as client:
        found = []
        with pytest.raises(InvalidImageError):
            async for result in items(client, "classify_many", images):
                found.append(result)
    assert len(found) == 2


async def test_errors_are_returned_in_their_places(kind, tmp_path):
    images = [PNG, b"no image", tmp_path / "none.png", PNG, 7, np.zeros((2, 2), np.float32), PNG]
    async with serving() as server, Caller(kind, server.addresses[0]) as client:
        results = await collect(client, "classify_many", images, return_exceptions=True)
    assert [type(result).__name__ for result in results] == [
        "Classification",
        "InvalidImageError",
        "FileNotFoundError",
        "Classification",
        "TypeError",
        "InvalidImageError",
        "Classification",
    ]
    assert results[1].field == "image.encoded"
    assert results[1].request_id


@pytest.mark.parametrize("count", [1, 64], ids=["alone", "in a batch"])
async def test_image_of_another_transform_fails_in_its_place(kind, count):
    with FakeServer() as server:
        server.script(TransformMismatchError("of another transform"))
        async with Caller(kind, server.address) as client:
            images = numbered(count)
            results = await collect(client, "classify_many", images, return_exceptions=True)
    # The image of the call that arrived first; calls are in flight together.
    (error,) = (one for one in results if isinstance(one, TransformMismatchError))
    assert results[int(error.source)] is error
    assert sum(isinstance(one, Classification) for one in results) == count - 1 == len(results) - 1


@pytest.mark.parametrize("form", [dict, dict.items, list], ids=["mapping", "items", "pairs"])
async def test_keyed_images_have_results_with_their_keys(kind, form):
    pairs = {f"key {number}": str(number).encode() for number in range(40)}
    images = list(pairs.items()) if form is list else form(pairs)
    async with scripted_batches() as server, Caller(kind, server.address) as client:
        results = await collect(client, "classify_many", images, keyed=True)
    assert [(key, one.top.label) for key, one in results] == [
        (f"key {number}", str(number)) for number in range(40)
    ]


async def test_keyed_errors_have_their_keys_too(kind):
    images = {"good": PNG, "bad": b"no image", 7: "none.png"}
    async with serving() as server, Caller(kind, server.addresses[0]) as client:
        results = await collect(
            client, "embed_many", images, keyed=True, return_exceptions=True, ordered=False
        )
    found = {key: type(one).__name__ for key, one in results}
    assert found == {"good": "Embedding", "bad": "InvalidImageError", 7: "FileNotFoundError"}


async def test_several_iterate_over_one_run(kind):
    found: list[Classification] = []

    async def take(results) -> None:
        if kind is AsyncClient:
            found.extend([one async for one in results])
        else:
            found.extend(await asyncio.to_thread(list, results))

    async with scripted_batches() as server, Caller(kind, server.address) as client:
        for _ in range(20):
            results = client.client.classify_many(numbered(40))
            await asyncio.gather(*(take(results) for _ in range(4)))
    assert sorted(labels(found), key=int) == sorted([str(n) for n in range(40)] * 20, key=int)


async def test_results_come_as_they_complete_if_not_ordered(kind):
    released = asyncio.Event()

    async def script(server: BatchServer, images: list[bytes], context):
        if b"0" in images:
            await released.wait()
        return [image.decode() for image in images]

    async with scripted_batches(script) as server, Caller(kind, server.address) as client:
        results = []
        async for one in items(client, "classify_many", numbered(8), ordered=False):
            results.append(one)
            if len(results) == 7:
                released.set()
    assert labels(results)[-1] == "0"
    assert sorted(labels(results)) == [str(number) for number in range(8)]


async def test_mapping_without_keyed_is_refused(kind):
    client = kind("127.0.0.1:1")
    with pytest.raises(TypeError, match=r"images: is a mapping.*pass keyed=True"):
        client.classify_many({"a": PNG})


async def test_item_that_is_no_pair_ends_a_keyed_run(kind):
    async with scripted_batches() as server, Caller(kind, server.address) as client:
        found = []
        with pytest.raises(TypeError, match=r"images: item 1 is bytes, must be a pair"):
            async for one in items(client, "classify_many", [("a", b"1"), b"2"], keyed=True):
                found.append(one)
    assert [key for key, _ in found] == ["a"]


# A matrix of embeddings


async def test_embedding_batch_has_a_row_for_each_image(kind, tmp_path):
    images = [PNG, b"no image", TINY, tmp_path / "none.png", PNG]
    async with serving() as server, Caller(kind, server.addresses[0]) as client:
        batch = await client.embed_batch(images, l2_normalize=True)
        alone = await client.embed(TINY, l2_normalize=True)
        lazily = await client.embed_batch(iter(images), l2_normalize=True)
    assert batch.vectors.shape == (5, 2048)
    assert batch.vectors.dtype == np.float32
    assert {index: type(error).__name__ for index, error in batch.errors.items()} == {
        1: "InvalidImageError",
        3: "FileNotFoundError",
    }
    assert np.isnan(batch.vectors[[1, 3]]).all()
    assert batch.succeeded.tolist() == [True, False, True, False, True]
    np.testing.assert_allclose(batch.vectors[2], alone.vector, atol=1e-6)
    np.testing.assert_array_equal(batch.vectors, lazily.vectors)
    assert (batch.space, batch.variant, batch.l2_normalized) == (alone.space, alone.variant, True)
    assert np.asarray(batch).shape == (5, 2048)


async def test_vectors_of_two_spaces_are_refused(kind):
    async def script(server: BatchServer, images: list[bytes], context):
        return ["old" if len(server.calls) < 3 else "new"] * len(images)

    async with scripted_batches(script) as server, Caller(kind, server.address) as client:
        with pytest.raises(EmbeddingSpaceError, match=r"variant was replaced.*embed all images"):
            await client.embed_batch(numbered(100))


# Calls


class Recorder(CallObserver):
    """Keeps the calls that ended."""

    def __init__(self) -> None:
        self.calls: list = []

    def call_started(self, call):
        call.metadata.append(("x-number", str(len(self.calls))))

    def call_ended(self, call):
        self.calls.append(call)


async def test_observers_see_each_call(kind):
    recorder = Recorder()
    async with (
        scripted_batches() as server,
        Caller(kind, server.address, observers=[recorder]) as client,
    ):
        await collect(client, "classify_many", numbered(64))
    assert {call.code for call in recorder.calls} == {"OK"}
    assert {call.method.rpartition("/")[2] for call in recorder.calls} == {
        "Classify",
        "ClassifyBatch",
    }
    assert len(recorder.calls) == len(server.calls)
    assert all("x-number" in metadata for metadata in server.metadata)
    sent = sorted(metadata["x-request-id"] for metadata in server.metadata)
    assert sorted(call.request_id for call in recorder.calls) == sent


class Failing(grpc.UnaryUnaryClientInterceptor):
    """An interceptor of the application with a bug."""

    def intercept_unary_unary(self, continuation, client_call_details, request):
        raise ZeroDivisionError("the interceptor is broken")


class AsyncFailing(grpc.aio.UnaryUnaryClientInterceptor):
    """The same for asyncio."""

    async def intercept_unary_unary(self, continuation, client_call_details, request):
        raise ZeroDivisionError("the interceptor is broken")


async def test_call_with_a_failing_interceptor_ends_for_observers(kind):
    recorder = Recorder()
    interceptors = [Failing() if kind is Client else AsyncFailing()]
    async with (
        scripted_batches() as server,
        Caller(kind, server.address, observers=[recorder], interceptors=interceptors) as client,
    ):
        with pytest.raises(ZeroDivisionError, match="the interceptor is broken"):
            await collect(client, "classify_many", [b"0"])
    assert [type(call.error) for call in recorder.calls] == [ZeroDivisionError]


async def test_calls_have_the_options_of_the_run(kind):
    async with scripted_batches() as server, Caller(kind, server.address) as client:
        await collect(
            client,
            "classify_many",
            numbered(40),
            priority="bulk",
            caller_key="user 1",
            metadata={"x-team": "vision"},
        )
    for metadata in server.metadata:
        assert metadata["x-priority"] == "bulk"
        assert metadata["x-caller-key"] == "user 1"
        assert metadata["x-team"] == "vision"
