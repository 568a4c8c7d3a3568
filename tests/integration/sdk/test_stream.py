from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import time
from contextlib import aclosing

import numpy as np
import pytest
from PIL import Image

import resnet50_client
from resnet50_client import AsyncClient, Client, FrameAnswer
from resnet50_client._unary import UPLOAD_ABOVE_BYTES
from tests.support.clients import Caller, items
from tests.support.pictures import encode, photo_like
from tests.support.serving import server_processes, serving, until, watched

PNG = encode(photo_like(24, 24))
TINY = np.zeros((1, 1), dtype=np.uint8)


async def collect(caller: Caller, name: str, *arguments, **options) -> list:
    return [item async for item in items(caller, name, *arguments, **options)]


async def test_wrong_options_raise_at_the_call_or_the_first_answer(kind):
    async with serving() as server, Caller(kind, server.addresses[0]) as client:
        for name, options, error in (
            ("classify_stream", {"delivery": "fast"}, resnet50_client.InvalidRequestError),
            ("classify_stream", {"window": 0}, resnet50_client.InvalidRequestError),
            ("classify_stream", {"top_k": 1001}, resnet50_client.InvalidRequestError),
            ("embed_stream", {"dtype": "int8"}, resnet50_client.InvalidRequestError),
            ("embed_many", {"variant": "cats"}, resnet50_client.VariantNotFoundError),
        ):
            with pytest.raises(error):
                await collect(client, name, [PNG], **options)


async def test_source_is_read_lazily_and_never_past_the_window(kind):
    async with (
        serving(engine="timed", timed_alpha_ms=5, max_batch_size=1) as server,
        Caller(kind, server.addresses[0]) as client,
    ):
        read, answered, ahead = 0, 0, []

        def endless():
            nonlocal read
            while True:
                read += 1
                yield TINY

        async with aclosing(items(client, "classify_stream", endless(), window=4)) as results:
            async for _ in results:
                answered += 1
                ahead.append(read - answered)
                if answered == 40:
                    break
    assert max(ahead) <= 4 + 1


async def test_async_iterables_are_frames_too():
    async def frames():
        for _ in range(5):
            await asyncio.sleep(0)
            yield PNG

    async with serving() as server, AsyncClient(server.addresses[0]) as client:
        answers = [answer async for answer in client.classify_stream(frames())]
    assert [answer.frame_id for answer in answers] == list(range(5))


async def test_source_error_is_raised_after_earlier_answers(kind):
    def failing():
        yield PNG
        yield PNG
        raise ZeroDivisionError("the camera fell off")

    async with serving() as server, Caller(kind, server.addresses[0]) as client:
        answers = []
        with pytest.raises(ZeroDivisionError, match="camera"):
            async for answer in items(client, "classify_stream", failing()):
                answers.append(answer)
    assert [answer.frame_id for answer in answers] == [0, 1]


async def test_latest_answers_or_drops_every_frame(kind):
    async with (
        serving(engine="timed", timed_alpha_ms=100) as server,
        Caller(kind, server.addresses[0]) as client,
    ):

        def camera():
            for _ in range(60):
                time.sleep(0.005)
                yield TINY

        answers = await collect(client, "classify_stream", camera(), delivery="latest")
    assert sorted(answer.frame_id for answer in answers) == list(range(60))
    dropped = [answer for answer in answers if answer.dropped]
    computed = [answer for answer in answers if answer.result is not None]
    assert len(dropped) + len(computed) == 60
    assert len(dropped) > len(computed) > 0
    assert all(answer.replaced_by > answer.frame_id for answer in dropped)
    assert answers[-1].frame_id == 59


async def test_closing_a_half_read_stream_cancels_it(kind):
    async with (
        serving(engine="timed", timed_alpha_ms=20) as server,
        Caller(kind, server.addresses[0]) as client,
    ):
        await client.classify(PNG)
        threads = {thread.name for thread in threading.enumerate()}
        tasks = len(asyncio.all_tasks())

        def endless():
            while True:
                yield TINY

        async with aclosing(items(client, "classify_stream", endless())) as answers:
            async for _ in answers:
                break
        await until(lambda: server.snapshot().streams == server.snapshot().requests == 0)
        await until(lambda: len(asyncio.all_tasks()) <= tasks)

        def left() -> set[str]:
            # asyncio's own pool, which this test's to_thread fills, is not ours
            return {
                thread.name
                for thread in threading.enumerate()
                if not thread.name.startswith(("asyncio_", "decode"))
            } - threads

        await until(lambda: not left())


async def test_closing_the_client_ends_its_streams_with_our_error(kind):
    async with serving() as server:
        client = Caller(kind, server.addresses[0])

        def endless():
            while True:
                yield TINY

        with pytest.raises(resnet50_client.CallCancelledError):
            async for _ in items(client, "classify_stream", endless()):
                await client.close()


def sending() -> list[asyncio.Task]:
    """Return grpc.aio's tasks that send what a stream's iterator gives."""
    return [one for one in asyncio.all_tasks() if "_consume_request_iterator" in repr(one)]


@pytest.mark.parametrize("variant", ["unknown", None])
async def test_stream_that_ends_early_leaves_no_send_task(variant):
    # grpc.aio does not end the task that sends when a server ends the call, here with NOT_FOUND.
    async with serving() as server, AsyncClient(server.addresses[0]) as client:
        stream = client.classify_stream([PNG] * 100, variant=variant, window=1)
        with contextlib.suppress(resnet50_client.VariantNotFoundError):
            await anext(stream)
            assert sending()  # or else these are called by another name
        await stream.aclose()
        await asyncio.wait_for(until(lambda: not sending()), 30)


async def test_failed_call_is_raised_as_ours(kind):
    async with Caller(kind, "127.0.0.1:1") as client:
        with pytest.raises(resnet50_client.UnavailableError, match=r"127\.0\.0\.1:1"):
            await collect(client, "classify_stream", [PNG], resume_s=0)


async def test_server_killed_and_restarted_costs_no_frame(kind):
    """SIGKILL in the middle of a stream, twice: each frame is answered exactly once, in order."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    arguments = ("--variants", "IMAGENET1K_V2", "--engine", "timed", "--timed-alpha-ms", "3")
    with server_processes() as start:
        process = start("--listen", address, *arguments)
        process.wait_until_listening()

        def frames():
            for number in range(600):
                if number in (200, 400):
                    restart.set()
                yield np.full((1, 1), number % 256, dtype=np.uint8)

        restart, restarted = threading.Event(), 0
        async with Caller(kind, address) as client:
            answers = []
            async for answer in items(client, "classify_stream", frames(), resume_s=60):
                answers.append(answer)
                if restart.is_set():
                    restart.clear()
                    restarted += 1
                    process.process.kill()
                    process.process.wait()
                    process = start("--listen", address, *arguments)
    assert restarted == 2
    assert [answer.frame_id for answer in answers] == list(range(600))
    assert all(answer.result is not None for answer in answers)


async def test_draining_server_hands_its_stream_to_the_next_one(kind):
    async with (
        serving(engine="timed", timed_alpha_ms=5) as first,
        serving(engine="timed", timed_alpha_ms=5) as second,
        Caller(kind, [first.addresses[0], second.addresses[0]]) as client,
    ):
        answers, stopping = [], None
        async for answer in items(client, "classify_stream", [TINY] * 300):
            answers.append(answer)
            if len(answers) == 50:
                used = first if first.snapshot().streams else second
                stopping = asyncio.create_task(used.stop())
        await stopping
    assert [answer.frame_id for answer in answers] == list(range(300))


async def test_large_file_travels_in_chunks_by_itself(kind):
    large = PNG + os.urandom(UPLOAD_ABOVE_BYTES)  # decoders stop at the picture's end
    settings = {"max_message_bytes": 5 * 2**20, "max_image_bytes": 4 * 2**20 + 1024}
    async with serving(**settings) as server, Caller(kind, server.addresses[0]) as client:
        calls = watched(server)
        assert len(await client.classify(large)) == 5
        assert (await client.embed(large)).vector.shape == (2048,)
        assert [call.method for call in calls] == ["ClassifyUpload", "EmbedUpload"]
        assert len(await client.classify(PNG)) == 5
        assert [call.method for call in calls] == ["ClassifyUpload", "EmbedUpload", "Classify"]
        with pytest.raises(resnet50_client.InvalidImageError, match="max_image_bytes"):
            await client.classify(large + bytes(8 * 2**20))


async def test_oversized_frame_fails_in_its_place(kind):
    long = PNG + bytes(200_000)
    async with (
        serving(max_message_bytes=100_000) as server,
        Caller(kind, server.addresses[0]) as client,
    ):
        answers = await collect(client, "classify_stream", [PNG, long, PNG, long, PNG], window=3)
        latest = [one async for one in items(client, "classify_stream", [long], delivery="latest")]
    for number, result in enumerate(one.error or one.result for one in answers):
        if number in (1, 3):
            assert isinstance(result, resnet50_client.InvalidImageError)
            assert "max_message_bytes) is 100000" in str(result)
            assert result.max_message_bytes == 100_000
        else:
            assert result.top.label
    assert len(answers) == 5
    assert isinstance(latest[0].error, resnet50_client.InvalidImageError)


async def test_twenty_megabyte_png_is_classified(kind):
    noise = np.random.default_rng(0).integers(0, 256, (2600, 2600, 3), dtype=np.uint8)
    large = encode(Image.fromarray(noise), compress_level=1)
    assert len(large) > 20_000_000
    async with serving() as server, Caller(kind, server.addresses[0]) as client:
        result = await client.classify(large)
    assert len(result) == 5


def test_frame_answers_say_what_became_of_the_frame():
    assert repr(FrameAnswer(3, replaced_by=5)) == "FrameAnswer(3: replaced by 5)"
    assert "no such file" in repr(FrameAnswer(3, error=FileNotFoundError("no such file")))


def test_blocking_stream_that_is_never_read_starts_nothing():
    before = threading.active_count()
    with Client("127.0.0.1:1") as client:
        stream = client.classify_stream([PNG])
        assert threading.active_count() <= before + 1
        stream.close()
