from __future__ import annotations

import asyncio

import grpc
import pytest

from resnet50.v1 import image_pb2, inference_pb2, inference_pb2_grpc
from resnet50_client._aio_status import keep_status
from resnet50_server.batching.deadlines import DeadlinePolicy
from resnet50_server.batching.request_errors import fail_pending
from resnet50_server.errors import DeadlineUnreachable, ShuttingDown
from tests.support.pictures import encode, photo_like
from tests.support.serving import DECODING, connected, queues_of, serving, until
from tests.support.streams import PNG, Gate, Request, config, converse, frame, open_stream, outcomes


async def test_every_frame_is_answered_in_order_and_the_stream_ends_ok():
    async with (
        serving(engine="timed", timed_alpha_ms=2, timed_beta_ms=1) as server,
        connected(server) as channel,
    ):
        small, large = (encode(photo_like(side, side)) for side in (16, 700))
        # Some take long to decode.
        requests = [frame(5 * number, small if number % 3 else large) for number in range(60)]
        replies = await converse(channel, config(top_k=2), *requests)
    assert [reply.frame_id for reply in replies] == [5 * n for n in range(60)]
    assert set(outcomes(replies)) == {"classification"}
    assert {len(reply.classification.categories) for reply in replies} == {2}
    assert {reply.variant.name for reply in replies} == {"IMAGENET1K_V2"}
    assert max(reply.timing.batch_size for reply in replies) > 1


async def test_embed_stream_answers_vectors():
    async with serving() as server, connected(server) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        requests = [inference_pb2.EmbedStreamRequest(config=inference_pb2.EmbedStreamConfig())]
        requests += [inference_pb2.EmbedStreamRequest(frame=frame(n).frame) for n in range(3)]
        replies = [reply async for reply in stub.EmbedStream(iter(requests))]
    assert [reply.embedding.dimension for reply in replies] == [2048] * 3


async def test_bad_frames_are_answered_in_place_and_the_stream_goes_on():
    async with (
        serving(max_image_bytes=60_000, **DECODING) as server,
        connected(server) as channel,
    ):
        raw = image_pb2.Image(raw=image_pb2.RawImage(width=8, height=8, pixel_format=99))
        bad_raw = Request(frame=inference_pb2.Frame(frame_id=4, image=raw))
        requests = [
            frame(0),
            frame(1, b"no image"),
            frame(2, b""),
            frame(3, bytes(60_001)),
            bad_raw,
            frame(5, PNG[:100]),
            frame(6),
        ]
        replies = await converse(channel, config(), *requests)
    assert outcomes(replies) == ["classification", *["error"] * 5, "classification"]
    assert [reply.frame_id for reply in replies] == list(range(7))
    for reply, text in zip(
        replies[1:6],
        ["not a readable", "0 bytes", "max_image_bytes", "pixel_format", "truncated"],
        strict=True,
    ):
        assert reply.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        assert text in reply.error.message
        assert any("BadRequest" in detail.type_url for detail in reply.error.details)


async def test_failed_frame_releases_its_permit_if_unread(monkeypatch):
    async with serving(max_batch_size=1) as server:
        gate = Gate(server, monkeypatch)
        async with connected(server) as channel:
            call = open_stream(channel)
            await call.write(config(max_in_flight=8))
            for number in range(8):
                await call.write(frame(number))
            await gate.entered.get()
            await until(lambda: server.snapshot().requests >= 8)
            await until(lambda: any(queue.waiting for queue in queues_of(server)))  # decoded
            waiting = [entry.item for queue in queues_of(server) for entry in queue.waiting]
            for one in waiting:
                one.future.set_exception(DeadlineUnreachable("too late"))
            await until(lambda: server.snapshot().requests <= 8 - len(waiting))
            call.cancel()
            gate.let(8)
            await until(lambda: server.parts.inference.idle)


@pytest.mark.parametrize("refused", ["empty", "broken", "deadline"])
async def test_refused_frames_hold_no_permit_and_no_variant(refused, monkeypatch):
    """An empty image is refused before the pipeline has it, the others by the pipeline."""

    def refuse(*_: object) -> None:
        raise DeadlineUnreachable("too late")

    async with serving(max_requests=2) as server, connected(server) as channel:
        call = open_stream(channel)
        await call.write(config())
        await call.write(frame(0))
        assert outcomes([await call.read()]) == ["classification"]
        content = {"empty": b"", "broken": b"no image", "deadline": PNG}[refused]
        if refused == "deadline":
            monkeypatch.setattr(DeadlinePolicy, "check", refuse)
        for number in range(1, 6):  # more than may be in flight
            await call.write(frame(number, content))
            assert outcomes([await call.read()]) == ["error"]
            found = server.snapshot()
            assert (found.requests, found.bytes, found.variants[0].requests) == (0, 0, 0)
        call.cancel()


@pytest.mark.parametrize(
    ("requests", "answered", "text"),
    [
        ([], 0, "config: is missing"),
        ([frame(0)], 0, "config: is missing"),
        ([Request()], 0, "config: is missing"),
        ([config(), frame(0), config()], 1, "config: after the first message"),
        ([config(), frame(0), Request()], 1, "frame: after the first message"),
        ([config(), frame(3), frame(3)], 1, "frame.frame_id: is 3 after 3"),
        ([config(), frame(3), frame(2)], 1, "frame.frame_id: is 2 after 3"),
        ([config(delivery=77), frame(0)], 0, "config.delivery: is 77, must be one of DELIVERY_ORD"),
        ([config(top_k=1001), frame(0)], 0, "options.top_k"),
    ],
)
async def test_out_of_order_messages_end_the_stream_after_its_frames(requests, answered, text):
    async with serving() as server, connected(server) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        call = keep_status(stub.ClassifyStream(iter(requests)))
        replies = []
        with pytest.raises(grpc.RpcError) as ended:
            async for reply in call:
                replies.append(reply)
        assert ended.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert text in ended.value.details()
        assert len(replies) == answered
        assert len(await converse(channel, config(), frame(0))) == 1


async def test_unknown_variant_ends_the_stream_with_not_found():
    async with serving() as server, connected(server) as channel:
        with pytest.raises(grpc.RpcError) as ended:
            await converse(channel, config(variant="cats"), frame(0))
        assert ended.value.code() is grpc.StatusCode.NOT_FOUND


async def test_server_with_an_open_stream_is_not_idle():
    async with serving() as server, connected(server) as channel:
        inference = server.parts.inference
        assert inference.idle
        call = open_stream(channel)
        await call.write(config())
        await until(lambda: server.snapshot().streams == 1)
        assert not inference.idle  # though no frame is in flight
        call.cancel()
        await until(lambda: inference.idle)


async def test_cancelled_stream_frees_what_it_had_queued(monkeypatch):
    async with serving(max_batch_size=1) as server:
        gate = Gate(server, monkeypatch)
        async with connected(server) as channel:
            call = open_stream(channel)
            await call.write(config())
            for number in range(2):
                await call.write(frame(number))
            await gate.entered.get()
            await until(lambda: server.snapshot().requests >= 2)
            call.cancel()
            await until(lambda: not server.snapshot().streams)
            gate.let(1)
            await until(lambda: not server.snapshot().requests)
            gate.let(1)
            assert len(await converse(channel, config(), frame(0))) == 1
            assert gate.entered.qsize() == 1  # frame 1 never came to the engine


async def test_stream_that_has_ended_is_registered_no_longer():
    async with serving() as server, connected(server) as channel:
        (variant,) = server.parts.variants.loaded
        await converse(channel, config(), frame(0))
        with pytest.raises(grpc.RpcError, match="frame_id"):
            await converse(channel, config(), frame(1), frame(1))
        cancelled = open_stream(channel)
        await cancelled.write(config())
        await until(lambda: variant.streams)
        cancelled.cancel()
        await until(lambda: not server.snapshot().streams)
        assert variant.streams == set()


async def test_drain_answers_queued_frames_and_names_the_last(monkeypatch):
    async with serving(max_batch_size=1) as server:
        gate = Gate(server, monkeypatch)
        async with connected(server) as channel:
            call, idle = open_stream(channel), open_stream(channel)
            for one in (call, idle):
                await one.write(config(max_in_flight=8))
            for number in range(3):
                await call.write(frame(number))
            await gate.entered.get()
            await until(lambda: server.snapshot().requests >= 3 and server.snapshot().streams == 2)
            stopping = asyncio.create_task(server.stop())
            gate.let(3)
            replies = [await call.read() for _ in range(3)]
            with pytest.raises(grpc.RpcError) as ended:
                await call.read()
            with pytest.raises(grpc.RpcError) as idle_ended:
                await idle.read()
            await stopping
    assert [reply.frame_id for reply in replies] == [0, 1, 2]
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "frame 2 was the last one answered" in ended.value.details()
    assert "no frame was answered" in idle_ended.value.details()


async def test_frame_waiting_for_a_permit_at_drain_is_not_answered(monkeypatch):
    """The client sends it to another server; an error in its place would look final."""
    async with serving(max_requests=2, max_batch_size=1) as server:
        gate = Gate(server, monkeypatch)
        async with connected(server) as channel:
            call = open_stream(channel)
            await call.write(config(max_in_flight=8))
            for number in range(4):
                await call.write(frame(number))
            await gate.entered.get()
            await until(lambda: server.snapshot().requests >= 2)
            stopping = asyncio.create_task(server.stop())
            await until(lambda: server.snapshot().draining)
            gate.let(4)
            replies = [await call.read() for _ in range(2)]
            with pytest.raises(grpc.RpcError) as ended:
                await call.read()
            await stopping
    assert outcomes(replies) == ["classification"] * 2
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "frame 1 was the last one answered" in ended.value.details()


async def test_refused_frame_is_not_answered_before_those_in_flight(monkeypatch):
    """The status tells the client which frames to send again: all after the last one answered."""
    async with serving(max_batch_size=1) as server, connected(server) as channel:
        gate = Gate(server, monkeypatch)
        other, call = open_stream(channel), open_stream(channel)
        for one in (other, call):
            await one.write(config(max_in_flight=8))
        await other.write(frame(0))
        await gate.entered.get()
        for number, encoded in enumerate((PNG, b"", PNG)):
            await call.write(frame(number, encoded))
        (queue,) = queues_of(server)
        await until(lambda: len(queue.waiting) == 2)  # frame 2 as well, so frame 1 was refused
        fail_pending([entry.item for entry in queue.waiting], ShuttingDown)
        with pytest.raises(grpc.RpcError) as ended:
            await call.read()
        gate.let()
    assert "no frame was answered" in ended.value.details()


async def test_silent_stream_is_ended_if_the_server_says_so():
    async with serving(stream_idle_timeout_s=0.3) as server, connected(server) as channel:
        call = open_stream(channel)
        await call.write(config())
        await call.write(frame(0))
        assert (await call.read()).frame_id == 0
        with pytest.raises(grpc.RpcError) as ended:
            await call.read()
        assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "stream_idle_timeout_s" in ended.value.details()


async def test_stream_waits_where_a_single_call_is_refused(monkeypatch):
    async with serving(max_requests=2, max_batch_size=1) as server:
        gate = Gate(server, monkeypatch)
        async with connected(server) as channel:
            streaming = asyncio.create_task(
                converse(channel, config(), *(frame(number) for number in range(6)))
            )
            await gate.entered.get()
            await until(lambda: server.snapshot().requests >= 2)
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            with pytest.raises(grpc.RpcError, match="max_requests"):
                await stub.Classify(
                    inference_pb2.ClassifyRequest(image=image_pb2.Image(encoded=PNG))
                )
            gate.let(6)
            assert outcomes(await streaming) == ["classification"] * 6
