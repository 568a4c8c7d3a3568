"""OpenTelemetry traces (extra `[otel]`): a span for each RPC, for its stages and for each batch.

The request path only records times that the server takes anyway. Spans are made of them after the
response has been sent, and a thread of the OpenTelemetry SDK exports them. Names follow the
semantic conventions for RPC (stable, v1.45); the project's own begin with `resnet50.`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from random import random

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    Link,
    NoOpTracer,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from resnet50_server.context import Metadata, RequestContext
from resnet50_server.errors import UnusableSetting, code_of
from resnet50_server.events import BatchEvent, ImageEvent, ServerEvents

SERVICE_NAME = "resnet50-server"
# Further frames of a stream are counted, without spans.
MAX_FRAME_SPANS = 256
# Time limit of exporting the last spans when the server stops.
FLUSH_S = 3.0
MAX_MESSAGE_CHARS = 500
# Status codes that the conventions count as server errors.
SERVER_ERRORS = frozenset(
    ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
)
W3C = TraceContextTextMapPropagator()


@dataclass(eq=False, slots=True)
class _TracedCall:
    """A recorded RPC.

    Attributes:
        span: Its span.
        image: Its image, once answered; None for a stream.
        frames: Frames answered with a result.
        refused: Frames answered with an error.
        dropped: Frames that a newer one replaced.
    """

    span: Span
    image: ImageEvent | None = None
    frames: int = 0
    refused: int = 0
    dropped: int = 0


class Tracing(ServerEvents):
    """Turns events into spans.

    Args:
        endpoint: Receives spans by OTLP over gRPC, e.g. "http://localhost:4317".
        ratio: Share of the requests without a trace context that are recorded, 0 to 1. Requests
            with a trace context are recorded if it is sampled.
        methods: Full names of the server's methods, "service/method", by their short ones.
    """

    def __init__(self, endpoint: str, ratio: float, methods: Mapping[str, str]) -> None:
        self._methods = methods
        self._endpoint = endpoint
        self._ratio = ratio
        self._tracer: Tracer = NoOpTracer()
        self._provider: TracerProvider | None = None
        self._exporter: OTLPSpanExporter | None = None
        # One offset for the whole run: a step of the wall clock does not tear traces apart.
        self._offset_ns = time.time_ns() - time.perf_counter_ns()

    def start(self) -> None:
        """Create the exporter, configured by the environment variables OTEL_* too.

        Raises:
            UnusableSetting: The environment is invalid.
        """
        try:
            self._exporter = OTLPSpanExporter(endpoint=self._endpoint)
            processor = BatchSpanProcessor(self._exporter)
        except ValueError as error:
            raise UnusableSetting(
                "otlp_endpoint", f"invalid environment variable of OpenTelemetry (OTEL_*): {error}"
            ) from error
        # `call_started` decides about sampling.
        self._provider = TracerProvider(
            sampler=ALWAYS_ON, resource=_resource(), shutdown_on_exit=False
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("resnet50_server", version("resnet50-serving"))

    async def close(self) -> None:
        """Export pending spans, within `FLUSH_S`."""
        if self._provider is None or self._exporter is None:
            return
        await asyncio.sleep(0)  # spans of calls that have just ended are emitted
        flushing = asyncio.ensure_future(asyncio.to_thread(self._provider.shutdown))
        _, pending = await asyncio.wait([flushing], timeout=FLUSH_S)
        if pending:
            self._exporter.shutdown()  # aborts the export in progress

    def call_started(self, context: RequestContext) -> None:
        """Start its span if it is sampled."""
        parent, sampled = parent_of(context.metadata)
        if not (random() < self._ratio if sampled is None else sampled):
            return
        method = self._methods.get(context.method, context.method)
        span = self._tracer.start_span(
            method,
            parent,
            SpanKind.SERVER,
            {
                "rpc.system.name": "grpc",
                "rpc.method": method,
                "resnet50.request_id": context.request_id,
            },
            start_time=self._ns(context.started),
        )
        context.trace_id = f"{span.get_span_context().trace_id:032x}"
        context.notes[self] = _TracedCall(span)

    def image_answered(self, image: ImageEvent) -> None:
        """Keep its times; emit the spans of a frame."""
        traced: _TracedCall | None = image.context.notes.get(self)
        if traced is None:
            return
        if image.context.stream is None:  # only calls about a single image have one
            traced.image = image
            return
        traced.frames += 1
        if traced.frames <= MAX_FRAME_SPANS:
            _defer(self._emit_frame, traced.span, image)

    def image_refused(self, context: RequestContext, error: Exception) -> None:
        """Add an event to the stream's span, which keeps a limited number."""
        traced: _TracedCall | None = context.notes.get(self)
        if traced is not None:
            traced.refused += 1
            traced.span.add_event(
                "frame refused", {"error.type": code_of(error), "message": _message(error)}
            )

    def frame_dropped(self, context: RequestContext) -> None:
        """Count it."""
        traced: _TracedCall | None = context.notes.get(self)
        if traced is not None:
            traced.dropped += 1

    def batch_ended(self, batch: BatchEvent) -> None:
        """Emit its span if one of its requests is recorded."""
        calls = dict.fromkeys(batch.contexts)
        requests = [call.notes[self].span for call in calls if self in call.notes]
        if requests:
            # Before those of its requests, whose calls have not ended yet.
            _defer(self._emit_batch, batch, requests)

    def call_ended(self, context: RequestContext, code: str, error: Exception | None) -> None:
        """Emit its spans once the response has been sent."""
        traced: _TracedCall | None = context.notes.get(self)
        if traced is not None:
            _defer(self._emit_call, context, traced, code, error, time.perf_counter())

    def _emit_call(
        self,
        context: RequestContext,
        traced: _TracedCall,
        code: str,
        error: Exception | None,
        ended: float,
    ) -> None:
        span = traced.span
        span.set_attribute("rpc.response.status_code", code)
        if context.variant:
            span.set_attribute("resnet50.variant", context.variant)
        if code != "OK":
            span.set_attribute("error.type", code)
        if code in SERVER_ERRORS:
            span.set_status(Status(StatusCode.ERROR, _message(error)))
        if traced.image is not None:
            self._emit_stages(span, traced.image)
        elif context.stream is not None:
            for name in ("frames", "refused", "dropped"):
                if count := getattr(traced, name):
                    span.set_attribute(f"resnet50.stream.{name}", count)
        span.end(self._ns(ended))

    def _emit_frame(self, stream: Span, image: ImageEvent) -> None:
        started = self._ns(image.ended - image.total_s)
        span = self._tracer.start_span("frame", set_span_in_context(stream), start_time=started)
        self._emit_stages(span, image)
        span.end(self._ns(image.ended))

    def _emit_stages(self, parent: Span, image: ImageEvent) -> None:
        if image.cache != "none":
            parent.set_attribute("resnet50.cache", image.cache)
        batch = image.batch
        if batch is None:
            return
        queued = batch.started - image.queue_s
        decoded = min(image.decoded, queued) if image.decoded else queued
        computed = max(batch.started, batch.ended - image.compute_s)
        context = set_span_in_context(parent)
        self._emit("decode", context, decoded - image.decode_s, decoded)
        self._emit("queue", context, queued, batch.started)
        batch_span: SpanContext | None = batch.notes.get(self)
        self._emit(
            "compute",
            context,
            computed,
            batch.ended,
            {"resnet50.batch.size": batch.size},
            [Link(batch_span)] if batch_span is not None else (),
        )

    def _emit_batch(self, batch: BatchEvent, requests: Sequence[Span]) -> None:
        # A trace of its own: it belongs to all its requests.
        span = self._tracer.start_span(
            "batch",
            Context(),
            SpanKind.INTERNAL,
            {
                "resnet50.batch.size": batch.size,
                "resnet50.variant": batch.variant,
                "resnet50.device": batch.device,
            },
            [Link(request.get_span_context()) for request in requests],
            self._ns(batch.started),
        )
        if batch.failed:
            span.set_status(Status(StatusCode.ERROR, "the engine failed; see the server's log"))
        else:
            span.set_attribute("resnet50.batch.compute_s", batch.compute_s)
        span.end(self._ns(batch.ended))
        batch.notes[self] = span.get_span_context()

    def _emit(
        self,
        name: str,
        parent: Context,
        started: float,
        ended: float,
        attributes: Mapping[str, int] | None = None,
        links: Sequence[Link] = (),
    ) -> None:
        span = self._tracer.start_span(
            name, parent, SpanKind.INTERNAL, attributes, links, self._ns(started)
        )
        span.end(self._ns(ended))

    def _ns(self, moment: float) -> int:
        """Convert a time of `time.perf_counter` to nanoseconds since 1970."""
        return self._offset_ns + int(moment * 1e9)


def _resource() -> Resource:
    """Return the attributes of this service; the environment may name it."""
    resource = Resource.create({"service.version": version("resnet50-serving")})
    if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": SERVICE_NAME}))
    return resource


def parent_of(metadata: Metadata) -> tuple[Context, bool | None]:
    """Return the client's trace context and whether it is sampled.

    An empty context and None if there is none, or it is malformed.
    """
    carrier = {
        key: value
        for key, value in metadata
        if key in ("traceparent", "tracestate") and isinstance(value, str)
    }
    if not carrier:
        return Context(), None
    context = W3C.extract(carrier, Context())
    parent = get_current_span(context).get_span_context()
    return context, parent.trace_flags.sampled if parent.is_valid else None


def _message(error: Exception | None) -> str | None:
    return None if error is None else str(error)[:MAX_MESSAGE_CHARS]


def _defer(emit: Callable[..., None], *arguments: object) -> None:
    """Call a function in the loop's next iteration; calls keep their order."""
    asyncio.get_running_loop().call_soon(emit, *arguments)
