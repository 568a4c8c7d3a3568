"""Streams of both clients against servers that lose, swap, repeat or withhold answers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from resnet50.v1 import result_pb2
from resnet50_client import (
    AsyncClient,
    CallCancelledError,
    Classification,
    DeadlineExceededError,
    OverloadedError,
    RetryPolicy,
    ServerError,
    UnavailableError,
)
from resnet50_client.testing import FakeServer
from tests.support.clients import Caller, items, outcomes
from tests.support.frame_sources import AsyncFrames, Watching
from tests.support.pictures import encode, photo_like
from tests.support.scripted_stream import (
    Stream,
    answer,
    at_first,
    dropped,
    healthy,
    mute,
    scripted_stream,
)
from tests.support.serving import until

PNG = encode(photo_like(8, 8))
QUICK = RetryPolicy(initial_backoff_s=0.01, max_backoff_s=0.01)
NEVER = RetryPolicy(initial_backoff_s=3600.0, max_backoff_s=3600.0)


async def collect(caller: Caller, images, **options) -> list:
    return [item async for item in outcomes(caller, images, **options)]


def labels(results: list) -> list[str]:
    return [result.top.label for result in results]


def expected(count: int) -> list[str]:
    return [f"frame {number}" for number in range(count)]


# A stream that ends too early


def ending(after: int):
    """Return a script that ends the stream with OK after so many answers."""

    async def script(stream: Stream):
        if after == 0:
            return
        async for frame in stream.frames():
            yield answer(frame.frame_id)
            if len(stream.received) == after:
                return

    return script


async def swallowing(stream: Stream):
    """Take every frame, answer none, and end with OK."""
    async for _ in stream.frames():
        pass
    return
    yield


@pytest.mark.parametrize("script", [ending(0), ending(1), ending(3), swallowing])
async def test_stream_that_a_server_ends_early_is_resumed(kind, script):
    async with (
        scripted_stream(at_first(script)) as server,
        Caller(kind, server.address, retry=QUICK) as client,
    ):
        results = await collect(client, [PNG] * 10)
    assert labels(results) == expected(10)
    assert len(server.streams) == 2


async def test_stream_that_always_ends_early_reports_missing_frames(kind):
    async def script(stream: Stream):
        if stream.number == 1:
            async for reply in ending(2)(stream):
                yield reply

    async with (
        scripted_stream(script) as server,
        Caller(kind, server.address, retry=QUICK) as client,
    ):
        given = []
        with pytest.raises(UnavailableError, match=r"too early, with OK; 8 frames had no answer"):
            async for result in outcomes(client, [PNG] * 10, resume_s=0.2):
                given.append(result)
    assert labels(given) == expected(2)
    assert len(server.streams) > 2


async def test_stream_that_ends_after_each_answer_goes_on(kind):
    """For longer than `resume_s`, which begins again with each answer."""
    async with (
        scripted_stream(ending(1)) as server,
        Caller(kind, server.address, retry=RetryPolicy(initial_backoff_s=0.05)) as client,
    ):
        results = await collect(client, [PNG] * 8, resume_s=0.2)
    assert labels(results) == expected(8)
    assert len(server.streams) >= 8


async def test_stream_that_ends_before_its_source_is_resumed(kind):
    """Every frame that came is answered, and still there are more to come."""
    async with (
        scripted_stream(at_first(ending(1))) as server,
        Caller(kind, server.address, retry=QUICK) as client,
    ):
        ended = threading.Event()

        def frames():
            yield PNG
            ended.wait(60)
            yield PNG

        given = []
        async for result in outcomes(client, frames()):
            given.append(result)
            ended.set()
    assert labels(given) == expected(2)


# Answers that cannot be


async def swapped(stream: Stream):
    async for frame in stream.frames():
        yield answer(frame.frame_id ^ 1)


async def repeated(stream: Stream):
    async for frame in stream.frames():
        yield answer(frame.frame_id)
        yield answer(frame.frame_id)


async def invented(stream: Stream):
    async for _ in stream.frames():
        yield answer(2**64 - 1)


async def skipping(stream: Stream):
    async for frame in stream.frames():
        if frame.frame_id:
            yield answer(frame.frame_id)


async def dropping(stream: Stream):
    async for frame in stream.frames():
        if frame.frame_id:
            yield dropped(frame.frame_id - 1, frame.frame_id)


async def empty(stream: Stream):
    async for frame in stream.frames():
        reply = answer(frame.frame_id)
        reply.ClearField("classification")
        yield reply


async def backwards(stream: Stream):
    async for frame in stream.frames():
        if frame.frame_id:
            yield dropped(frame.frame_id, frame.frame_id - 1)


async def ahead(stream: Stream):
    async for frame in stream.frames():
        yield dropped(frame.frame_id, frame.frame_id + 100)


@pytest.mark.parametrize(
    ("delivery", "script", "says"),
    [
        ("ordered", swapped, r"frame 1.* (before frame 0|was never sent)"),
        ("ordered", repeated, "frame 0, which already has its answer"),
        ("ordered", invented, f"frame {2**64 - 1}, which was never sent"),
        ("ordered", skipping, "frame 1 of an ordered stream before frame 0"),
        ("ordered", dropping, "dropped frame 0 of an ordered stream"),
        ("ordered", empty, "response to frame 0 has no outcome"),
        ("latest", repeated, "frame 0, which already has its answer"),
        ("latest", invented, f"frame {2**64 - 1}, which was never sent"),
        ("latest", empty, "response to frame 0 has no outcome"),
        ("latest", backwards, "dropped frame 1 for frame 0"),
        ("latest", ahead, "dropped frame 0 for frame 100"),
    ],
)
async def test_answer_that_cannot_be_is_an_error_of_the_server(kind, delivery, script, says):
    async with scripted_stream(script) as server, Caller(kind, server.address) as client:
        with pytest.raises(ServerError, match=says):
            await collect(client, [PNG] * 10, delivery=delivery)
    assert len(server.streams) == 1


def packed(delay: duration_pb2.Duration) -> status_pb2.Status:
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    code = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    return status_pb2.Status(code=code, message="full", details=[detail])


async def test_nonsense_in_one_frame_is_that_frames_error(kind):
    category = result_pb2.Category(label="cat", probability=float("nan"))
    short = result_pb2.Embedding(
        values=b"1234", dimension=2048, type=result_pb2.EMBEDDING_TYPE_FLOAT32
    )
    nonsense = [
        {"error": packed(duration_pb2.Duration(seconds=2**62))},
        {"error": packed(duration_pb2.Duration(seconds=-5))},
        {"error": status_pb2.Status(code=-7)},
        {"classification": result_pb2.Classification(categories=[category])},
        {"classification": result_pb2.Classification(embedding=short)},
    ]

    async def script(stream: Stream):
        async for frame in stream.frames():
            outcome = nonsense.pop(0) if nonsense else {}
            yield answer(frame.frame_id, **outcome)

    async with scripted_stream(script) as server, Caller(kind, server.address) as client:
        results = await collect(client, [PNG] * 6)
    assert [type(result) for result in results] == [
        *(OverloadedError, OverloadedError, ServerError, ServerError, ServerError),
        Classification,
    ]
    assert [one.retry_after_s for one in results[:2]] == [None, None]


async def test_bytes_that_are_no_answer_are_an_error_of_the_server(kind):
    class Garbage(grpc.GenericRpcHandler):
        def service(self, details):
            async def stream(requests, context):
                yield b"\xff\xff"

            async def single(request, context):
                return b"\xff\xff"

            if details.method.endswith("Stream"):
                return grpc.stream_stream_rpc_method_handler(stream)
            return grpc.unary_unary_rpc_method_handler(single)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Garbage(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with Caller(kind, f"127.0.0.1:{port}") as client:
        for call in (
            client.classify(PNG),
            client.list_variants(),
            client.health(),
            client.embed(PNG),
        ):
            with pytest.raises(ServerError):
                await call
        with pytest.raises(ServerError):
            await collect(client, [PNG])
    await server.stop(0)


# Servers that are silent


async def test_stream_to_a_mute_server_goes_on_at_the_next_one(kind):
    async with (
        scripted_stream(at_first(mute)) as server,
        Caller(kind, server.address, retry=QUICK) as client,
    ):
        results = await collect(client, [PNG] * 5, idle_timeout_s=0.2)
    assert labels(results) == expected(5)


async def test_stream_to_mute_servers_alone_fails_and_says_so(kind):
    async with (
        scripted_stream(mute) as server,
        Caller(kind, server.address, retry=QUICK, timeout_s=0.2) as client,
    ):
        says = r"no response for 0\.2 s \(idle_timeout_s\) to 4 frames; 4 frames had no answer"
        with pytest.raises(UnavailableError, match=says):
            await collect(client, [PNG] * 5, window=4)
        with pytest.raises(UnavailableError, match="no response for"):
            await collect(client, [PNG], resume_s=0)


async def test_late_answer_is_not_taken_for_another_frame(kind):
    released, late = asyncio.Event(), threading.Event()

    async def script(stream: Stream):
        async for frame in stream.frames():
            if frame.frame_id == 2:
                await released.wait()
            yield answer(frame.frame_id)

    def frames():
        yield from [PNG] * 4
        late.wait(60)
        yield from [PNG] * 2

    loop = asyncio.get_running_loop()
    async with scripted_stream(script) as server, Caller(kind, server.address) as client:
        results = []
        async for result in outcomes(client, frames(), frame_timeout_s=0.5):
            results.append(result)
            if len(results) == 4:
                loop.call_soon(released.set)
                late.set()
    assert labels(results[:2] + results[4:]) == ["frame 0", "frame 1", "frame 4", "frame 5"]
    assert [type(result) for result in results[2:4]] == [DeadlineExceededError] * 2
    assert "frame 2: no response within 0.5 s (frame_timeout_s)" in str(results[2])
    assert len(server.streams) == 1


async def test_frames_are_late_too_while_a_stream_waits_to_be_resumed(kind):
    async def script(stream: Stream):
        async for _ in stream.frames():
            if len(stream.received) == 3:
                await stream.refuse()
        yield

    limits = {"frame_timeout_s": 0.2, "resume_s": 1e6}
    async with (
        scripted_stream(script) as server,
        Caller(kind, server.address, retry=NEVER) as client,
    ):
        results = await collect(client, [PNG] * 3, **limits)
    assert [type(result) for result in results] == [DeadlineExceededError] * 3
    assert len(server.streams) == 1


# Frames that break what they are sent to


def breaking(*bad: int):
    """Return a script that breaks the connection at some frames."""

    async def script(stream: Stream):
        async for frame in stream.frames():
            if frame.frame_id in bad:
                await stream.cut()
            yield answer(frame.frame_id)

    return script


async def test_poison_frame_fails_and_the_others_are_answered(kind):
    async with (
        scripted_stream(breaking(3, 7)) as server,
        Caller(kind, server.address, retry=QUICK) as client,
    ):
        results = await collect(client, [PNG] * 12)
    assert [number for number, one in enumerate(results) if isinstance(one, Exception)] == [3, 7]
    assert labels(results[:3]) == expected(3)
    for result in (results[3], results[7]):
        assert isinstance(result, UnavailableError)
        assert "was sent 4 times" in str(result)
    sent = [number for stream in server.streams for number in stream.received]
    assert sent.count(3) == 4


async def test_servers_that_refuse_a_stream_cost_no_frame(kind):
    """As servers do that start or stop, and proxies before them: far more often than four times."""

    async def script(stream: Stream):
        async for frame in stream.frames():
            if stream.number <= 12:
                await stream.refuse()
            yield answer(frame.frame_id)

    async with (
        scripted_stream(script) as server,
        Caller(kind, server.address, retry=QUICK) as client,
    ):
        results = await collect(client, [PNG] * 12, resume_s=600)
    assert labels(results) == expected(12)


async def test_servers_that_are_killed_at_any_frame_cost_none(kind):
    """Not even in turn, while the suspects are still being tried."""

    async def script(stream: Stream):
        async for frame in stream.frames():
            if len(stream.received) == 2 and stream.number <= 12:
                await stream.cut()
            yield answer(frame.frame_id)

    async with (
        scripted_stream(script) as server,
        Caller(kind, server.address, retry=QUICK) as client,
    ):
        results = await collect(client, [PNG] * 30)
    assert labels(results) == expected(30)


# Closing


@pytest.mark.parametrize("name", ["classify_stream", "classify"])
async def test_closing_a_client_wakes_what_waits_for_its_next_attempt(kind, name):
    watching = Watching()
    client = Caller(kind, "127.0.0.1:1", retry=NEVER, timeout_s=1e6, observers=[watching])
    call = asyncio.ensure_future(
        client.classify(PNG) if name == "classify" else collect(client, [PNG])
    )
    assert await asyncio.to_thread(watching.waits.wait, 60)
    await client.close()
    with pytest.raises(CallCancelledError, match=r"127\.0\.0\.1:1: the client was closed"):
        await call


async def test_closing_a_client_ends_a_stream_that_waits_for_an_answer(kind):
    async with scripted_stream(mute) as server:
        client = Caller(kind, server.address)
        call = asyncio.ensure_future(collect(client, [PNG]))
        await until(lambda: bool(server.streams and server.streams[0].received))
        await client.close()
        with pytest.raises(CallCancelledError):
            await call


@pytest.mark.parametrize("name", ["classify", "classify_stream", "classify_many"])
async def test_client_that_its_token_function_closes_makes_no_call(kind, name):
    async def closing() -> str:
        await client.close()
        return "token"

    def closing_in_a_thread() -> str:
        client.client.close()
        return "token"

    token = closing if kind is AsyncClient else closing_in_a_thread
    with FakeServer() as server:
        client = Caller(kind, server.address, token=token, timeout_s=1e6)
        with pytest.raises(CallCancelledError, match="the client was closed during the call"):
            if name == "classify":
                await client.classify(b"image")
            else:
                _ = [one async for one in items(client, name, [b"image"])]
        assert server.received == []


async def test_stream_first_read_after_close_opens_no_channel(kind):
    async with scripted_stream(healthy) as server:
        client = Caller(kind, server.address)
        for name in ("embed_stream", "classify_stream"):
            stream = getattr(client.client, name)([PNG])
            await client.close()
            with pytest.raises(CallCancelledError):
                if isinstance(client.client, AsyncClient):
                    await anext(stream)
                else:
                    next(stream)
            with pytest.raises(RuntimeError, match="is closed; create a new one"):
                getattr(client.client, name)([PNG])
            client = Caller(kind, server.address)
        await client.close()
        assert server.streams == []


# Sources


async def fails(stream: Stream) -> AsyncIterator:
    # Not before a frame is there: closing a generator that has not begun runs none of its code.
    async for _ in stream.frames():
        await stream.context.abort(grpc.StatusCode.INVALID_ARGUMENT, "scripted")
        yield


@pytest.mark.parametrize("script", [healthy, fails, invented], ids=["left", "fails", "wrong"])
async def test_source_is_closed_when_its_stream_ends_before_it(sourced, script):
    kind, make = sourced
    frames = make()
    async with scripted_stream(script) as server, Caller(kind, server.address) as client:
        stream = outcomes(client, frames)
        if script is healthy:
            await anext(stream)
            await stream.aclose()
        else:
            with pytest.raises(ValueError if script is fails else ServerError):
                await anext(stream)
        assert await asyncio.to_thread(frames.closed.wait, 60)


async def test_source_is_closed_with_its_client_while_being_read(sourced):
    kind, make = sourced
    frames = make(hold_at=2)
    async with scripted_stream(healthy) as server:
        client = Caller(kind, server.address)
        stream = outcomes(client, frames)
        await anext(stream)
        await anext(stream)
        await client.close()
        with pytest.raises(CallCancelledError):
            await anext(stream)
        # A thread that is reading it closes it, once the camera has given its frame.
        assert frames.closed.is_set() == (make is AsyncFrames)
        frames.resume.set()
        assert await asyncio.to_thread(frames.closed.wait, 60)
