"""`Stream` and `AsyncStream`: ending them from anywhere, counts, and the sources of answers."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.rpc import status_pb2

from resnet50_client import (
    AsyncClient,
    AsyncStream,
    CallCancelledError,
    CallObserver,
    Client,
    DataLossError,
    RetryPolicy,
    Stream,
    StreamStats,
)
from resnet50_client.testing import FakeServer
from tests.support import scripted_stream as scripted
from tests.support.clients import Caller
from tests.support.frame_sources import AsyncFrames, Frames, Watching
from tests.support.pictures import encode, photo_like
from tests.support.scripted_stream import answer, at_first, dropped, healthy, mute, scripted_stream
from tests.support.serving import until

PNG = encode(photo_like(8, 8))
QUICK = RetryPolicy(initial_backoff_s=0.01, max_backoff_s=0.01)
NEVER = RetryPolicy(initial_backoff_s=3600.0, max_backoff_s=3600.0)
CANCELLED = r"127\.0\.0\.1:\d+: the stream was cancelled"


async def following(stream: Stream | AsyncStream) -> Any:
    """Return the next answer; None at the end."""
    if isinstance(stream, AsyncStream):
        return await anext(stream, None)
    return await asyncio.to_thread(next, stream, None)


async def rest(stream: Stream | AsyncStream) -> list:
    """Return the answers that are left."""
    answers = []
    while (one := await following(stream)) is not None:
        answers.append(one)
    return answers


async def close(stream: Stream | AsyncStream) -> None:
    """Close a stream."""
    if isinstance(stream, AsyncStream):
        await stream.aclose()
    else:
        await asyncio.to_thread(stream.close)


async def cancel(stream: Stream | AsyncStream) -> None:
    """Cancel a stream from another thread."""
    await asyncio.to_thread(stream.cancel)


# Cancelling


async def test_cancel_wakes_a_stream_that_waits_for_its_source(sourced):
    kind, make = sourced
    frames = make(hold_at=2)
    async with scripted_stream(healthy) as server, Caller(kind, server.address) as client:
        stream = client.client.classify_stream(frames)
        for number in range(2):
            assert (await following(stream)).frame_id == number
        waiting = asyncio.ensure_future(following(stream))
        assert await asyncio.to_thread(frames.blocked.wait, 60)
        await cancel(stream)
        with pytest.raises(CallCancelledError, match=CANCELLED) as raised:
            await waiting
        assert raised.value.code == "CANCELLED"
        assert await following(stream) is None
        # A thread that is reading the source closes it after the read.
        frames.resume.set()
        assert await asyncio.to_thread(frames.closed.wait, 60)


async def test_cancel_wakes_a_stream_that_waits_for_a_server(sourced):
    kind, make = sourced
    frames = make()
    async with scripted_stream(mute) as server, Caller(kind, server.address) as client:
        stream = client.client.classify_stream(frames, window=3)
        waiting = asyncio.ensure_future(following(stream))
        await until(lambda: server.streams and len(server.streams[0].received) == 3)
        await cancel(stream)
        with pytest.raises(CallCancelledError, match=CANCELLED):
            await waiting
        assert await asyncio.to_thread(frames.closed.wait, 60)
        await until(lambda: server.streams[0].ended)
    assert (stream.stats.read, stream.stats.pending) == (3, 3)


async def test_cancel_wakes_a_stream_that_waits_to_resume(kind):
    watching = Watching()
    options = {"retry": NEVER, "timeout_s": 1e6, "observers": [watching]}
    async with Caller(kind, "127.0.0.1:1", **options) as client:
        stream = client.client.classify_stream([PNG])
        waiting = asyncio.ensure_future(following(stream))
        assert await asyncio.to_thread(watching.waits.wait, 60)
        await until(lambda: "waiting to resume" in repr(stream))
        await cancel(stream)
        with pytest.raises(CallCancelledError, match=CANCELLED) as raised:
            await waiting
        assert await following(stream) is None
    assert watching.ended == [("CANCELLED", raised.value)]


async def test_cancel_wakes_a_stream_that_waits_for_its_token():
    asked = threading.Event()

    async def token() -> str:
        asked.set()
        await asyncio.Event().wait()
        return "never"

    async with scripted_stream(healthy) as server:
        async with AsyncClient(server.address, token=token, timeout_s=1e6) as client:
            stream = client.classify_stream([PNG])
            waiting = asyncio.ensure_future(following(stream))
            assert await asyncio.to_thread(asked.wait, 60)
            await cancel(stream)
            with pytest.raises(CallCancelledError, match=CANCELLED):
                await waiting
        assert server.streams == []


async def test_cancel_between_two_answers_ends_the_stream_at_once(sourced):
    kind, make = sourced
    frames, watching = make(), Watching()
    async with (
        scripted_stream(healthy) as server,
        Caller(kind, server.address, observers=[watching]) as client,
    ):
        stream = client.client.classify_stream(frames)
        await following(stream)
        await cancel(stream)
        assert await asyncio.to_thread(frames.closed.wait, 60)
        await until(lambda: server.streams[0].ended)
        await until(lambda: [code for code, _ in watching.ended] == ["CANCELLED"])
        with pytest.raises(CallCancelledError, match=CANCELLED):
            await following(stream)
        assert await rest(stream) == []
        await cancel(stream)  # no effect
    assert len(watching.ended) == 1


async def test_stream_that_is_cancelled_first_opens_no_call(kind):
    async with scripted_stream(healthy) as server, Caller(kind, server.address) as client:
        stream = client.client.classify_stream([PNG])
        await cancel(stream)
        with pytest.raises(CallCancelledError, match=CANCELLED):
            await following(stream)
        assert await following(stream) is None
        assert server.streams == []


async def test_cancel_after_the_end_has_no_effect(kind):
    async with scripted_stream(healthy) as server, Caller(kind, server.address) as client:
        stream = client.client.classify_stream([PNG] * 2)
        assert len(await rest(stream)) == 2
        await cancel(stream)
        assert await rest(stream) == []


async def test_source_may_cancel_its_own_stream(sourced):
    kind, make = sourced
    async with scripted_stream(mute) as server, Caller(kind, server.address) as client:
        frames = make()
        frames.before = lambda number: stream.cancel() if number == 2 else None
        stream = client.client.classify_stream(frames)
        with pytest.raises(CallCancelledError, match=CANCELLED):
            await following(stream)
        assert await asyncio.to_thread(frames.closed.wait, 60)


async def test_stream_cancelled_as_it_returns_an_answer_ends(sourced):
    """Without another iteration, which might never come."""
    kind, make = sourced
    frames = make()

    class Cancelling(CallObserver):
        def frame_answered(self, call, answer):
            stream.cancel()

    async with (
        scripted_stream(healthy) as server,
        Caller(kind, server.address, observers=[Cancelling()]) as client,
    ):
        stream = client.client.classify_stream(frames)
        assert (await following(stream)).frame_id == 0
        assert await asyncio.to_thread(frames.closed.wait, 60)
        await until(lambda: server.streams[0].ended)
        with pytest.raises(CallCancelledError, match=CANCELLED):
            await following(stream)


async def test_cancelled_streams_end_at_any_moment(kind):
    """Whether cancelled while waiting, between two answers, or just as an answer is returned."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        async with scripted_stream(healthy) as server, Caller(kind, server.address) as client:
            for count in range(60):
                frames, reached = Frames(), threading.Event()
                stream = client.client.classify_stream(frames, window=4)

                def stop(stream=stream, reached=reached) -> None:
                    reached.wait(60)
                    stream.cancel()

                stopping = asyncio.ensure_future(asyncio.to_thread(stop))
                with pytest.raises(CallCancelledError):
                    for number in range(1_000_000):
                        if number == 1 + count % 5:
                            reached.set()
                        assert (await following(stream)).frame_id == number
                await stopping
                assert await rest(stream) == []
                assert await asyncio.to_thread(frames.closed.wait, 60)
            await until(lambda: all(one.ended for one in server.streams))
    finally:
        sys.setswitchinterval(before)


def test_signal_handler_cancels_a_blocking_stream():
    frames = Frames(hold_at=1)
    with FakeServer() as server, Client(server.address) as client:
        stream = client.classify_stream(frames)

        def interrupt() -> None:
            frames.blocked.wait(60)
            os.kill(os.getpid(), signal.SIGUSR1)

        before = signal.signal(signal.SIGUSR1, lambda *_: stream.cancel())
        interrupting = threading.Thread(target=interrupt)
        interrupting.start()
        try:
            with pytest.raises(CallCancelledError):
                for _ in stream:
                    pass
        finally:
            interrupting.join()
            signal.signal(signal.SIGUSR1, before)
            frames.resume.set()
        assert frames.closed.wait(60)


# Closing


async def test_context_manager_closes_a_stream_that_is_left_early(sourced):
    kind, make = sourced
    frames = make()
    async with scripted_stream(healthy) as server, Caller(kind, server.address) as client:
        stream = client.client.classify_stream(frames)

        def leave() -> None:
            with stream:
                for _ in stream:
                    raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            if kind is AsyncClient:
                async with stream:
                    async for _ in stream:
                        raise ZeroDivisionError
            else:
                await asyncio.to_thread(leave)
        assert await rest(stream) == []
        assert await asyncio.to_thread(frames.closed.wait, 60)
        await until(lambda: server.streams[0].ended)


async def test_stream_first_iterated_after_close_is_empty(kind):
    class Images:
        closed = False

        def __iter__(self):
            return self

        def __next__(self):
            return PNG

        def close(self):
            self.closed = True

    images = Images()
    async with scripted_stream(healthy) as server, Caller(kind, server.address) as client:
        stream = client.client.classify_stream(images)
        await close(stream)
        assert images.closed
        assert await rest(stream) == []
        assert server.streams == []
        assert "ended" in repr(stream)


async def test_closing_a_stream_cancels_the_wait_for_its_answer(kind):
    async with scripted_stream(mute) as server, Caller(kind, server.address) as client:
        stream = client.client.classify_stream([PNG])
        waiting = asyncio.ensure_future(following(stream))
        await until(lambda: server.streams and server.streams[0].received)
        await close(stream)
        with pytest.raises(CallCancelledError, match=CANCELLED):
            await waiting
        assert await rest(stream) == []


async def test_source_that_awaits_a_cancelled_future_ends_its_stream():
    async def frames() -> AsyncIterator[bytes]:
        yield PNG
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    with FakeServer() as server:
        async with AsyncClient(server.address) as client:
            stream = client.classify_stream(frames())
            assert (await anext(stream)).result is not None
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(anext(stream), 60)


async def test_error_of_closing_a_source_is_raised(kind):
    def images():
        try:
            while True:
                yield PNG
        finally:
            raise OSError("the camera is stuck")

    watching = Watching()
    async with (
        scripted_stream(healthy) as server,
        Caller(kind, server.address, observers=[watching]) as client,
    ):
        stream = client.client.classify_stream(images(), window=1)
        await following(stream)
        # Not while the source is being read: its reader closes it then, and logs the error.
        await until(lambda: stream.stats.pending == 1)
        with pytest.raises(OSError, match="stuck"):
            await close(stream)
        assert await rest(stream) == []
        await until(lambda: server.streams[0].ended)
    assert [str(error) for _, error in watching.ended] == ["the camera is stuck"]


async def test_stream_that_is_dropped_ends(sourced):
    kind, make = sourced
    frames = make()
    async with scripted_stream(healthy) as server, Caller(kind, server.address) as client:
        stream = client.client.classify_stream(frames)
        await following(stream)
        del stream
        gc.collect()
        assert await asyncio.to_thread(frames.closed.wait, 60)
        await until(lambda: server.streams[0].ended)


async def test_cancelling_the_task_that_iterates_ends_the_stream():
    frames = AsyncFrames(hold_at=1)
    async with scripted_stream(healthy) as server, AsyncClient(server.address) as client:
        stream = client.classify_stream(frames)
        iterating = asyncio.ensure_future(rest(stream))
        assert await asyncio.to_thread(frames.blocked.wait, 60)
        iterating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await iterating
        assert frames.closed.is_set()
        assert await rest(stream) == []


async def test_several_iterate_over_one_stream(kind):
    async with scripted_stream(healthy) as server, Caller(kind, server.address) as client:
        stream = client.client.classify_stream([PNG] * 200)
        parts = await asyncio.gather(*(rest(stream) for _ in range(4)))
    assert sorted(one.frame_id for part in parts for one in part) == list(range(200))


def test_threads_that_share_a_stream_end_with_it():
    with FakeServer() as server, Client(server.address) as client:
        reached = threading.Event()
        frames = Frames()
        frames.before = lambda number: reached.set() if number == 50 else None
        stream = client.classify_stream(frames)

        def run() -> str:
            try:
                for _ in stream:
                    pass
            except CallCancelledError:
                return "cancelled"
            return "ended"

        with ThreadPoolExecutor(4) as pool:
            running = [pool.submit(run) for _ in range(4)]
            assert reached.wait(60)
            stream.cancel()
            outcomes = sorted(one.result(60) for one in running)
    assert outcomes == ["cancelled", "ended", "ended", "ended"]


# Counts


async def test_counts_are_right_just_after_a_resume(kind):
    async def script(stream: scripted.Stream):
        async for frame in stream.frames():
            if frame.frame_id == 2:
                await stream.refuse()
            yield answer(frame.frame_id)

    async with (
        scripted_stream(at_first(script)) as server,
        Caller(kind, server.address, retry=QUICK) as client,
    ):
        stream = client.client.classify_stream([PNG] * 9, window=3)
        assert stream.stats == StreamStats()
        for _ in range(2):
            await following(stream)
        assert stream.stats.resumes == 0
        assert (await following(stream)).frame_id == 2
        stats = stream.stats
        assert (stats.resumes, stats.answered, stats.failed, stats.dropped) == (1, 3, 0, 0)
        assert stats.read == stats.answered + stats.pending
        assert stats.sent <= stats.read
        assert ", open: 3 answered, 0 failed, 0 dropped, " in repr(stream)
        await rest(stream)
    stats = stream.stats
    assert (stats.read, stats.sent, stats.answered, stats.pending) == (9, 9, 9, 0)
    assert len([one for call in server.streams for one in call.received]) > 9
    assert stats.mean_latency_ms > 0


async def test_limits_may_be_longer_than_a_system_can_wait(kind):
    limits = {"idle_timeout_s": 1e12, "frame_timeout_s": 1e12}
    async with (
        scripted_stream(healthy) as server,
        Caller(kind, server.address, timeout_s=1e12) as client,
    ):
        assert len(await rest(client.client.classify_stream([PNG] * 3, **limits))) == 3


async def test_counts_have_the_servers_times(kind):
    async def script(stream: scripted.Stream):
        async for frame in stream.frames():
            reply = answer(frame.frame_id)
            reply.timing.total_us = 3000 if frame.frame_id else 1000
            yield reply

    async with scripted_stream(script) as server, Caller(kind, server.address) as client:
        stream = client.client.classify_stream([PNG] * 2)
        await rest(stream)
    assert stream.stats.mean_server_ms == pytest.approx(2.0)


# Sources of answers


async def test_every_answer_has_its_source(kind):
    """Answered, of no type that can be sent, and refused by the server."""
    refusal = status_pb2.Status(code=grpc.StatusCode.DATA_LOSS.value[0], message="scripted")

    async def script(stream: scripted.Stream):
        async for frame in stream.frames():
            yield answer(frame.frame_id, **({"error": refusal} if frame.frame_id == 2 else {}))

    sources = [bytearray(PNG), object(), bytearray(PNG)]
    async with scripted_stream(script) as server, Caller(kind, server.address) as client:
        answers = await rest(client.client.classify_stream(iter(sources), request_id="frames-1"))
    assert (answers[0].result.source, answers[0].result.request_id) == (sources[0], "frames-1")
    assert (answers[2].error.source, answers[2].error.request_id) == (sources[2], "frames-1")
    assert all(one.source is source for one, source in zip(answers, sources, strict=True))
    assert [type(one.error) for one in answers] == [type(None), TypeError, DataLossError]
    assert answers[0].latency_s > 0


async def test_dropped_frames_have_their_sources(kind):
    async def script(stream: scripted.Stream):
        async for frame in stream.frames():
            if frame.frame_id == 2:
                yield dropped(0, 2)
                yield dropped(1, 2)
                yield answer(2)

    sources = [bytearray(PNG) for _ in range(3)]
    async with scripted_stream(script) as server, Caller(kind, server.address) as client:
        stream = client.client.classify_stream(iter(sources), delivery="latest")
        answers = await rest(stream)
    assert [one.dropped for one in answers] == [True, True, False]
    assert all(one.source is source for one, source in zip(answers, sources, strict=True))
