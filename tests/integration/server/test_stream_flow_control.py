"""Streams that are too fast for the engine or for their reader: dropped frames, held senders."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from resnet50.v1 import image_pb2, inference_pb2
from resnet50_server.server import Server
from tests.support.pictures import encode, photo_like
from tests.support.serving import UNTIL_S, connected, engines_of, serving, until
from tests.support.streams import (
    LATEST,
    ORDERED,
    Gate,
    Request,
    config,
    converse,
    frame,
    open_stream,
    outcomes,
)


async def test_latest_computes_the_newest_and_says_what_it_dropped(monkeypatch):
    async with serving() as server, connected(server) as channel:
        gate = Gate(server, monkeypatch)
        call = open_stream(channel)
        await call.write(config(LATEST))
        await call.write(frame(0))
        await gate.entered.get()  # frame 0 is on the engine
        for number in range(1, 6):
            await call.write(frame(number))
        dropped = [await call.read() for _ in range(4)]
        gate.let()
        first = await call.read()
        await gate.entered.get()
        await call.done_writing()
        gate.let()
        last = await call.read()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK
    assert [(one.frame_id, one.dropped.replaced_by_frame_id) for one in dropped] == [
        (1, 2),
        (2, 3),
        (3, 4),
        (4, 5),
    ]
    assert (first.frame_id, last.frame_id) == (0, 5)
    assert outcomes([first, last]) == ["classification"] * 2


async def test_latest_stays_fresh_at_three_times_the_capacity():
    """In steps of the engine: for each batch that has ended, three more frames are sent."""
    async with (
        serving(engine="timed", timed_alpha_ms=20, timed_beta_ms=0) as server,
        connected(server) as channel,
    ):
        (engine,) = engines_of(server)
        run, loop = engine.run, asyncio.get_running_loop()
        due = asyncio.Semaphore(3)

        def counted(*arguments):
            try:
                return run(*arguments)
            finally:
                for _ in range(3):
                    loop.call_soon_threadsafe(due.release)

        engine.run = counted
        call = open_stream(channel)
        await call.write(config(LATEST))
        newest = -1

        async def send() -> None:
            nonlocal newest
            for number in range(90):
                await due.acquire()
                newest = number
                await call.write(frame(number))
            await call.done_writing()

        kinds, behind = Counter(), []

        async def receive() -> None:
            while (reply := await call.read()) is not grpc.aio.EOF:
                kinds[reply.WhichOneof("outcome")] += 1
                if reply.HasField("classification"):
                    behind.append(newest - reply.frame_id)

        await asyncio.wait_for(asyncio.gather(send(), receive()), UNTIL_S)
    assert kinds["classification"] + kinds["dropped"] == 90
    assert kinds["dropped"] > kinds["classification"] > 10
    # A queue would fall back by two frames a batch; the newest wins instead.
    assert sorted(behind)[len(behind) // 2] <= 6


async def stalled(server: Server, count: Callable[[], int]) -> None:
    """Return once a count stays as it is while another caller's calls are answered."""
    async with connected(server) as channel:
        stub, before = health_pb2_grpc.HealthStub(channel), -1
        while count() != before:
            before = count()
            for _ in range(100):
                await stub.Check(health_pb2.HealthCheckRequest())


async def test_ordered_stream_holds_its_sender_back(monkeypatch):
    async with serving(max_frames_in_flight=4, max_batch_size=1) as server:
        gate = Gate(server, monkeypatch)
        async with connected(server) as channel:
            call = open_stream(channel)
            await call.write(config(max_in_flight=1000))
            big = encode(photo_like(400, 300), "PNG")
            written = 0

            async def send() -> None:
                nonlocal written
                for number in range(400):
                    await call.write(frame(number, big))
                    written += 1
                await call.done_writing()

            sending = asyncio.create_task(send())
            await gate.entered.get()
            # Written means: taken by the transport. That stops, for the server stops reading.
            await stalled(server, lambda: written)
            await until(lambda: server.snapshot().requests >= 4)
            assert server.snapshot().requests == 4
            assert written * len(big) < 12 * 2**20 < 400 * len(big)
            gate.let(400)
            replies = [await call.read() for _ in range(400)]
            await sending
            assert await call.read() is grpc.aio.EOF
    assert [reply.frame_id for reply in replies] == list(range(400))


async def test_stream_without_a_window_fills_two_batches(monkeypatch):
    async with serving(max_batch_size=3) as server:
        gate = Gate(server, monkeypatch)
        async with connected(server) as channel:
            call = open_stream(channel)
            await call.write(config())
            for number in range(20):
                await call.write(frame(number))
            await gate.entered.get()
            await until(lambda: server.snapshot().requests >= 6)
            await stalled(server, lambda: server.snapshot().requests)
            assert server.snapshot().requests == 6
            call.cancel()
            gate.let(20)
            await until(lambda: not server.snapshot().requests)


@pytest.mark.parametrize("delivery", [ORDERED, LATEST])
async def test_caller_that_reads_no_answers_stops_being_read(delivery):
    async with serving() as server, connected(server) as channel:
        call = open_stream(channel)
        await call.write(config(delivery, top_k=1000))
        written = 0
        pixel = image_pb2.RawImage(
            width=1, height=1, pixel_format=image_pb2.PIXEL_FORMAT_GRAY, pixels=b"x"
        )

        async def send() -> None:
            nonlocal written
            for number in range(1_000_000):
                tiny = inference_pb2.Frame(frame_id=number, image=image_pb2.Image(raw=pixel))
                await call.write(Request(frame=tiny))
                written += 1

        sending = asyncio.create_task(send())
        await stalled(server, lambda: written)
        assert not sending.done()
        assert server.snapshot().requests <= 64
        # Another caller does not notice.
        async with connected(server) as other:
            assert len(await converse(other, config(), frame(0))) == 1
        call.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        await until(lambda: server.parts.inference.idle)
