"""Servers that come and go, and the calls that meet them then."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import hashlib
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import resnet50_client
import resnet50_server.parts
from resnet50.v1 import image_pb2, inference_pb2, inference_pb2_grpc, result_pb2
from resnet50_client import RetryPolicy
from resnet50_server.api.drain import QUIET_S
from resnet50_server.server import Server
from resnet50_server.settings import Settings
from tests.support.clients import Caller, items
from tests.support.pictures import encode, picture
from tests.support.serving import server_processes, serving, until

PNG = encode(picture())
LARGE = bytes(range(256)) * 20_000  # 20 chunks
QUICK = RetryPolicy(attempts=3, initial_backoff_s=0.01, max_backoff_s=0.01)


# A server that loads


@pytest.mark.parametrize("early", [True, False])
async def test_server_listens_while_it_loads_only_if_it_is_to(early, monkeypatch):
    load, loading, loaded = resnet50_server.parts.load_variant, asyncio.Event(), asyncio.Event()

    async def gated_load(*arguments):
        loading.set()
        await loaded.wait()
        return await load(*arguments)

    monkeypatch.setattr(resnet50_server.parts, "load_variant", gated_load)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = Server(
        Settings(
            listen=[f"127.0.0.1:{port}"],
            variants=["IMAGENET1K_V2"],
            engine="null",
            listen_while_loading=early,
        )
    )
    starting = asyncio.create_task(server.start())
    try:
        await loading.wait()
        refused = contextlib.nullcontext() if early else pytest.raises(ConnectionRefusedError)
        with refused:
            socket.create_connection(("127.0.0.1", port)).close()
        loaded.set()
        await starting
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            health = health_pb2_grpc.HealthStub(channel)
            reply = await health.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
    finally:
        await server.stop()


async def test_server_that_has_not_listened_yet_stops(monkeypatch):
    loading = asyncio.Event()

    async def never(*arguments):
        loading.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(resnet50_server.parts, "load_variant", never)
    server = Server(
        Settings(
            listen=["127.0.0.1:0"],
            variants=["IMAGENET1K_V2"],
            engine="null",
            listen_while_loading=False,
        )
    )
    starting = asyncio.create_task(server.start())
    await loading.wait()
    starting.cancel()
    await asyncio.wait([starting])
    await asyncio.wait_for(server.stop(), 60)
    assert server.addresses == []


# A server that stops


async def test_calls_during_stop_are_refused_as_unavailable():
    # gRPC by itself cancels most of them: those that it has not handed over yet.
    request = inference_pb2.ClassifyRequest(image=image_pb2.Image(encoded=PNG))
    with server_processes() as start:
        process = start("--variants", "IMAGENET1K_V2", "--engine", "null")
        address = process.wait_until_listening()
        async with grpc.aio.insecure_channel(address, [("grpc.enable_retries", 0)]) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            await stub.Classify(request, wait_for_ready=True)
            answered, busy = 0, asyncio.Event()

            async def call_until_it_fails() -> grpc.StatusCode:
                nonlocal answered
                while (code := await stub.Classify(request).code()) is grpc.StatusCode.OK:
                    answered += 1
                    if answered == 500:
                        busy.set()
                return code

            callers = [asyncio.create_task(call_until_it_fails()) for _ in range(100)]
            await busy.wait()
            process.process.send_signal(signal.SIGTERM)
            codes = set(await asyncio.gather(*callers))
        assert await asyncio.to_thread(process.process.wait, 60) == 0
    assert codes == {grpc.StatusCode.UNAVAILABLE}


async def test_calls_during_a_stop_while_loading_are_refused_as_unavailable():
    request = inference_pb2.ClassifyRequest(image=image_pb2.Image(encoded=PNG))
    with server_processes() as start:
        # Its warm-up does not end in the time of this test.
        process = start(
            *("--variants", "IMAGENET1K_V2", "--engine", "timed", "--timed-alpha-ms", "1000000")
        )
        line = ""
        while "accepting connections at" not in line:
            line = await asyncio.to_thread(process.process.stderr.readline)
        address = line.split()[-1]
        async with grpc.aio.insecure_channel(address, [("grpc.enable_retries", 0)]) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            refused, busy = 0, asyncio.Event()

            async def call_while_it_loads() -> grpc.StatusCode:
                nonlocal refused
                while "is still being loaded" in await (call := stub.Classify(request)).details():
                    refused += 1
                    if refused == 500:
                        busy.set()
                return await call.code()

            callers = [asyncio.create_task(call_while_it_loads()) for _ in range(100)]
            await busy.wait()
            process.process.send_signal(signal.SIGTERM)
            codes = set(await asyncio.gather(*callers))
        assert await asyncio.to_thread(process.process.wait, 60) == 0
    assert codes == {grpc.StatusCode.UNAVAILABLE}


async def test_calls_that_arrive_while_the_loop_is_stalled_are_refused_as_unavailable():
    # On a busy machine the loop runs late. When the pause that shows that no call comes any more is
    # over, those that came meanwhile have not been handed over, and gRPC would cancel them.
    request = inference_pb2.ClassifyRequest(image=image_pb2.Image(encoded=PNG))
    async with serving() as server:
        with grpc.insecure_channel(server.addresses[0], [("grpc.enable_retries", 0)]) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            await asyncio.to_thread(stub.Classify, request)
            rejecting = asyncio.create_task(server.reject_new())
            await until(lambda: server.snapshot().draining)
            calls = [stub.Classify.future(request) for _ in range(50)]
            time.sleep(5 * QUIET_S)
            await rejecting
            await server.stop()
            codes = [await asyncio.to_thread(call.code) for call in calls]
    assert set(codes) == {grpc.StatusCode.UNAVAILABLE}


# A client whose server goes away


class Leaving(inference_pb2_grpc.InferenceServiceServicer):
    """Ends every other call as a server does that goes away.

    Args:
        code: With which status.
    """

    def __init__(self, code: grpc.StatusCode) -> None:
        self._code = code
        self._details = "CANCELLED" if code is grpc.StatusCode.CANCELLED else "going away"
        self.calls = 0

    def begin(self, context) -> bool:
        """Count a call; return whether it is one to end."""
        self.calls += 1
        return self.calls % 2 == 1

    def leave(self, context) -> None:
        context.abort(self._code, self._details)

    def Classify(self, request, context):
        if self.begin(context):
            self.leave(context)
        return inference_pb2.ClassifyResponse(classification=result_pb2.Classification())

    def ClassifyUpload(self, parts, context):
        leaves = self.begin(context)
        options = next(parts).options
        content = b""
        for number, part in enumerate(parts):
            if leaves and number == 2:
                self.leave(context)
            content += part.chunk
        if hashlib.sha256(content).digest() != options.sha256:
            context.abort(grpc.StatusCode.DATA_LOSS, f"{len(content)} bytes")
        return inference_pb2.ClassifyResponse(classification=result_pb2.Classification())

    def ClassifyStream(self, parts, context):
        leaves = self.begin(context)
        next(parts)  # the config
        if leaves:
            self.leave(context)
        for part in parts:
            yield inference_pb2.ClassifyStreamResponse(
                frame_id=part.frame.frame_id, classification={}
            )


@contextlib.contextmanager
def leaving(code: grpc.StatusCode):
    servicer = Leaving(code)
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", servicer
    finally:
        server.stop(None).wait()


LOST = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED]


@pytest.mark.parametrize("code", LOST, ids=lambda code: code.name)
async def test_call_that_a_stopping_server_loses_is_made_again(kind, code):
    with leaving(code) as (address, servicer):
        async with Caller(kind, address, retry=QUICK) as client:
            await client.classify(PNG)
        assert servicer.calls == 2


@pytest.mark.parametrize("code", LOST, ids=lambda code: code.name)
async def test_upload_that_is_cut_is_sent_again_from_its_first_chunk(kind, code):
    # Often: gRPC's own retry loses chunks in one of some attempts.
    with leaving(code) as (address, servicer):
        async with Caller(kind, address, retry=QUICK) as client:
            for _ in range(20):
                await client.classify(LARGE)
        assert servicer.calls == 40


async def test_upload_is_sent_as_often_as_the_policy_says_and_no_more(kind):
    with leaving(grpc.StatusCode.UNAVAILABLE) as (address, servicer):
        servicer.begin = lambda context: True
        sent = []
        servicer.leave = lambda context: (sent.append(1), Leaving.leave(servicer, context))
        async with Caller(kind, address, retry=QUICK) as client:
            with pytest.raises(resnet50_client.UnavailableError, match="going away"):
                await client.classify(LARGE)
        assert len(sent) == 3


@pytest.mark.parametrize("code", LOST, ids=lambda code: code.name)
async def test_stream_that_a_stopping_server_loses_is_opened_again(kind, code):
    with leaving(code) as (address, servicer):
        async with Caller(kind, address, retry=QUICK) as client:
            answers = [one.frame_id async for one in items(client, "classify_stream", [PNG] * 3)]
        assert answers == [0, 1, 2]
        assert servicer.calls == 2


STOPPED_AT_ONCE = """
import asyncio, sys
import grpc
from tests.support.serving import connected, serving, until
from resnet50.v1 import inference_pb2, inference_pb2_grpc, result_pb2

async def main():
    for _ in range(100):
        async with serving(drain_timeout_s=0.0) as server, connected(server) as channel:
            method = channel.stream_unary("/resnet50.v1.InferenceService/Classify")
            calls = [method() for _ in range(4)]  # whose requests do not come
            await until(lambda: server.snapshot().receiving >= 4)
            for call in calls:
                call.cancel()
            await until(lambda: not server.snapshot().receiving)

asyncio.run(main())
"""


def test_server_that_has_no_time_to_drain_does_not_crash():
    # Of two `stop`s of grpc.aio whose time is up together, one cancels the calls of a server that
    # the other has destroyed. A crash ends the process, so it is another one.
    root = Path(__file__).parents[3]
    ran = subprocess.run(
        [sys.executable, "-c", STOPPED_AT_ONCE],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
