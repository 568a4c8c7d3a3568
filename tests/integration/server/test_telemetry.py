"""The SDK's calls in OpenTelemetry, and one trace from the app to the batch."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import resnet50_client
from resnet50.v1 import image_pb2, inference_pb2, inference_pb2_grpc
from resnet50_client import AsyncClient, Client, RetryPolicy
from resnet50_client.opentelemetry import OpenTelemetryObserver
from tests.support.clients import Caller, items
from tests.support.collector import collecting
from tests.support.pictures import encode, picture
from tests.support.serving import connected, gate, queues_of, serving, until

PNG = encode(picture())
EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "tracing.py"
CLASSIFY = "resnet50.v1.InferenceService/Classify"


class App:
    """An app with OpenTelemetry set up; its exports stay here."""

    def __init__(self) -> None:
        self.exported = InMemorySpanExporter()
        tracers = TracerProvider(shutdown_on_exit=False)
        tracers.add_span_processor(SimpleSpanProcessor(self.exported))
        self.tracer = tracers.get_tracer("app")
        self.reader = InMemoryMetricReader()
        meters = MeterProvider([self.reader], shutdown_on_exit=False)
        self.observer = OpenTelemetryObserver(tracers, meters)

    def spans(self, name: str) -> list:
        return [span for span in self.exported.get_finished_spans() if span.name == name]

    def points(self, name: str) -> list:
        return [
            point
            for of_resource in self.reader.get_metrics_data().resource_metrics
            for of_scope in of_resource.scope_metrics
            for metric in of_scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]


def ids(span) -> tuple[str, str]:
    context = span.get_span_context()
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


async def test_two_callers_meet_in_one_batch():
    """Two apps, one blocking and one asyncio, each with its trace; their requests share a batch."""
    apps, roots = [App(), App()], []

    async def ask(app: App, caller: Caller) -> None:
        with app.tracer.start_as_current_span("app") as root:
            roots.append(root)
            await caller.classify(PNG)

    async with (
        collecting() as collector,
        serving(otlp_endpoint=collector.endpoint, trace_ratio=0.0) as server,
        connected(server) as channel,
        contextlib.AsyncExitStack() as stack,
    ):
        opened, (queue,) = gate(server), queues_of(server)
        request = inference_pb2.ClassifyRequest(image=image_pb2.Image(encoded=PNG))
        try:
            # A client that is not traced keeps the engine busy until the two have met.
            first = asyncio.ensure_future(
                inference_pb2_grpc.InferenceServiceStub(channel).Classify(request)
            )
            await until(lambda: server.snapshot().batches["cpu"])
            calls = []
            for app, client in zip(apps, (Client, AsyncClient), strict=True):
                caller = Caller(client, server.addresses[0], observers=[app.observer])
                await stack.enter_async_context(caller)
                calls.append(asyncio.create_task(ask(app, caller)))
            await until(lambda: len(queue.waiting) == 2)
        finally:
            opened.set()
        await asyncio.gather(first, *calls)

    assert ids(roots[0])[0] != ids(roots[1])[0]
    batch = collector.one("batch")
    assert batch.attributes["resnet50.batch.size"] == 2
    assert batch.attributes["resnet50.variant"] == "IMAGENET1K_V2"
    assert batch.attributes["resnet50.device"] == "cpu"
    served = {span.trace_id: span for span in collector.named(CLASSIFY)}
    assert len(served) == 2
    for app, root in zip(apps, roots, strict=True):
        (called,) = app.spans(CLASSIFY)
        span = served[ids(root)[0]]
        # app → the SDK's call → the server's call → its stages, one of which names the batch.
        assert f"{called.parent.span_id:016x}" == ids(root)[1]
        assert (span.trace_id, span.parent_id) == ids(called)
        assert called.start_time <= span.start <= span.end <= called.end_time
        collector.assert_stages_follow_each_other(span)
        assert collector.children(span)["compute"].links == (batch.link,)
        assert span.attributes["resnet50.request_id"] == called.attributes["resnet50.request_id"]
    assert set(batch.links) == {span.link for span in served.values()}
    assert batch.trace_id not in served


async def test_a_call_is_a_span_with_what_the_server_said(kind):
    app = App()
    async with (
        serving() as server,
        Caller(kind, server.addresses[0], observers=[app.observer]) as client,
    ):
        result = await client.classify(PNG)
    (span,) = app.spans(CLASSIFY)
    host, _, port = server.addresses[0].rpartition(":")
    expected = {
        "rpc.system.name": "grpc",
        "rpc.method": CLASSIFY,
        "rpc.response.status_code": "OK",
        "server.address": host,
        "server.port": int(port),
        "resnet50.variant": "IMAGENET1K_V2",
        "resnet50.batch.size": result.timing.batch_size,
        "resnet50.server.total_s": result.timing.total_ms / 1e3,
    }
    assert expected.items() <= span.attributes.items()
    assert span.kind is trace.SpanKind.CLIENT
    assert span.status.is_unset
    (duration,) = app.points("rpc.client.call.duration")
    assert duration.count == 1
    assert duration.attributes == {
        name: value for name, value in expected.items() if not name.startswith("resnet50.")
    }
    (batch,) = app.points("resnet50.client.batch.size")
    assert batch.sum == result.timing.batch_size
    stages = {
        point.attributes["resnet50.stage"]: point.sum
        for point in app.points("resnet50.client.stage.duration")
    }
    assert stages == {
        "decode": result.timing.decode_ms / 1e3,
        "queue": result.timing.queue_ms / 1e3,
        "compute": result.timing.compute_ms / 1e3,
    }
    (sent,) = app.points("resnet50.client.sent")
    assert sent.value > len(PNG)


async def test_cache_hits_are_not_counted_as_computed(kind):
    app = App()
    async with (
        serving(response_cache_bytes=2**20) as server,
        Caller(kind, server.addresses[0], observers=[app.observer]) as client,
    ):
        for _ in range(2):
            await client.classify(PNG)
    computed, kept = app.spans(CLASSIFY)
    assert "resnet50.cache" not in computed.attributes
    assert kept.attributes["resnet50.cache"] == "hit"
    (batch,) = app.points("resnet50.client.batch.size")
    assert batch.count == 1
    assert {point.count for point in app.points("resnet50.client.stage.duration")} == {1}


async def test_an_error_is_one_in_span_and_metric(kind):
    app = App()
    async with (
        serving() as server,
        Caller(kind, server.addresses[0], observers=[app.observer]) as client,
    ):
        with pytest.raises(resnet50_client.VariantNotFoundError):
            await client.classify(PNG, variant="cats")
    (span,) = app.spans(CLASSIFY)
    assert span.attributes["error.type"] == "NOT_FOUND"
    assert span.status.status_code is trace.StatusCode.ERROR
    assert "cats" in span.status.description
    (duration,) = app.points("rpc.client.call.duration")
    assert duration.attributes["error.type"] == "NOT_FOUND"


async def test_a_stream_is_one_span_and_its_frames_are_counted(kind):
    app = App()
    async with (
        serving() as server,
        Caller(kind, server.addresses[0], observers=[app.observer]) as client,
    ):
        frames = [PNG, b"no image", PNG]
        assert len([one async for one in items(client, "embed_stream", frames)]) == 3
    (span,) = app.spans("resnet50.v1.InferenceService/EmbedStream")
    assert span.attributes["resnet50.stream.frames"] == 2
    assert span.attributes["resnet50.stream.refused"] == 1
    counted = {
        point.attributes["resnet50.frame.outcome"]: point.value
        for point in app.points("resnet50.client.frames")
    }
    assert counted == {"answered": 2, "error": 1}
    assert [point.count for point in app.points("resnet50.client.batch.size")] == [2]


async def test_retries_are_events_and_counted(kind):
    app = App()
    settings = {"engine": "timed", "timed_alpha_ms": 5}
    async with (
        serving(**settings) as one,
        serving(**settings) as two,
        Caller(kind, [one.addresses[0], two.addresses[0]], observers=[app.observer]) as client,
    ):
        answered, stopping = 0, None
        async for _ in items(client, "classify_stream", [PNG] * 200):
            answered += 1
            if answered == 50:
                used = one if one.snapshot().streams else two
                stopping = asyncio.create_task(used.stop())
        await stopping
    (span,) = app.spans("resnet50.v1.InferenceService/ClassifyStream")
    retries = [event for event in span.events if event.name == "retry"]
    assert retries
    assert span.attributes["resnet50.attempts"] == 1 + len(retries)
    assert "server.address" not in span.attributes  # one of two
    (counted,) = app.points("resnet50.client.retries")
    assert counted.value == len(retries)


async def test_without_a_provider_of_its_own_the_global_one_is_used(kind):
    # None is set in this process: calls go through, nothing is recorded.
    policy = RetryPolicy(attempts=1)
    async with (
        serving() as server,
        Caller(
            kind, server.addresses[0], retry=policy, observers=[OpenTelemetryObserver()]
        ) as client,
    ):
        assert len(await client.classify(PNG)) == 5


def test_without_opentelemetry_it_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.startswith("opentelemetry"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install opentelemetry-api"):
        OpenTelemetryObserver()


async def test_the_example_prints_its_spans():
    async with serving() as server:
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, str(EXAMPLE), "--server", server.addresses[0]],
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if ", in trace " in line]
    assert [line.partition(":")[0] for line in lines] == [CLASSIFY, "look at a picture"]
    assert len({line.rpartition(" ")[2] for line in lines}) == 1
