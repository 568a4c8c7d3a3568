"""Admission of requests, and rejection before their messages are read."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2
from PIL import Image

from resnet50.v1 import image_pb2, inference_pb2, inference_pb2_grpc
from resnet50_client._aio_status import keep_status
from tests.support.pictures import encode, picture
from tests.support.serving import DECODING, computed, connected, gate, queues_of, serving, until

PNG = encode(picture())
CLASSIFY = "/resnet50.v1.InferenceService/Classify"
REQUEST = inference_pb2.ClassifyRequest(image=image_pb2.Image(encoded=PNG))


@contextlib.asynccontextmanager
async def busy(**settings):
    """Serve with an engine that computes until the block ends."""
    async with serving(drain_timeout_s=0.0, **settings) as server:
        opened = gate(server)
        try:
            yield server
        finally:
            opened.set()


def unsent(channel: grpc.aio.Channel, **options):
    """Open a Classify whose request does not come."""
    method = channel.stream_unary(
        CLASSIFY,
        request_serializer=inference_pb2.ClassifyRequest.SerializeToString,
        response_deserializer=inference_pb2.ClassifyResponse.FromString,
    )
    return keep_status(method(**options))


def retry_delay_s(error: grpc.RpcError) -> float:
    status = status_pb2.Status.FromString(
        dict(error.trailing_metadata())["grpc-status-details-bin"]
    )
    for packed in status.details:
        if packed.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            info = error_details_pb2.RetryInfo()
            packed.Unpack(info)
            return info.retry_delay.ToNanoseconds() / 1e9
    raise AssertionError("no RetryInfo")


@pytest.mark.parametrize("limit", ["max_requests", "max_requests_per_caller"])
async def test_full_server_refuses_before_the_request_is_sent(limit):
    async with busy(**{limit: 2}) as server, connected(server) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        inside = [asyncio.ensure_future(stub.Classify(REQUEST)) for _ in range(2)]
        await until(lambda: server.snapshot().requests == 2)
        with pytest.raises(grpc.RpcError) as refused:
            await unsent(channel)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert f"{limit} (2)" in refused.value.details()
        assert retry_delay_s(refused.value) > 0
        for call in inside:
            call.cancel()
        await until(lambda: server.snapshot().requests == 0)


@pytest.mark.parametrize("limit", ["max_request_bytes", "max_request_bytes_per_caller"])
async def test_bytes_inside_are_counted_and_come_back(limit):
    length = REQUEST.ByteSize()
    async with busy(**{limit: length + 1}) as server, connected(server) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        inside = asyncio.ensure_future(stub.Classify(REQUEST))
        await until(lambda: server.snapshot().bytes == length)
        with pytest.raises(grpc.RpcError) as refused:
            await stub.Classify(REQUEST)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert f"{limit} ({length + 1}): {length} bytes of images" in refused.value.details()
        assert retry_delay_s(refused.value) > 0
        inside.cancel()
        await until(lambda: server.snapshot().requests == server.snapshot().bytes == 0)


async def test_request_that_does_not_arrive_is_given_up():
    async with serving(receive_timeout_s=0.1) as server, connected(server) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            await unsent(channel)
        assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "receive_timeout_s" in refused.value.details()
        assert server.snapshot().requests == 0


async def test_call_that_ends_without_a_request_is_refused():
    async with serving() as server, connected(server) as channel:
        call = unsent(channel)
        await call.done_writing()
        with pytest.raises(grpc.RpcError) as refused:
            await call
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "message: is missing" in refused.value.details()


async def test_caller_above_its_rate_is_told_when_to_come_back():
    async with serving(max_rate_per_caller=0.01) as server, connected(server) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        await stub.Classify(REQUEST)
        with pytest.raises(grpc.RpcError) as refused:
            await unsent(channel)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "max_rate_per_caller (0.01 images/s): address:127.0.0.1" in refused.value.details()
        assert 90 < retry_delay_s(refused.value) <= 100


def stream_of(channel: grpc.aio.Channel, frames: int, **options):
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    config = inference_pb2.ClassifyStreamConfig()
    requests = [inference_pb2.ClassifyStreamRequest(config=config)]
    for number in range(frames):
        frame = inference_pb2.Frame(frame_id=number, image=REQUEST.image)
        requests.append(inference_pb2.ClassifyStreamRequest(frame=frame))
    return keep_status(stub.ClassifyStream(iter(requests), **options))


async def test_frames_above_the_rate_wait_instead_of_being_refused():
    async with serving(max_rate_per_caller=10.0) as server, connected(server) as channel:
        loop = asyncio.get_running_loop()
        started = loop.time()
        replies = [reply async for reply in stream_of(channel, 13)]
        assert [reply.frame_id for reply in replies] == list(range(13))
        assert all(reply.HasField("classification") for reply in replies)
        # Ten at once, and then three at ten a second; it cannot have been faster.
        assert loop.time() - started > 0.25


async def test_stream_beyond_max_streams_is_refused():
    async with serving(max_streams_per_caller=1) as server, connected(server) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        first = stub.ClassifyStream()
        await until(lambda: server.snapshot().streams == 1)
        with pytest.raises(grpc.RpcError) as refused:
            await keep_status(stub.EmbedStream()).read()
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "max_streams_per_caller (1)" in refused.value.details()
        first.cancel()
        await until(lambda: server.snapshot().streams == 0)
        assert [reply.frame_id async for reply in stream_of(channel, 1)] == [0]


async def test_connection_beyond_max_connections_is_not_served():
    async with serving(max_connections=1) as server, connected(server) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        await stub.Classify(REQUEST)
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(server.addresses[0], options) as another:
            with pytest.raises(grpc.RpcError) as refused:
                await inference_pb2_grpc.InferenceServiceStub(another).Classify(REQUEST, timeout=5)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        await stub.Classify(REQUEST)


async def test_priority_that_is_none_is_refused():
    async with serving() as server, connected(server) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            await unsent(channel, metadata=(("x-priority", "urgent"),))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "x-priority" in refused.value.details()
        assert "'interactive' or 'bulk'" in refused.value.details()


async def test_interactive_request_overtakes_bulk_and_finds_room():
    bulk = (("x-priority", "bulk"),)
    async with (
        serving(max_queue_size=8, max_batch_size=1, **DECODING) as server,
        connected(server) as channel,
    ):
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        white = image_pb2.Image(encoded=encode(Image.new("RGB", (32, 32), "white")))
        opened, (queue,), batches = gate(server), queues_of(server), computed(server)

        def classify(count: int) -> list[asyncio.Task]:
            calls = (stub.Classify(REQUEST, metadata=bulk) for _ in range(count))
            return [asyncio.ensure_future(one) for one in calls]

        async def all_frames() -> list[inference_pb2.ClassifyStreamResponse]:
            return [reply async for reply in stream_of(channel, 9, metadata=bulk)]

        try:
            # One in the engine, and as many waiting as bulk may.
            calls = classify(1)
            await until(lambda: batches)
            calls += classify(6)
            await until(lambda: len(queue.waiting) == 6)
            request = inference_pb2.ClassifyRequest(image=white)
            calls.append(asyncio.ensure_future(stub.Classify(request)))
            await until(lambda: len(queue.waiting) == 7)
            frames = asyncio.create_task(all_frames())
            await until(lambda: server.snapshot().requests > len(calls))
        finally:
            opened.set()
        await asyncio.gather(*calls)
        assert [(image == 255).all() for (image,) in batches[:2]] == [False, True]
        # Frames wait for room instead of being refused.
        assert all(frame.HasField("classification") for frame in await frames)


async def test_bulk_beyond_its_share_is_refused_interactive_is_not():
    bulk = (("x-priority", "bulk"),)
    async with busy(max_requests=4) as server, connected(server) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        calls = [
            asyncio.ensure_future(stub.Classify(REQUEST, metadata=bulk, timeout=60))
            for _ in range(3)
        ]
        await until(lambda: server.snapshot().requests == 3)
        with pytest.raises(grpc.RpcError) as refused:
            await unsent(channel, metadata=bulk)
        assert "max_requests (4): 3 requests are in flight" in refused.value.details()
        assert "the rest is reserved for interactive" in refused.value.details()
        calls.append(asyncio.ensure_future(stub.Classify(REQUEST, timeout=60)))
        await until(lambda: server.snapshot().requests == 4)
        for call in calls:
            call.cancel()
        await until(lambda: server.snapshot().requests == 0)


async def test_bulk_frames_leave_permits_to_interactive_requests():
    async with busy(max_requests=4) as server, connected(server) as channel:
        frames = stream_of(channel, 6, metadata=(("x-priority", "bulk"),))
        admission = server.parts.admission
        await until(lambda: admission.requests + admission.waiting >= 4)
        assert (admission.requests, admission.waiting) == (3, 1)
        frames.cancel()
        await until(lambda: admission.requests == 0)


async def test_health_checks_have_room_of_their_own():
    async with busy(max_requests=1, max_streams=1) as server, connected(server) as channel:
        inside = asyncio.ensure_future(
            inference_pb2_grpc.InferenceServiceStub(channel).Classify(REQUEST)
        )
        await until(lambda: server.snapshot().requests == 1)
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        reply = await check(health_pb2.HealthCheckRequest())
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
        inside.cancel()
