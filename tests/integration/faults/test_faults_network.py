"""Connections that break during a call: the server releases them, the SDK resumes or fails."""

from __future__ import annotations

import asyncio
import os

import grpc
import pytest

import resnet50_server.api.listen
from resnet50.v1 import image_pb2, inference_pb2, inference_pb2_grpc
from resnet50_client import DeadlineExceededError, RetryPolicy, _channels
from tests.support.clients import Caller, items
from tests.support.faults import line_to
from tests.support.pictures import encode, picture
from tests.support.serving import gate, serving, until

PNG = encode(picture())
# Decoders stop at the picture's end; the rest makes it an upload of some chunks.
LARGE = PNG + os.urandom(6 * 2**20)
QUICK = RetryPolicy(attempts=4, initial_backoff_s=0.01, max_backoff_s=0.05)


def empty(server) -> bool:
    found = server.snapshot()
    return (found.requests, found.bytes, found.streams) == (0, 0, 0)


async def test_connection_cut_during_an_upload_fails_no_call(kind):
    async with serving() as server, line_to(server.addresses[0]) as line:
        async with Caller(kind, line.address, retry=QUICK) as client:
            await client.classify(PNG)
            for number in range(3):
                line.cut_at = line.sent + 2 * 2**20
                assert len(await client.classify(LARGE)) == 5
                assert line.connections == number + 2
        await until(lambda: empty(server))


async def test_line_that_is_cut_under_a_stream_costs_no_frame(kind):
    async with serving(engine="timed", timed_alpha_ms=2) as server:
        async with (
            line_to(server.addresses[0]) as line,
            Caller(kind, line.address, retry=QUICK) as client,
        ):
            answers = []
            async for answer in items(client, "classify_stream", [PNG] * 300):
                answers.append(answer)
                if len(answers) in (50, 150):
                    line.cut()
            assert line.connections == 3
        await until(lambda: empty(server))
    assert [answer.frame_id for answer in answers] == list(range(300))
    assert all(answer.result is not None for answer in answers)


async def test_connection_cut_during_compute_releases_the_permit():
    async with serving() as server, line_to(server.addresses[0]) as line:
        opened = gate(server)
        async with grpc.aio.insecure_channel(line.address, [("grpc.enable_retries", 0)]) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            request = inference_pb2.ClassifyRequest(image=image_pb2.Image(encoded=PNG))
            calls = [stub.Classify(request) for _ in range(4)]
            await until(lambda: server.snapshot().requests == 4)
            line.cut()
            codes = {await call.code() for call in calls}
            # Long before the batch ends.
            await until(lambda: server.snapshot().requests <= 1)
        opened.set()
        await until(lambda: empty(server))
    assert codes == {grpc.StatusCode.UNAVAILABLE}


async def test_caller_on_a_silent_line_is_told_by_its_deadline(kind):
    async with (
        serving() as server,
        line_to(server.addresses[0]) as line,
        Caller(kind, line.address, retry=QUICK) as client,
    ):
        await client.classify(PNG)
        line.silence()
        with pytest.raises(DeadlineExceededError):
            await client.classify(PNG, timeout_s=0.3)
        with pytest.raises(DeadlineExceededError):
            await client.classify(LARGE, timeout_s=0.3)


async def test_server_notices_a_silent_line_and_lets_its_callers_go(monkeypatch):
    """By keepalive, which is 60 s and 20 s unless told otherwise; here a second each."""
    monkeypatch.setattr(resnet50_server.api.listen, "KEEPALIVE_TIMEOUT_S", 1)
    async with (
        serving(keepalive_s=1.0) as server,
        line_to(server.addresses[0]) as line,
        grpc.aio.insecure_channel(line.address) as channel,
    ):
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        upload = stub.ClassifyUpload()
        options = inference_pb2.ClassifyUploadOptions()
        await upload.write(inference_pb2.ClassifyUploadRequest(options=options))
        stream = stub.ClassifyStream()
        config = inference_pb2.ClassifyStreamConfig()
        await stream.write(inference_pb2.ClassifyStreamRequest(config=config))
        await until(lambda: (server.snapshot().requests, server.snapshot().streams) == (1, 1))
        line.silence()
        # Within a minute, which is what gRPC would take by itself.
        await asyncio.wait_for(until(lambda: empty(server)), 30)
        upload.cancel()
        stream.cancel()


async def test_stream_on_a_silent_line_goes_on_over_another_one(kind, monkeypatch):
    """As soon as keepalive says so: after 35 s unless told otherwise, here after two."""
    usual = _channels.channel_options
    quick = dict.fromkeys(
        ("grpc.keepalive_time_ms", "grpc.keepalive_timeout_ms", "grpc.http2.ping_timeout_ms"), 1000
    )
    monkeypatch.setattr(
        _channels,
        "channel_options",
        lambda: [(name, quick.get(name, value)) for name, value in usual()],
    )
    async with (
        serving(engine="timed", timed_alpha_ms=2) as server,
        line_to(server.addresses[0]) as one,
        line_to(server.addresses[0]) as other,
        Caller(kind, [one.address, other.address], retry=QUICK) as client,
    ):
        answers = []
        async for answer in items(client, "classify_stream", [PNG] * 200):
            answers.append(answer)
            if len(answers) == 50:
                silent_at = asyncio.get_running_loop().time()
                max(one, other, key=lambda line: line.sent).silence()
        # gRPC by itself would have waited for a minute.
        assert asyncio.get_running_loop().time() - silent_at < 30
    assert [answer.frame_id for answer in answers] == list(range(200))
    assert all(answer.result is not None for answer in answers)
