"""`classify_many`, `embed_many` and `embed_batch` of both clients, in calls of several images."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import threading
from collections.abc import AsyncIterator, Iterator

import grpc
import numpy as np
import pytest

import resnet50_client
from resnet50_client import (
    AsyncClient,
    CallCancelledError,
    CallObserver,
    Classification,
    Client,
    DeadlineExceededError,
    EmbeddingSpaceError,
    InvalidImageError,
    PermissionDeniedError,
    RetryPolicy,
    TransformMismatchError,
    UnavailableError,
    VariantNotFoundError,
)
from resnet50_client._batches import READ_AHEAD
from resnet50_client._flow_control import START_WINDOW
from resnet50_client.testing import FakeServer
from tests.support.clients import Caller, items
from tests.support.pictures import encode, picture
from tests.support.scripted_batches import BatchServer, healthy, scripted_batches, status
from tests.support.serving import gate, server_processes, serving, until

PNG = encode(picture())
TINY = np.full((1, 1), 7, dtype=np.uint8)
# Decoders stop at the picture's end; the rest makes it an upload of some chunks.
LARGE = PNG + bytes(5 * 2**20)
QUICK = RetryPolicy(initial_backoff_s=0.01, max_backoff_s=0.05)
TIMED = ("--variants", "IMAGENET1K_V2", "--engine", "timed", "--timed-alpha-ms", "3")


async def collect(caller: Caller, name: str, images, **options) -> list:
    return [item async for item in items(caller, name, images, **options)]


def numbered(count: int) -> list[bytes]:
    return [str(number).encode() for number in range(count)]


def labels(results: list[Classification]) -> list[str]:
    return [result.top.label for result in results]


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


# Limits of servers


async def test_limit_of_images_per_call_is_found(kind):
    async with (
        serving(max_images_per_call=3) as server,
        Caller(kind, server.addresses[0]) as client,
    ):
        results = await collect(client, "classify_many", [TINY] * 200)
    assert [len(result) for result in results] == [5] * 200


async def test_limit_of_a_message_is_found(kind):
    long = PNG + bytes(200_000)
    async with (
        serving(max_message_bytes=100_000) as server,
        Caller(kind, server.addresses[0]) as client,
    ):
        images = [PNG + bytes(30_000)] * 60
        images[50] = long
        results = await collect(client, "classify_many", images, return_exceptions=True)
    error = results.pop(50)
    assert isinstance(error, InvalidImageError)
    assert "max_message_bytes) is 100000" in str(error)
    assert [len(result) for result in results] == [5] * 59


async def test_categories_of_a_call_are_limited(kind):
    async with serving() as server, Caller(kind, server.addresses[0]) as client:
        results = await collect(client, "classify_many", [TINY] * 300, top_k=1000)
    assert [len(result) for result in results] == [1000] * 300


async def test_server_without_batches_gets_single_calls(kind):
    async with (
        scripted_batches(batches=False) as server,
        Caller(kind, server.address) as client,
    ):
        results = await collect(client, "classify_many", numbered(100))
    assert labels(results) == [str(number) for number in range(100)]
    assert set(map(len, server.calls)) == {1}


async def test_large_images_are_uploaded_among_small_ones(kind):
    images = [PNG, LARGE, PNG, PNG, LARGE] * 4
    async with serving() as server, Caller(kind, server.addresses[0]) as client:
        results = await collect(client, "classify_many", images)
    assert [len(result) for result in results] == [5] * 20


async def test_overloaded_server_answers_all_images_in_the_end(kind):
    async with (
        serving(engine="timed", timed_alpha_ms=2, max_requests=2, max_batch_size=2) as server,
        Caller(kind, server.addresses[0], retry=QUICK, timeout_s=60) as client,
    ):
        several = [collect(client, "classify_many", [TINY] * 100) for _ in range(3)]
        for results in await asyncio.gather(*several):
            assert [len(result) for result in results] == [5] * 100


async def test_image_that_is_shed_is_sent_again_alone(kind):
    shed = {b"5", b"17"}

    async def script(server: BatchServer, images: list[bytes], context):
        found = []
        for image in images:
            again = server.images.count(image) > 1
            refused = image in shed and not again
            full = status(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full")
            found.append(full if refused else image.decode())
        return found

    async with (
        scripted_batches(script) as server,
        Caller(kind, server.address, retry=QUICK) as client,
    ):
        results = await collect(client, "classify_many", numbered(60))
    assert labels(results) == [str(number) for number in range(60)]
    assert sorted(server.images) == sorted([*numbered(60), *shed])


async def test_images_without_an_answer_in_time_fail_and_others_do_not(kind):
    async def script(server: BatchServer, images: list[bytes], context):
        if b"slow" in images:
            await asyncio.Event().wait()
        return [image.decode() for image in images]

    async with scripted_batches(script) as server, Caller(kind, server.address) as client:
        images = [b"1", b"slow", b"3"]
        results = await collect(
            client, "classify_many", images, timeout_s=1.0, return_exceptions=True
        )
    assert [type(one).__name__ for one in results] == [
        "Classification",
        "DeadlineExceededError",
        "Classification",
    ]
    assert isinstance(results[1], DeadlineExceededError)


# Broken connections


async def test_poison_image_fails_alone_and_no_other_is_lost(kind):
    async def script(server: BatchServer, images: list[bytes], context):
        if b"poison" in images:
            await server.cut()
        return [image.decode() for image in images]

    images = numbered(200)
    images[70] = b"poison"
    async with (
        scripted_batches(script) as server,
        Caller(kind, server.address, retry=QUICK, timeout_s=60) as client,
    ):
        results = await collect(client, "classify_many", images, return_exceptions=True)
    error = results.pop(70)
    assert isinstance(error, UnavailableError)
    assert "image 70: the connection broke each of 5 times" in str(error)
    expected = [str(number) for number in range(200) if number != 70]
    assert labels(results) == expected
    assert server.images.count(b"poison") == 5


async def test_broken_connection_costs_no_image(kind):
    async def script(server: BatchServer, images: list[bytes], context):
        if len(server.calls) in (5, 20):
            await server.cut()
        return [image.decode() for image in images]

    async with (
        scripted_batches(script) as server,
        Caller(kind, server.address, retry=QUICK, timeout_s=60) as client,
    ):
        results = await collect(client, "classify_many", numbered(500))
    assert labels(results) == [str(number) for number in range(500)]


async def test_killed_server_loses_no_image_and_repeats_none(kind):
    with server_processes() as start:
        processes = [start(*TIMED) for _ in range(2)]
        addresses = [one.wait_until_listening() for one in processes]
        async with Caller(kind, addresses, timeout_s=60) as client:
            keys = []
            images = ((number, TINY) for number in range(3000))
            async for key, result in items(client, "classify_many", images, keyed=True):
                keys.append(key)
                assert len(result) == 5
                if len(keys) == 500:
                    processes[0].process.kill()
    assert keys == list(range(3000))


async def test_restarted_server_loses_no_image(kind):
    with server_processes() as start:
        first = start(*TIMED)
        address = first.wait_until_listening()
        async with Caller(kind, address, timeout_s=60) as client:
            count = 0
            async for result in items(client, "embed_many", itertools.repeat(TINY, 1000)):
                count += 1
                assert result.vector.shape == (2048,)
                if count == 200:
                    first.process.kill()
                    first.process.wait()
                    start("--listen", address, *TIMED)
    assert count == 1000


@pytest.mark.parametrize("exceptions", [False, True])
async def test_run_without_a_server_fails_in_time(kind, exceptions):
    async with Caller(kind, "127.0.0.1:1", timeout_s=0.5, retry=QUICK) as client:
        says = r"127\.0\.0\.1:1.*images that were read had no result"
        with pytest.raises(UnavailableError, match=says):
            await collect(client, "classify_many", [PNG] * 9, return_exceptions=exceptions)


async def test_wrong_variant_ends_the_run(kind):
    async with serving() as server, Caller(kind, server.addresses[0]) as client:
        with pytest.raises(VariantNotFoundError):
            await collect(client, "embed_many", [PNG] * 9, variant="cats", return_exceptions=True)


async def test_refused_token_ends_the_run(kind):
    async def script(server: BatchServer, images: list[bytes], context):
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, "no")

    async with scripted_batches(script) as server, Caller(kind, server.address) as client:
        with pytest.raises(PermissionDeniedError):
            await collect(client, "classify_many", numbered(9), return_exceptions=True)


# Sources


class Frames:
    """Images without end; tells whether they were closed."""

    def __init__(self) -> None:
        self.closed = threading.Event()
        self.resume = threading.Event()
        self.read = 0
        self.hold_at: int | None = None

    def __iter__(self) -> Iterator[bytes]:
        try:
            while True:
                if self.read == self.hold_at:
                    self.resume.wait(60)
                self.read += 1
                yield str(self.read).encode()
        finally:
            self.closed.set()


async def test_slow_source_gets_its_results_as_it_goes(kind):
    answered = threading.Semaphore(0)

    def images() -> Iterator[bytes]:
        for number in range(5):
            yield str(number).encode()
            assert answered.acquire(timeout=60)  # no next one before this has its result

    async with scripted_batches() as server, Caller(kind, server.address) as client:
        results = []
        async for result in items(client, "classify_many", images()):
            results.append(result)
            answered.release()
    assert labels(results) == [str(number) for number in range(5)]


async def test_endless_source_is_read_ahead_by_a_bounded_number(kind):
    frames = Frames()
    async with scripted_batches() as server, Caller(kind, server.address) as client:
        ahead, taken = [], 0
        results = items(client, "classify_many", frames, max_in_flight=4)
        async with contextlib.aclosing(results):
            async for _ in results:
                taken += 1
                ahead.append(frames.read - taken)
                if taken == 200:
                    break
        assert await asyncio.to_thread(frames.closed.wait, 60)
    assert max(map(len, server.calls)) == 1
    # The results of one window may wait to be taken, in a second one there are images read ahead.
    assert max(ahead) < 150


async def test_images_that_are_gone_with_the_next_one_are_answered(kind):
    def images() -> Iterator[memoryview]:
        for image in numbered(40):
            with memoryview(image) as view:
                yield view  # released when the next one is taken

    async with scripted_batches() as server, Caller(kind, server.address) as client:
        results = await collect(client, "classify_many", images())
    assert labels(results) == [str(number) for number in range(40)]


async def test_images_are_read_ahead_while_others_are_in_flight(kind):
    answered = asyncio.Event()

    async def script(server: BatchServer, images: list[bytes], context):
        await answered.wait()
        return await healthy(server, images, context)

    frames = Frames()
    async with scripted_batches(script) as server, Caller(kind, server.address) as client:
        results = items(client, "classify_many", frames)
        first = asyncio.ensure_future(anext(results))
        await until(lambda: frames.read == READ_AHEAD + START_WINDOW)
        answered.set()
        await first
        await results.aclose()


async def test_failing_source_is_raised_after_its_results(kind):
    def images() -> Iterator[bytes]:
        yield from numbered(3)
        raise ZeroDivisionError("the disk is gone")

    async with scripted_batches() as server, Caller(kind, server.address) as client:
        found = []
        with pytest.raises(ZeroDivisionError, match="the disk is gone"):
            async for result in items(client, "classify_many", images()):
                found.append(result)
    assert labels(found) == ["0", "1", "2"]


async def cancelled_elsewhere() -> None:
    """Await a future that something else has cancelled, not the task that waits."""
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


async def test_source_that_awaits_a_cancelled_future_ends_its_run():
    async def images() -> AsyncIterator[bytes]:
        yield b"0"
        await cancelled_elsewhere()

    async with scripted_batches() as server, AsyncClient(server.address) as client:
        results = client.classify_many(images())
        assert (await anext(results)).top.label == "0"
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(anext(results), 60)


async def test_token_that_awaits_a_cancelled_future_ends_its_run():
    async with (
        scripted_batches() as server,
        AsyncClient(server.address, token=cancelled_elsewhere) as client,
    ):
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(anext(client.classify_many([b"0"])), 60)


async def test_dropped_run_closes_a_source_that_is_slow_to_cancel():
    cleaned, closed = asyncio.Event(), asyncio.Event()

    async def clean_up() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            for _ in range(20):
                await asyncio.sleep(0)
            cleaned.set()

    async def images() -> AsyncIterator[bytes]:
        try:
            yield b"0"
            await clean_up()
        finally:
            await asyncio.sleep(0)
            closed.set()

    failures: list[dict] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    async with scripted_batches() as server, AsyncClient(server.address) as client:
        results = client.classify_many(images())
        await anext(results)
        del results
        gc.collect()
        await asyncio.wait_for(closed.wait(), 60)
        assert cleaned.is_set()
        gc.collect()
        await asyncio.sleep(0)
    assert failures == []


@pytest.mark.parametrize("end", ["closed", "error", "client", "dropped"])
async def test_source_is_closed_at_any_end(kind, end):
    async def script(server: BatchServer, images: list[bytes], context):
        if end == "error":
            return [status(grpc.StatusCode.INTERNAL)] * len(images)
        return await healthy(server, images, context)

    frames = Frames()
    async with scripted_batches(script) as server:
        client = Caller(kind, server.address)
        results = client.client.classify_many(frames)

        async def first() -> object:
            if kind is Client:
                return await asyncio.to_thread(next, results)
            return await anext(results)

        if end == "error":
            with pytest.raises(resnet50_client.ServerError):
                await first()
        else:
            await first()
        if end == "closed" and kind is Client:
            await asyncio.to_thread(results.close)
        elif end == "closed":
            await results.aclose()
        elif end == "client":
            await client.close()
            with pytest.raises(CallCancelledError):
                while True:
                    await first()
        elif end == "dropped":
            del results, first
            gc.collect()
        assert await asyncio.to_thread(frames.closed.wait, 60)
        await client.close()


# The end of a run


async def test_closing_the_client_ends_a_run_that_waits_for_its_source(kind):
    frames = Frames()
    frames.hold_at = 1
    async with scripted_batches() as server:
        client = Caller(kind, server.address)
        results = items(client, "classify_many", frames)
        await anext(results)
        waiting = asyncio.ensure_future(anext(results))
        await asyncio.sleep(0)
        await client.close()
        with pytest.raises(CallCancelledError, match="the client was closed"):
            await waiting
        frames.resume.set()


async def test_run_first_read_after_close_makes_no_call(kind):
    async with scripted_batches() as server:
        client = Caller(kind, server.address)
        results = client.client.classify_many(numbered(3))
        await client.close()
        with pytest.raises(CallCancelledError):
            await (anext(results) if kind is AsyncClient else asyncio.to_thread(next, results))
        with pytest.raises(RuntimeError, match="is closed; create a new one"):
            client.client.classify_many(numbered(3))
    assert server.calls == []


async def test_another_thread_can_close_the_results():
    async with serving() as server:
        with Client(server.addresses[0]) as client:
            opened = gate(server)
            results = client.classify_many(itertools.repeat(TINY))
            waiting = asyncio.ensure_future(asyncio.to_thread(next, results))
            await until(lambda: server.snapshot().requests > 0)
            await asyncio.to_thread(results.close)
            with pytest.raises(CallCancelledError, match="closed by another thread"):
                await waiting
            await until(lambda: server.snapshot().requests == 0)
            opened.set()
            assert next(results, None) is None


async def test_cancelled_task_cancels_its_calls():
    async with serving() as server, AsyncClient(server.addresses[0]) as client:
        opened = gate(server)
        run = asyncio.ensure_future(anext(client.classify_many(itertools.repeat(TINY))))
        await until(lambda: server.snapshot().requests > 0)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        await until(lambda: server.snapshot().requests == 0)
        opened.set()


def test_results_that_were_begun_before_a_fork_say_so(monkeypatch):
    with Client("127.0.0.1:1", timeout_s=60) as client:
        results = client.classify_many(Frames())
        results._run._process = os.getpid() + 1
        with pytest.raises(RuntimeError, match="begun before a fork"):
            next(results)


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


@pytest.mark.parametrize("connections", [1, 3])
async def test_calls_are_spread_over_the_connections(kind, connections):
    async with (
        scripted_batches() as server,
        Caller(kind, server.address, connections=connections) as client,
    ):
        await collect(client, "classify_many", numbered(100))
        assert server.line.connections == connections


@pytest.mark.parametrize("connections", [0, 1.5, True])
def test_wrong_number_of_connections_is_refused(kind, connections):
    with pytest.raises(ValueError, match=r"connections: is .*must be 1 or more"):
        kind("127.0.0.1:1", connections=connections)
