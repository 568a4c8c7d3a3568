"""The server's memory has a bound, whatever clients do not send and do not take."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator

import grpc
import h2.events
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

import resnet50_server.images.decode
from resnet50.v1 import image_pb2, inference_pb2, inference_pb2_grpc, variant_pb2
from resnet50_server.api.listen import UNREAD_BYTES
from resnet50_server.api.send_buffer import CALL_BYTES
from resnet50_server.server import Server
from tests.support.pictures import encode, photo_like
from tests.support.raw_http2 import RawClient, message
from tests.support.serving import DECODING, connected, serving, until

MIB = 2**20
JPEG = encode(photo_like(64, 48), "JPEG")
REQUEST = inference_pb2.ClassifyRequest(image=image_pb2.Image(encoded=JPEG))
CLASSIFY = "/resnet50.v1.InferenceService/Classify"
STREAM = "/resnet50.v1.InferenceService/ClassifyStream"
UPLOAD = "/resnet50.v1.InferenceService/ClassifyUpload"
UNTAKEN: dict[str, tuple[str, Message]] = {
    "inference": (CLASSIFY, REQUEST),
    "a refusal": (CLASSIFY, inference_pb2.ClassifyRequest()),
    "variants": (
        "/resnet50.v1.VariantService/GetVariant",
        variant_pb2.GetVariantRequest(name="IMAGENET1K_V2"),
    ),
    "health": ("/grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest()),
}


@contextlib.asynccontextmanager
async def raw(server: Server, window: int | None = None) -> AsyncIterator[RawClient]:
    client = await asyncio.to_thread(RawClient, server.addresses[0], window)
    try:
        yield client
    finally:
        client.close()


async def classify(server: Server) -> None:
    async with connected(server) as channel:
        await inference_pb2_grpc.InferenceServiceStub(channel).Classify(REQUEST, timeout=30)


async def ends(client: RawClient, calls: int) -> None:
    """Wait until so many calls have ended."""

    def wait() -> int:
        left = calls
        while left > 0 and (events := client.events(30)):
            streams = {
                event.stream_id
                for event in events
                if isinstance(event, (h2.events.StreamReset, h2.events.StreamEnded))
            }
            left -= len(streams)
        return left

    assert await asyncio.to_thread(wait) <= 0


# Answers that are not taken


@pytest.mark.parametrize("kind", ["inference", "variants", "health"])
async def test_unread_reply_is_counted_and_then_cancelled(kind, caplog):
    path, request = UNTAKEN[kind]
    async with serving(send_timeout_s=4.0) as server, raw(server, window=0) as client:
        await classify(server)  # gRPC holds on to its very first call
        for _ in range(20):
            client.open(path, request.SerializeToString())
        client.flush()
        await until(lambda: len(server.parts.grpc.unsent) == 20)
        assert server.snapshot().unsent_bytes >= 20 * CALL_BYTES
        assert server.snapshot().requests == 0
        await classify(server)  # and to the latest one
        with caplog.at_level(logging.WARNING):
            await ends(client, 20)
        await until(lambda: len(server.parts.grpc.unsent) == server.snapshot().unsent_bytes == 0)
        assert "send_timeout_s" in caplog.text


async def test_unread_replies_are_cancelled_oldest_first(caplog):
    async with (
        serving(max_send_bytes=MIB, send_timeout_s=60.0) as server,
        raw(server, window=0) as client,
    ):
        fitting = MIB // CALL_BYTES
        with caplog.at_level(logging.WARNING):
            for _ in range(4 * fitting):
                client.open(UNTAKEN["health"][0], b"")
            client.flush()
            await ends(client, 3 * fitting)
            await classify(server)
        assert server.snapshot().unsent_bytes <= MIB
        assert f"more than {MIB} bytes (max_send_bytes)" in caplog.text
    assert server.snapshot().unsent_bytes == 0


async def test_reading_client_loses_no_reply_to_one_that_does_not():
    async with (
        serving(max_send_bytes=MIB, send_timeout_s=60.0) as server,
        raw(server, window=0) as client,
    ):
        for _ in range(5):
            for _ in range(2 * MIB // CALL_BYTES):
                client.open(UNTAKEN["health"][0], b"")
            client.flush()
            await classify(server)


async def test_unknown_method_is_refused_and_counted():
    async with serving() as server, connected(server) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            await channel.unary_unary("/resnet50.v1.InferenceService/Guess")(b"")
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        await until(lambda: len(server.parts.grpc.unsent) == 0)


# Messages that do not arrive


async def test_idle_calls_take_no_permits_from_other_callers():
    async with (
        serving(max_requests=8, receive_timeout_s=60.0) as server,
        raw(server) as client,
    ):
        for _ in range(8):
            client.open(CLASSIFY)
        client.flush()
        receiving = server.parts.grpc.receiving
        await until(lambda: len(receiving) == 8)
        assert server.snapshot().requests == 0
        # As another caller would: the same address has the most, so its oldest call is ended.
        task = asyncio.create_task(receiving.read("another", asyncio.Event().wait))
        await ends(client, 1)
        assert len(receiving) == 8
        task.cancel()


async def test_one_callers_stalled_messages_leave_slots_to_others():
    limits = {"max_receive_bytes": 4 * MIB, "max_receive_bytes_per_caller": 2 * MIB}
    async with (
        serving(max_message_bytes=MIB, receive_timeout_s=60.0, **limits) as server,
        raw(server) as client,
    ):
        for _ in range(6):
            client.open(CLASSIFY)
        client.flush()
        receiving = server.parts.grpc.receiving
        await until(lambda: len(receiving) == 6)
        arrived = asyncio.Event()
        arrived.set()
        await asyncio.wait_for(receiving.read("another", arrived.wait), 30)


async def test_message_that_waits_too_long_is_refused_with_the_limit():
    limits = {"max_receive_bytes": MIB, "max_receive_bytes_per_caller": MIB}
    async with (
        serving(max_message_bytes=MIB, receive_timeout_s=0.5, **limits) as server,
        raw(server) as client,
        connected(server) as channel,
    ):
        client.open(CLASSIFY)
        client.flush()
        await until(lambda: server.snapshot().receiving == 1)
        server.parts.grpc.receiving.timeout_s = 0.05
        with pytest.raises(grpc.RpcError) as refused:
            await inference_pb2_grpc.InferenceServiceStub(channel).Classify(REQUEST)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert f"max_receive_bytes ({MIB})" in refused.value.details()


@pytest.mark.parametrize("path", [CLASSIFY, STREAM, UPLOAD])
async def test_call_that_is_not_read_from_is_held_back(path):
    """A second message is not read, nor the first one of a call that waits for a slot."""
    limits = {"max_receive_bytes": MIB, "max_receive_bytes_per_caller": MIB}
    async with serving(max_message_bytes=MIB, **limits) as server, raw(server) as client:
        client.open(CLASSIFY)  # holds the only slot
        client.flush()
        await until(lambda: server.snapshot().receiving == 1)
        stream = client.open(CLASSIFY)
        sent = await asyncio.to_thread(client.send, stream, message(bytes(MIB - 100)), 1.0)
        assert sent <= 2 * UNREAD_BYTES


async def test_upload_beyond_max_uploads_is_refused_before_it_is_sent():
    async with (
        serving(max_uploads=1) as server,
        raw(server) as client,
        connected(server) as channel,
    ):
        client.open(UPLOAD)
        client.flush()
        await until(lambda: server.snapshot().requests == 1)
        call = channel.stream_unary(UPLOAD)()
        with pytest.raises(grpc.RpcError) as refused:
            await call
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "max_uploads (1)" in refused.value.details()
        await classify(server)


# Decoding


async def test_no_more_pixels_are_decoded_at_once_than_allowed(monkeypatch):
    lock, decoding, most = threading.Lock(), 0, 0
    decode_pillow = resnet50_server.images.decode.decode_with_pillow

    def counted(*arguments):
        nonlocal decoding, most
        with lock:
            decoding += 1
            most = max(most, decoding)
        try:
            return decode_pillow(*arguments)
        finally:
            with lock:
                decoding -= 1

    monkeypatch.setattr(resnet50_server.images.decode, "decode_with_pillow", counted)
    image = image_pb2.Image(encoded=encode(photo_like(1500, 1000)))
    request = inference_pb2.ClassifyRequest(image=image)
    limits = {"max_image_pixels": 2_000_000, "max_decode_pixels": 2_000_000}
    async with (
        serving(decode_threads=4, **limits, **DECODING) as server,
        connected(server) as channel,
    ):
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        await asyncio.gather(*(stub.Classify(request) for _ in range(8)))
    assert most == 1
