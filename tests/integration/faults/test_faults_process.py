"""Faults of a server as a process: signals, another time of day, sockets that others left."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import grpc
import numpy as np
import pytest

from resnet50.v1 import image_pb2, inference_pb2, inference_pb2_grpc
from resnet50_client import Client, RetryPolicy
from resnet50_server.cli.main import main
from tests.support.clients import KINDS, Caller, items
from tests.support.faults import JumpingClock
from tests.support.pictures import encode, picture
from tests.support.serving import DECODING, gate, server_processes, serving, until, until_result

PNG = encode(picture())
REQUEST = inference_pb2.ClassifyRequest(image=image_pb2.Image(encoded=PNG))
StreamRequest = inference_pb2.ClassifyStreamRequest
UploadRequest = inference_pb2.ClassifyUploadRequest
# Decoders stop at the picture's end; the rest makes it an upload of some chunks.
LARGE = PNG + os.urandom(5 * 2**20)
OK, UNAVAILABLE = grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE
NULL = ("--variants", "IMAGENET1K_V2", "--engine", "null")
DAY_S = 24 * 3600


# SIGTERM


class Load:
    """Calls of every kind, each in another place of the server when the signal comes."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = inference_pb2_grpc.InferenceServiceStub(channel)

    def unary(self, count: int) -> list[grpc.aio.Call]:
        return [self._stub.Classify(REQUEST) for _ in range(count)]

    async def half_an_upload(self) -> grpc.aio.Call:
        call = self._stub.ClassifyUpload()
        options = inference_pb2.ClassifyUploadOptions()
        await call.write(UploadRequest(options=options))
        await call.write(UploadRequest(chunk=PNG[: len(PNG) // 2]))
        return call

    async def stream(self, delivery: int, frames: int) -> grpc.aio.Call:
        call = self._stub.ClassifyStream()
        config = inference_pb2.ClassifyStreamConfig(delivery=delivery)
        await call.write(StreamRequest(config=config))
        for number in range(frames):
            frame = inference_pb2.Frame(frame_id=number, image=REQUEST.image)
            await call.write(StreamRequest(frame=frame))
        return call


async def frames_of(call: Any) -> list[int]:
    """Return the frames that a stream answers, until it ends."""
    answered = []
    try:
        async for reply in call:
            answered.append(reply.frame_id)
    except grpc.aio.AioRpcError:
        pass
    return answered


@pytest.mark.parametrize("stuck", [False, True], ids=["engine works", "engine hangs"])
async def test_stop_under_load_answers_or_refuses_every_call(stuck):
    """In a batch, in the queue, decoded, half sent, in streams of both kinds."""
    drain_timeout_s = 0.5 if stuck else 30.0
    async with serving(
        **DECODING, max_batch_size=2, decode_threads=1, drain_timeout_s=drain_timeout_s
    ) as server:
        opened = gate(server)
        async with grpc.aio.insecure_channel(
            server.addresses[0], [("grpc.enable_retries", 0)]
        ) as channel:
            load = Load(channel)
            accepted = load.unary(6)
            await until(lambda: server.snapshot().requests == 6)
            upload = await load.half_an_upload()
            await until(lambda: server.snapshot().requests == 7)
            ordered = await load.stream(inference_pb2.DELIVERY_ORDERED, 3)
            await until(lambda: server.snapshot().requests == 10)
            latest = await load.stream(inference_pb2.DELIVERY_LATEST, 3)
            await until(lambda: server.snapshot().requests > 10)
            reading = [asyncio.create_task(frames_of(call)) for call in (ordered, latest)]
            turning_away = asyncio.create_task(server.reject_new())
            await until(lambda: server.snapshot().draining)
            late = load.unary(3)
            assert {await call.code() for call in late} == {UNAVAILABLE}
            await turning_away
            stopping = asyncio.create_task(server.stop())
            if not stuck:
                opened.set()
                await upload.write(UploadRequest(chunk=PNG[len(PNG) // 2 :]))
                await upload.done_writing()
            codes = [await call.code() for call in (*accepted, upload)]
            streams = [await call.code() for call in (ordered, latest)]
            frames = [await one for one in reading]
        if stuck:
            opened.set()
        await asyncio.wait_for(stopping, 60)
    # Streams end after their accepted frames, and resume elsewhere.
    assert set(streams) == {UNAVAILABLE}
    assert set(codes) == {UNAVAILABLE if stuck else OK}
    assert stuck or frames[0] == [0, 1, 2]


# SIGKILL


async def test_killed_server_fails_no_upload_stream_or_list():
    """Of three servers one is killed under a client of each kind; the rest does the work."""
    arguments = ("--variants", "IMAGENET1K_V2", "--engine", "timed", "--timed-alpha-ms", "3")
    retry = RetryPolicy(attempts=5, initial_backoff_s=0.05)
    with server_processes() as start:
        processes = [start(*arguments) for _ in range(len(KINDS) + 1)]
        addresses = [one.wait_until_listening() for one in processes]
        for kind in KINDS:
            victim = processes.pop(0)
            async with Caller(kind, addresses, retry=retry) as client:
                await asyncio.gather(*(client.classify(PNG) for _ in range(6)))
                answered = [0]

                async def counted(name: str, images: list, answered=answered, client=client):
                    results = []
                    async for one in items(client, name, images):
                        results.append(one)
                        answered[0] += 1
                    return results

                work = asyncio.gather(
                    counted("classify_stream", [PNG] * 200),
                    counted("classify_many", [PNG] * 200),
                    counted("classify_stream", [np.full((1, 1), 7, dtype=np.uint8)] * 200),
                    *(client.classify(LARGE) for _ in range(6)),
                )
                await until(lambda answered=answered: answered[0] > 60)
                victim.process.kill()
                ordered, many, other, *uploads = await work
            for stream in (ordered, other):
                assert [one.frame_id for one in stream] == list(range(200))
                assert all(one.result is not None for one in stream)
            assert len(many) == 200
            assert not [one for one in many if isinstance(one, Exception)]
            assert [len(one) for one in uploads] == [5] * 6
            addresses = addresses[1:]


# Sockets


def test_socket_that_a_killed_server_left_is_taken_over(tmp_path):
    address = f"unix:{tmp_path}/server.sock"
    arguments = ("--listen", address, *NULL)
    with server_processes() as start:
        first = start(*arguments)
        with Client(address) as client:
            client.wait_until_ready(timeout_s=60)
            first.process.kill()
            first.process.wait()
            assert (tmp_path / "server.sock").exists()
            start(*arguments)
            client.wait_until_ready(timeout_s=60)
            assert len(client.classify(PNG)) == 5


# The time of day


async def test_clock_jumps_disturb_no_calls_streams_or_file_watches(tmp_path, capsys):
    clock, tokens = JumpingClock(tmp_path), tmp_path / "tokens.toml"

    def new(name: str) -> str:
        assert main(["tokens", "new", name, "--file", str(tokens)]) == 0
        return capsys.readouterr().out.strip()

    secrets = [new("first")]
    with server_processes() as start:
        server = start(
            *("--variants", "IMAGENET1K_V2", "--engine", "timed", "--timed-alpha-ms", "2"),
            *("--tokens-file", str(tokens), "--drain-timeout-s", "30"),
            environment=clock.environment,
        )
        address = await asyncio.to_thread(server.wait_until_listening)
        bearer = [("authorization", f"Bearer {secrets[0]}")]
        async with grpc.aio.insecure_channel(address) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            stream = stub.ClassifyStream(metadata=bearer)
            await stream.write(StreamRequest(config=inference_pb2.ClassifyStreamConfig()))
            frame_id = 0

            async def frame() -> None:
                nonlocal frame_id
                frame = inference_pb2.Frame(frame_id=frame_id, image=REQUEST.image)
                await stream.write(StreamRequest(frame=frame))
                assert (await stream.read()).frame_id == frame_id
                frame_id += 1

            await frame()
            for ahead_s in (DAY_S, 0, -DAY_S, 365 * DAY_S, 0):
                upload = stub.ClassifyUpload(metadata=bearer)
                await upload.write(UploadRequest(options=inference_pb2.ClassifyUploadOptions()))
                await upload.write(UploadRequest(chunk=PNG[: len(PNG) // 2]))
                under_way = [stub.Classify(REQUEST, metadata=bearer, timeout=20) for _ in range(20)]
                clock.jump(ahead_s)
                # Calls that were in flight, with their deadlines and pauses.
                assert [await call.code() for call in under_way] == [OK] * 20
                await frame()
                await upload.write(UploadRequest(chunk=PNG[len(PNG) // 2 :]))
                await upload.done_writing()
                assert await upload.code() is OK
                # New calls.
                call = stub.Classify(REQUEST, metadata=bearer, timeout=20)
                assert await call.code() is OK
                call = stub.Classify(REQUEST, metadata=bearer, timeout=1e-4)
                assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
                # A file that changes is seen.
                secrets.append(new(f"after-{len(secrets)}"))
                newest = [("authorization", f"Bearer {secrets[-1]}")]

                await until_result(
                    lambda metadata=newest: stub.Classify(REQUEST, metadata=metadata).code(),
                    lambda code: code is OK,
                )
            await stream.done_writing()
        status, errors = await asyncio.to_thread(server.terminate)
    assert status == 0, errors
    assert "Traceback" not in errors
