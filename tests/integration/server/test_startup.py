from __future__ import annotations

import asyncio
import gc
import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import resnet50_server.inference.pipeline
import resnet50_server.lifecycle.engine_builder
import resnet50_server.lifecycle.loader
import resnet50_server.parts
from resnet50.v1 import (
    inference_pb2,
    inference_pb2_grpc,
    variant_pb2,
    variant_pb2_grpc,
)
from resnet50_server.api.grpc_server import SERVICES
from resnet50_server.batching.queue import VariantQueue
from resnet50_server.cli.serve import serve
from resnet50_server.runtime import streams
from resnet50_server.server import Server
from resnet50_server.settings import Settings
from tests.support import weights
from tests.support.gated_server import SERVING, classify, gated, health
from tests.support.serving import (
    connected,
    engines_of,
    server_processes,
    serving,
    until,
)

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def serve_and_flush(settings: Settings) -> int:
    """Run a server that ends by itself; return once a thread has written its last lines."""
    code = await serve(settings)
    assert streams.flush(60)
    return code


async def alive(channel: grpc.aio.Channel) -> bool:
    request = health_pb2.HealthCheckRequest(service="grpc.health.v1.Health")
    return (await health_pb2_grpc.HealthStub(channel).Check(request)).status == SERVING


async def listed(channel: grpc.aio.Channel) -> dict[str, variant_pb2.Variant]:
    stub = variant_pb2_grpc.VariantServiceStub(channel)
    reply = await stub.ListVariants(variant_pb2.ListVariantsRequest())
    return {variant.name: variant for variant in reply.variants}


# While weights load


async def test_loading_server_listens_and_turns_healthy_when_done(monkeypatch):
    load = resnet50_server.parts.load_variant
    arrived, gates = asyncio.Queue(), {"IMAGENET1K_V1": asyncio.Event(), "x": asyncio.Event()}

    async def gated_load(settings, devices, spec, *arguments):
        await arrived.put(spec.name)
        await gates[spec.name].wait()
        return await load(settings, devices, spec, *arguments)

    monkeypatch.setattr(resnet50_server.parts, "load_variant", gated_load)
    server = Server(
        Settings(listen=["127.0.0.1:0"], variants=["IMAGENET1K_V1", "x=random:0"], engine="null")
    )
    starting = asyncio.create_task(server.start())
    try:
        assert await arrived.get() == "IMAGENET1K_V1"
        async with connected(server) as channel:
            assert await health(channel) == {NOT_SERVING}
            assert await alive(channel)
            states = {name: variant.state for name, variant in (await listed(channel)).items()}
            assert set(states.values()) == {variant_pb2.VARIANT_STATE_LOADING}
            for name in ("IMAGENET1K_V1", "x"):
                with pytest.raises(grpc.RpcError) as refused:
                    await classify(channel, name)
                assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
                assert f"variant {name} is still being loaded" in refused.value.details()

            gates["IMAGENET1K_V1"].set()
            assert await arrived.get() == "x"
            states = {name: variant.state for name, variant in (await listed(channel)).items()}
            assert states == {
                "IMAGENET1K_V1": variant_pb2.VARIANT_STATE_READY,
                "x": variant_pb2.VARIANT_STATE_LOADING,
            }
            assert (await classify(channel)).variant.name == "IMAGENET1K_V1"
            assert await health(channel) == {NOT_SERVING}

            gates["x"].set()
            await starting
            assert await health(channel) == {SERVING}
            assert (await listed(channel))["x"].state == variant_pb2.VARIANT_STATE_READY
            assert (await classify(channel, "x")).variant.name == "x"
    finally:
        starting.cancel()
        await server.stop()


async def test_random_variant_is_served_as_untrained():
    async with (
        serving(variants=["x=random:0"], engine="torch", device="cpu", max_batch_size=1) as server,
        connected(server) as channel,
    ):
        variant = (await listed(channel))["x"]
    assert not variant.trained
    assert "Untrained" in variant.description
    assert (variant.engine, variant.device, variant.precision) == ("torch", "cpu", "fp32")
    assert variant.parameter_count == 25_557_032
    assert variant.embedding_space == f"x@{variant.digest[:12]}"


# Settings that cannot be served


def test_real_process_that_cannot_serve_exits_with_one_message(tmp_path):
    unfit = weights.custom_variant(tmp_path / "unfit", weights.hollow(7))
    half = weights.custom_variant(tmp_path / "half", weights.hollow(10))
    whole = (half / "weights.pth").read_bytes()
    (half / "weights.pth").write_bytes(whole[: len(whole) // 2])
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    with taken, server_processes() as start:
        failing = {
            "'IMAGENET1K_V9' is not one of torchvision's": start("--variants", "IMAGENET1K_V9"),
            "fc has 7 classes": start("--variants", f"mine={unfit}", "--device", "cpu"),
            f"half: {half}/weights.pth was refused: it is broken": start(
                *("--variants", f"half={half}", "--device", "cpu"),
            ),
            f"cannot listen on 127.0.0.1:{port}: Address already in use; stop the process": start(
                *("--listen", f"127.0.0.1:{port}"),
                *("--variants", "IMAGENET1K_V2", "--engine", "null"),
            ),
        }
        for reason, process in failing.items():
            output, errors = process.process.communicate(timeout=120)
            assert process.process.returncode == 1, errors
            assert output == ""
            (message,) = [line for line in errors.splitlines() if "resnet50-server:" in line]
            assert reason in message
            assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"variants": ["a=random:0", "a=random:1"]}, "variants: a is given twice"),
        ({"default_variant": "b"}, "default_variant: 'b' is not one of --variants"),
        (
            {"precision": "int8", "engine": "torch"},
            "engine: torch does not compute int8 of these weights",
        ),
        ({"device": "cuda:99"}, "device: cuda:99 was asked for"),
        (
            {"listen": ["unix:/no/such/directory/socket"]},
            "unix:/no/such/directory/socket: No such file or directory; create the socket's folder",
        ),
        (
            {"listen": ["192.0.2.1:0"], "allow_plaintext": True},
            "192.0.2.1:0: Cannot assign requested address; use an address of this machine",
        ),
    ],
    ids=str,
)
async def test_server_that_cannot_start_says_why_and_returns_one(capsys, settings, reason):
    defaults = {"listen": ["127.0.0.1:0"], "variants": ["a=random:0"], "engine": "torch"}
    assert await serve_and_flush(Settings(**defaults | settings)) == 1
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("resnet50-server: ")
    assert reason in errors
    assert errors.count("\n") == 1


async def test_weights_whose_answers_are_not_finite_are_refused(capsys, tmp_path):
    # Each number of the checkpoint is finite, but their product through fifty layers is not.
    directory = weights.custom_variant(tmp_path / "mine", weights.hollow())
    settings = Settings(
        listen=["127.0.0.1:0"], variants=[f"mine={directory}"], device="cpu", max_batch_size=1
    )
    assert await serve_and_flush(settings) == 1
    said = "mine: PyTorch's float32 output for a fixed image contains NaN or infinity"
    assert said in capsys.readouterr().err


# Where it listens


async def test_server_answers_on_each_address_and_unix_socket(tmp_path):
    address = f"unix:{tmp_path}/s"
    async with serving(listen=["127.0.0.1:0", address]) as server:
        assert server.addresses[0].startswith("127.0.0.1:")
        assert not server.addresses[0].endswith(":0")
        assert server.addresses[1] == address
        for target in server.addresses:
            async with grpc.aio.insecure_channel(target) as channel:
                assert (await classify(channel)).timing.batch_size == 1


# A server error


async def test_broken_scheduler_refuses_calls_and_exits(monkeypatch, tmp_path):
    def broken(queue: VariantQueue, limit: int, now: float, free_at: float) -> None:
        raise RuntimeError("secret")

    address = f"unix:{tmp_path}/s"
    running = asyncio.create_task(
        serve(Settings(listen=[address], variants=["IMAGENET1K_V2"], engine="null"))
    )
    async with grpc.aio.insecure_channel(address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(), wait_for_ready=True
        )
        while (await watch.read()).status != SERVING:
            pass
        monkeypatch.setattr(VariantQueue, "take_batch", broken)
        call = classify(channel)
        assert await call.code() is grpc.StatusCode.UNAVAILABLE  # another server may compute it
        assert "secret" not in await call.details()
        assert (await watch.read()).status == NOT_SERVING
        watch.cancel()
    assert await running == 70


async def test_garbage_is_not_looked_for_in_what_was_loaded(monkeypatch, tmp_path):
    """It would stop the server for 0.2 s now and then (docs/adr/0011-batch-prefetching.md)."""
    frozen = asyncio.Event()
    monkeypatch.setattr(gc, "freeze", frozen.set)
    running = asyncio.create_task(
        serve(Settings(listen=[f"unix:{tmp_path}/s"], variants=["IMAGENET1K_V2"], engine="null"))
    )
    await frozen.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    assert await running == 0


async def test_garbage_is_looked_for_from_the_first_variant_on(monkeypatch, tmp_path):
    """Others may load for minutes while it answers, and errors of gRPC are circles."""
    loads, released = resnet50_server.lifecycle.loader.prepare_variant, threading.Event()
    frozen = asyncio.Event()

    def prepare(spec, settings):
        if spec.name == "IMAGENET1K_V1":
            released.wait(60)
        return loads(spec, settings)

    monkeypatch.setattr(resnet50_server.lifecycle.loader, "prepare_variant", prepare)
    monkeypatch.setattr(gc, "freeze", frozen.set)
    address = f"unix:{tmp_path}/s"
    settings = Settings(
        listen=[address], variants=["IMAGENET1K_V2", "IMAGENET1K_V1"], engine="null"
    )
    gc.disable()  # as the command does
    try:
        running = asyncio.create_task(serve(settings))
        await frozen.wait()
        assert gc.isenabled()
        assert not released.is_set()  # the other one is still being loaded
    finally:
        gc.enable()
        released.set()
    os.kill(os.getpid(), signal.SIGTERM)
    assert await running == 0


class StallingDownload(http.server.BaseHTTPRequestHandler):
    """Promises a file and never sends it."""

    asked = threading.Event()
    released = threading.Event()

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.asked.set()
        self.released.wait(60)

    def log_message(self, *_: object) -> None:
        pass


def test_sigterm_ends_a_server_that_is_still_downloading(tmp_path):
    script = (
        "import sys; from resnet50_server.variants.official import official_facts;"
        " from resnet50_server.cli.main import run;"
        " official_facts()['variants']['IMAGENET1K_V2']['url'] = sys.argv.pop(1); run()"
    )
    arguments = ["serve", "--listen", "127.0.0.1:0", "--variants", "IMAGENET1K_V2"]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), StallingDownload) as peer:
        threading.Thread(target=peer.serve_forever).start()
        url = f"http://127.0.0.1:{peer.server_port}/resnet50-11ad3fa6.pth"
        process = subprocess.Popen(
            [sys.executable, "-c", script, url, *arguments, "--weights-dir", str(tmp_path)],
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert StallingDownload.asked.wait(60)
            process.terminate()
            _, errors = process.communicate(timeout=20)
        finally:
            process.kill()
            process.communicate()
            StallingDownload.released.set()
            peer.shutdown()
    assert process.returncode == 0, errors
    assert "while loading" in errors


async def test_stop_during_a_load_answers_in_flight_requests(monkeypatch):
    """The first variant answers while the second one is still being loaded."""
    load, second = resnet50_server.parts.load_variant, asyncio.Event()
    entered, gate = asyncio.Event(), threading.Event()
    loop, started = asyncio.get_running_loop(), []

    async def slow_load(*arguments):
        if started:
            await second.wait()  # for ever
        opened = await load(*arguments)
        started.append(opened.spec)
        return opened

    monkeypatch.setattr(resnet50_server.parts, "load_variant", slow_load)
    servers, start = [], Server.start

    async def watched_start(server):
        servers.append(server)
        await start(server)

    monkeypatch.setattr(Server, "start", watched_start)
    settings = Settings(
        listen=["127.0.0.1:0"], variants=["IMAGENET1K_V1", "IMAGENET1K_V2"], engine="null"
    )
    serving_task = asyncio.create_task(serve(settings))
    await until(lambda: started and servers[0].addresses)
    async with grpc.aio.insecure_channel(servers[0].addresses[0]) as channel:
        await classify(channel, "IMAGENET1K_V1", wait_for_ready=True)

        (engine,) = engines_of(servers[0])
        run = engine.run

        def gated(*arguments):
            loop.call_soon_threadsafe(entered.set)
            gate.wait(60)
            return run(*arguments)

        monkeypatch.setattr(engine, "run", gated)
        call = classify(channel, "IMAGENET1K_V1")
        await entered.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        await until(lambda: servers[0].snapshot().draining)
        gate.set()
        assert (await call).variant.name == "IMAGENET1K_V1"
    assert await serving_task == 0


async def test_draining_server_is_not_serving_while_calls_end(monkeypatch):
    async with gated(monkeypatch) as (server, engine), connected(server) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        names = ("", *SERVICES)
        watches = [stub.Watch(health_pb2.HealthCheckRequest(service=name)) for name in names]
        assert {(await watch.read()).status for watch in watches} == {SERVING}
        call = asyncio.ensure_future(classify(channel))
        await until(lambda: engine.batches)
        stopping = asyncio.create_task(server.stop())
        assert {(await watch.read()).status for watch in watches} == {NOT_SERVING}
        assert not call.done()
        engine.gate.set()
        assert (await call).variant.name == "IMAGENET1K_V2"
        await stopping


async def test_health_watch_does_not_delay_the_drain():
    async with serving(drain_timeout_s=600) as server, connected(server) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        await asyncio.wait_for(server.stop(), 60)


class Fail(Exception):
    """As onnxruntime's errors: no kin of RuntimeError."""


@pytest.mark.parametrize(
    ("error", "traced"), [(MemoryError("97 MiB"), False), (Fail("an unexpected error"), True)]
)
async def test_whatever_a_load_raises_ends_the_start_with_one_line(
    error, traced, monkeypatch, capsys, caplog
):
    def prepare(*_):
        raise error

    monkeypatch.setattr(resnet50_server.lifecycle.loader, "prepare_variant", prepare)
    settings = Settings(listen=["127.0.0.1:0"], variants=["IMAGENET1K_V2"], engine="null")
    assert await serve_and_flush(settings) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"resnet50-server: cannot load and warm up: {type(error).__name__}")
    assert any(record.exc_info for record in caplog.records) is traced


async def test_unix_socket_of_a_running_server_is_not_taken_away(tmp_path, capsys):
    address = f"unix:{tmp_path}/r.sock"
    async with serving(listen=[address]) as server, connected(server) as channel:
        second = Settings(listen=[address], variants=["IMAGENET1K_V2"], engine="null")
        assert await serve_and_flush(second) == 1
        assert "another server does" in capsys.readouterr().err
        await classify(channel)


def test_second_signal_ends_the_drain():
    with server_processes() as start:
        process = start("--variants", "IMAGENET1K_V2", "--engine", "timed")
        address = process.wait_until_listening()
        with grpc.insecure_channel(address) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            next(watch)
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            opened = stub.ClassifyUpload.future(_endless())
            process.process.send_signal(signal.SIGTERM)
            while "stopping on a signal" not in process.process.stderr.readline():
                pass
            status, _ = process.terminate()
            opened.cancel()
    assert status == 128 + signal.SIGTERM


def _endless() -> Iterator[inference_pb2.ClassifyUploadRequest]:
    """Begin an upload and never continue."""
    yield inference_pb2.ClassifyUploadRequest(options=inference_pb2.ClassifyUploadOptions())
    threading.Event().wait(20)
