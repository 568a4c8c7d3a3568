"""Traces of the server, as a real collector receives them."""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import sys
import threading

import grpc
import pytest

from resnet50.v1 import image_pb2, inference_pb2, inference_pb2_grpc
from resnet50_client import Client
from resnet50_server.telemetry import tracing
from tests.support.collector import SERVER, collecting
from tests.support.pictures import encode, picture
from tests.support.serving import connected, engines_of, gate, server_processes, serving, until

PNG = encode(picture())
IMAGE = image_pb2.Image(encoded=PNG)
REQUEST = inference_pb2.ClassifyRequest(image=IMAGE)
CLASSIFY = "resnet50.v1.InferenceService/Classify"
STREAM = "resnet50.v1.InferenceService/ClassifyStream"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACED = (("traceparent", f"00-{TRACE}-{PARENT}-01"),)


@contextlib.asynccontextmanager
async def traced(**settings):
    """Serve, and give what was exported by the time that the block has ended."""
    async with collecting() as collector:
        settings = {"otlp_endpoint": collector.endpoint, "trace_ratio": 0.0} | settings
        async with serving(**settings) as server:
            yield server, collector


def frame(number: int, image: image_pb2.Image = IMAGE) -> inference_pb2.ClassifyStreamRequest:
    return inference_pb2.ClassifyStreamRequest(
        frame=inference_pb2.Frame(frame_id=number, image=image)
    )


def config(**fields) -> inference_pb2.ClassifyStreamRequest:
    return inference_pb2.ClassifyStreamRequest(config=inference_pb2.ClassifyStreamConfig(**fields))


async def test_request_is_a_span_of_the_clients_trace_with_stages():
    metadata = (*TRACED, ("tracestate", "vendor=1"), ("x-request-id", "my-id"))
    async with traced() as (server, collector), connected(server) as channel:
        await inference_pb2_grpc.InferenceServiceStub(channel).Classify(REQUEST, metadata=metadata)
    call = collector.one(CLASSIFY)
    assert (call.trace_id, call.parent_id, call.trace_state) == (TRACE, PARENT, "vendor=1")
    assert call.kind == SERVER
    assert not call.failed
    assert call.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": CLASSIFY,
        "rpc.response.status_code": "OK",
        "resnet50.request_id": "my-id",
        "resnet50.variant": "IMAGENET1K_V2",
    }
    assert call.resource["service.name"] == "resnet50-server"
    collector.assert_stages_follow_each_other(call)
    batch, compute = collector.one("batch"), collector.children(call)["compute"]
    assert compute.links == (batch.link,)
    assert batch.holds(compute)


async def test_cache_hit_has_no_stages_and_is_marked():
    async with (
        traced(response_cache_bytes=2**20) as (server, collector),
        connected(server) as channel,
    ):
        for _ in range(2):
            await inference_pb2_grpc.InferenceServiceStub(channel).Classify(
                REQUEST, metadata=TRACED
            )
    computed, kept = sorted(collector.named(CLASSIFY), key=lambda call: call.start)
    assert "resnet50.cache" not in computed.attributes
    assert collector.children(computed).keys() == {"decode", "queue", "compute"}
    assert kept.attributes["resnet50.cache"] == "hit"
    assert collector.children(kept) == {}
    assert len(collector.named("batch")) == 1


async def test_uploads_have_their_stages_too():
    async def parts():
        yield inference_pb2.ClassifyUploadRequest(options={})
        yield inference_pb2.ClassifyUploadRequest(chunk=PNG)

    async with traced() as (server, collector), connected(server) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        await stub.ClassifyUpload(parts(), metadata=TRACED)
    upload = collector.one("resnet50.v1.InferenceService/ClassifyUpload")
    collector.assert_stages_follow_each_other(upload)


@pytest.mark.parametrize(
    ("request_", "code", "failed"),
    [
        (inference_pb2.ClassifyRequest(), "INVALID_ARGUMENT", False),
        (
            inference_pb2.ClassifyRequest(image=IMAGE, options={"variant": "cats"}),
            "NOT_FOUND",
            False,
        ),
        (REQUEST, "INTERNAL", True),
    ],
)
async def test_failed_call_says_its_code(request_, code, failed):
    async with traced() as (server, collector), connected(server) as channel:
        (engine,) = engines_of(server)
        engine.run = lambda *_: 1 / 0
        with pytest.raises(grpc.RpcError):
            await inference_pb2_grpc.InferenceServiceStub(channel).Classify(
                request_, metadata=TRACED
            )
    call = collector.one(CLASSIFY)
    assert call.attributes["rpc.response.status_code"] == call.attributes["error.type"] == code
    assert call.failed == failed
    assert collector.children(call) == {}
    assert [batch.failed for batch in collector.named("batch")] == [
        True,
        True,
    ] * failed  # and its retry
    assert bool(call.message) == failed


async def test_cancelled_call_ends_its_span_and_stays_linked():
    async with traced() as (server, collector), connected(server) as channel:
        opened = gate(server)
        classify = inference_pb2_grpc.InferenceServiceStub(channel).Classify
        call = asyncio.ensure_future(classify(REQUEST, metadata=TRACED))
        try:
            await until(lambda: server.snapshot().batches["cpu"])
            call.cancel()
            await until(lambda: not server.snapshot().requests)
        finally:
            opened.set()
        await until(lambda: not server.snapshot().batches["cpu"])
    call = collector.one(CLASSIFY)
    assert call.attributes["rpc.response.status_code"] == "CANCELLED"
    assert not call.failed
    assert collector.children(call) == {}
    assert collector.one("batch").links == (call.link,)


async def test_frames_are_spans_below_their_streams():
    async def requests():
        yield config()
        for number in range(3):
            yield frame(number)
        yield frame(3, image_pb2.Image())

    async with traced() as (server, collector), connected(server) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        replies = [one async for one in stub.ClassifyStream(requests(), metadata=TRACED)]
    assert [one.WhichOneof("outcome") for one in replies] == ["classification"] * 3 + ["error"]
    stream = collector.one(STREAM)
    assert (stream.trace_id, stream.parent_id) == (TRACE, PARENT)
    assert stream.attributes["resnet50.stream.frames"] == 3
    assert stream.attributes["resnet50.stream.refused"] == 1
    ((event, attributes),) = stream.events
    assert event == "frame refused"
    assert attributes["error.type"] == "INVALID_ARGUMENT"
    frames = collector.named("frame")
    assert len(frames) == 3
    for one in frames:
        assert one.parent_id == stream.span_id
        assert stream.holds(one)
        collector.assert_stages_follow_each_other(one)
        assert len(collector.children(one)["compute"].links) == 1
    linked = {link for batch in collector.named("batch") for link in batch.links}
    assert linked == {stream.link}


async def test_frame_spans_of_a_stream_are_limited(monkeypatch):
    monkeypatch.setattr(tracing, "MAX_FRAME_SPANS", 2)

    async def requests():
        yield config()
        for number in range(7):
            yield frame(number)

    async with traced() as (server, collector), connected(server) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        async for _ in stub.ClassifyStream(requests(), metadata=TRACED):
            pass
    assert len(collector.named("frame")) == 2
    assert collector.one(STREAM).attributes["resnet50.stream.frames"] == 7


async def test_dropped_frames_are_counted():
    replied = asyncio.Event()

    async def requests():
        yield config(delivery="DELIVERY_LATEST")
        for number in range(3):
            yield frame(number)
        await replied.wait()

    async with traced() as (server, collector), connected(server) as channel:
        opened = gate(server)
        stream = inference_pb2_grpc.InferenceServiceStub(channel).ClassifyStream(
            requests(), metadata=TRACED
        )
        try:
            dropped = await stream.read()
        finally:
            opened.set()
            replied.set()
        assert dropped.HasField("dropped")
        others = []
        while (one := await stream.read()) is not grpc.aio.EOF:
            others.append(one)
    stream = collector.one(STREAM)
    answered = [one for one in others if one.HasField("classification")]
    assert stream.attributes["resnet50.stream.dropped"] == 3 - len(answered)
    assert stream.attributes["resnet50.stream.frames"] == len(answered)


@pytest.mark.parametrize(
    ("ratio", "metadata", "recorded"),
    [
        (0.0, (), 0),
        (1.0, (), 1),
        (0.0, TRACED, 1),
        (1.0, (("traceparent", f"00-{TRACE}-{PARENT}-00"),), 0),
    ],
)
async def test_sampling_follows_the_parent_then_the_ratio(ratio, metadata, recorded):
    async with traced(trace_ratio=ratio) as (server, collector), connected(server) as channel:
        await inference_pb2_grpc.InferenceServiceStub(channel).Classify(REQUEST, metadata=metadata)
    assert len(collector.named(CLASSIFY)) == recorded
    assert len(collector.named("batch")) == recorded


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "00",
        "ff-" + TRACE + "-" + PARENT + "-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-zz",
        "-" * 5000,
    ],
)
async def test_malformed_traceparent_is_ignored(traceparent):
    metadata = (("traceparent", traceparent), ("tracestate", "=,=,="))
    async with traced(trace_ratio=1.0) as (server, collector), connected(server) as channel:
        await inference_pb2_grpc.InferenceServiceStub(channel).Classify(REQUEST, metadata=metadata)
    call = collector.one(CLASSIFY)
    assert call.parent_id == ""
    assert call.trace_id != TRACE


async def test_health_checks_and_reflection_leave_no_trace():
    async with traced(trace_ratio=1.0) as (server, collector):
        with Client(server.addresses[0]) as client:
            assert await asyncio.to_thread(client.health) == "SERVING"
    assert collector.spans == []


async def test_environment_sets_the_service_name(monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "pets")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    async with traced(trace_ratio=1.0) as (server, collector), connected(server) as channel:
        await inference_pb2_grpc.InferenceServiceStub(channel).Classify(REQUEST)
    resource = collector.one(CLASSIFY).resource
    assert resource["service.name"] == "pets"
    assert resource["deployment.environment.name"] == "test"


async def test_silent_collector_does_not_delay_the_shutdown(monkeypatch):
    monkeypatch.setattr(tracing, "FLUSH_S", 0.1)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3600")
    ended, shut_down = threading.Event(), tracing.OTLPSpanExporter.shutdown

    def shutdown(exporter, **options):
        ended.set()
        shut_down(exporter, **options)

    monkeypatch.setattr(tracing.OTLPSpanExporter, "shutdown", shutdown)
    async with collecting() as collector:
        collector.answering.clear()
        settings = {"otlp_endpoint": collector.endpoint, "trace_ratio": 1.0}
        async with serving(**settings) as server, connected(server) as channel:
            await inference_pb2_grpc.InferenceServiceStub(channel).Classify(REQUEST)
            (thread,) = (one for one in threading.enumerate() if one.name.startswith("OtelBatch"))
        # The server does not wait, and what still waits for the collector has been told to end.
        assert ended.is_set()
        await asyncio.to_thread(thread.join)
    assert collector.spans == []


def test_collector_that_is_down_costs_no_call_and_is_logged():
    # Each call is an export of its own that fails at once.
    environment = {
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "1",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "0.2",
    }
    with server_processes() as start:
        server = start(
            *("--variants", "IMAGENET1K_V2", "--engine", "null", "--log-level", "warning"),
            *("--otlp-endpoint", "http://127.0.0.1:1", "--trace-ratio", "1"),
            environment=environment,
        )
        with Client(server.wait_until_listening()) as client:
            for _ in range(5):
                client.classify(PNG)
        status, errors = server.terminate()
    assert status == 0
    assert re.search(r"ERROR opentelemetry\.\S+ Failed to export traces to 127\.0\.0\.1:1", errors)
    assert "Traceback" not in errors


def test_without_an_endpoint_opentelemetry_is_not_imported():
    script = (
        "import sys; from resnet50_server.server import Server;"
        "from resnet50_server.settings import Settings;"
        "import asyncio\n"
        "async def main(): Server(Settings(variants=['IMAGENET1K_V2'], engine='null'))\n"
        "asyncio.run(main());"
        "print([name for name in sys.modules if name.startswith('opentelemetry.sdk')])\n"
        "import os; sys.stdout.flush(); os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


async def test_failing_tracing_fails_no_request(monkeypatch, caplog):
    def fail(_):
        raise RuntimeError("no trace")

    monkeypatch.setattr(tracing, "parent_of", fail)
    async with traced() as (server, collector), connected(server) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        reply = await stub.Classify(REQUEST, metadata=TRACED)
    assert reply.timing.batch_size == 1
    assert collector.named(CLASSIFY) == []
    assert "RuntimeError: no trace" in caplog.text
