"""Bulk calls of both clients while servers break, restart, refuse and share the work."""

from __future__ import annotations

import asyncio
import itertools

import grpc
import pytest

from resnet50_client import (
    DeadlineExceededError,
    InvalidImageError,
    PermissionDeniedError,
    UnavailableError,
    VariantNotFoundError,
)
from tests.support.bulk_calls import LARGE, PNG, QUICK, TIMED, TINY, collect, labels, numbered
from tests.support.clients import Caller, items
from tests.support.scripted_batches import BatchServer, scripted_batches, status
from tests.support.serving import server_processes, serving


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
        several = [collect(client, "classify_many", [TINY] * 40) for _ in range(3)]
        for results in await asyncio.gather(*several):
            assert [len(result) for result in results] == [5] * 40


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
            client, "classify_many", images, timeout_s=5.0, return_exceptions=True
        )
    assert [type(one).__name__ for one in results] == [
        "Classification",
        "DeadlineExceededError",
        "Classification",
    ]
    assert isinstance(results[1], DeadlineExceededError)


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
