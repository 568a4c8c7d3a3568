"""More than the server can do, and callers that stall: what the others notice, what is left."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Awaitable

import grpc

import resnet50_server.images.decode
import resnet50_server.inference.pipeline
from resnet50.v1 import image_pb2, inference_pb2, inference_pb2_grpc
from resnet50_client import AsyncClient, OverloadedError
from tests.support.pictures import encode, photo_like, picture
from tests.support.scrape import ON, scrape_once
from tests.support.serving import connected, gate, serving, until

PNG = encode(picture())
REQUEST = inference_pb2.ClassifyRequest(image=image_pb2.Image(encoded=PNG))
TIMED = {"engine": "timed", "timed_alpha_ms": 5.0, "timed_beta_ms": 1.0, "max_batch_size": 8}


def empty(server) -> bool:
    found = server.snapshot()
    return not (
        found.requests
        or found.bytes
        or found.streams
        or found.receiving
        or server.parts.admission.callers
        or any(variant.pending or variant.requests for variant in found.variants)
    )


async def code_of(call: Awaitable) -> str:
    """Return the name of the status code that a call ends with."""
    try:
        await call
    except grpc.RpcError as error:
        return error.code().name
    return "OK"


async def test_overload_is_answered_or_refused_without_leaks():
    limits = {"max_queue_size": 16, "max_requests": 64}
    async with serving(**TIMED, **limits) as server, AsyncClient(server.addresses[0]) as client:
        outcomes: collections.Counter[str] = collections.Counter()

        async def call() -> None:
            try:
                await client.classify(PNG)
                outcomes["answered"] += 1
            except OverloadedError as error:
                assert error.retry_after_s is not None
                assert error.retry_after_s > 0
                outcomes["refused"] += 1

        # Three times what is inside at once, again and again.
        opened = gate(server)
        try:
            calls = [asyncio.create_task(call()) for _ in range(192)]
            await until(lambda: outcomes["refused"])  # however slowly they come
        finally:
            opened.set()
        await asyncio.gather(*calls)
        for _ in range(2):
            await asyncio.gather(*(call() for _ in range(192)))
        assert outcomes.total() == 3 * 192
        assert min(outcomes["answered"], outcomes["refused"]) > 0
        await until(lambda: empty(server))
        # And all is well again.
        await call()
        assert outcomes["answered"] + outcomes["refused"] == 3 * 192 + 1


async def test_unreachable_deadlines_are_refused_the_rest_met():
    slower = TIMED | {"timed_beta_ms": 16.0}  # 5 s for all
    async with serving(**slower) as server, connected(server) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        calls = (code_of(stub.Classify(REQUEST, timeout=2.5)) for _ in range(300))
        codes = collections.Counter(await asyncio.gather(*calls))
        assert set(codes) <= {"OK", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}
        assert codes["OK"] > 0
        assert codes["OK"] < 300
        await until(lambda: empty(server))


async def test_hopeless_requests_are_refused_before_decoding(monkeypatch):
    decoded: list[object] = []

    def decode(*arguments, **options):
        decoded.append(arguments)
        return resnet50_server.images.decode.decode(*arguments, **options)

    monkeypatch.setattr(resnet50_server.inference.pipeline, "decode", decode)
    photo = inference_pb2.ClassifyRequest(
        image=image_pb2.Image(encoded=encode(photo_like(512, 384), "JPEG"))
    )
    timed = {"engine": "timed", "timed_alpha_ms": 400.0, "max_batch_size": 1}
    async with serving(**timed, **ON) as server, connected(server) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        first = await code_of(stub.Classify(photo, timeout=5.0))  # shows how long the engine takes
        calls = (code_of(stub.Classify(photo, timeout=5.0)) for _ in range(100))
        codes = collections.Counter([first, *await asyncio.gather(*calls)])
        await until(lambda: empty(server))
        found = await scrape_once(
            server, lambda scrape: sum(scrape.of("resnet50_requests_total", "code").values()) == 101
        )
    shed = found.of("resnet50_shed_total", "limit")
    # In 5 s there is time for twelve; a loaded machine may have decoded one in vain.
    assert set(shed) <= {"deadline", "deadline_later"}
    assert shed["deadline"] >= 101 - 13
    assert len(decoded) == 101 - shed["deadline"]
    assert codes["DEADLINE_EXCEEDED"] == 101 - codes["OK"]


async def test_stalled_callers_hold_up_nobody_and_are_let_go():
    settings = {"receive_timeout_s": 60.0, "upload_idle_timeout_s": 60.0}
    async with serving(**TIMED, **settings) as server:
        address = server.addresses[0]
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(8)]
        calls = []
        for channel in channels:  # eight of each kind; the connections are idle besides
            await channel.channel_ready()
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            upload = stub.ClassifyUpload()
            part = inference_pb2.ClassifyUploadRequest(
                options=inference_pb2.ClassifyUploadOptions()
            )
            await upload.write(part)
            await upload.write(inference_pb2.ClassifyUploadRequest(chunk=PNG[: len(PNG) // 2]))
            calls.append(upload)
            calls.append(
                channel.stream_unary("/resnet50.v1.InferenceService/Classify")()
            )  # whose request never comes
            stream = stub.ClassifyStream()
            wanted = inference_pb2.ClassifyOptions(top_k=1000, include_embedding=True)
            config = inference_pb2.ClassifyStreamConfig(options=wanted)
            await stream.write(inference_pb2.ClassifyStreamRequest(config=config))
            for number in range(8):  # 30 KB each, and not one is read
                frame = inference_pb2.Frame(frame_id=number, image=REQUEST.image)
                await stream.write(inference_pb2.ClassifyStreamRequest(frame=frame))
            calls.append(stream)
        await until(lambda: server.snapshot().streams == 8)
        async with AsyncClient(address) as client:
            for _ in range(20):
                assert (await client.classify(PNG, timeout_s=30.0)).timing.batch_size >= 1
        assert server.snapshot().requests >= 8
        assert server.snapshot().receiving == 8
        for call in calls:
            call.cancel()
        await until(lambda: empty(server))
        for channel in channels:
            await channel.close()
