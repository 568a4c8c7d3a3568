"""OpenTelemetry traces (extra `[otel]`): a span for each RPC, for its stages and for each batch.

A call that is not sampled costs a look at its metadata. Of one that is, the times that the server
has taken anyway are kept, and its spans are made of them once its reply is on the way; a thread of
the OpenTelemetry SDK exports them. Names follow the semantic conventions for RPC of 2026 (stable,
v1.45); what is ours begins with `resnet50.`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from random import random
from typing import Any

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
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

from resnet50.v1 import inference_pb2, variant_pb2
from resnet50_server.api.status import code_of
from resnet50_server.context import Metadata, RequestContext
from resnet50_server.errors import UnusableSetting
from resnet50_server.events import BatchEvent, ImageEvent, ServerEvents

log = logging.getLogger(__name__)

SERVICE_NAME = "resnet50-server"
# Frames of one stream that get spans; all are counted.
MAX_FRAME_SPANS = 256
# Seconds at the end of the server for the spans that are still to be exported.
FLUSH_S = 3.0
# Seconds after it was last said that spans are lost until it is said again.
QUIET_S = 600.0
MAX_MESSAGE = 500
# What the conventions count as a server's own failure.
FAULTS = frozenset(
    ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
)
METHODS = {
    method.name: f"{service.full_name}/{method.name}"
    for file in (inference_pb2.DESCRIPTOR, variant_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
    for method in service.methods
}
W3C = TraceContextTextMapPropagator()


@dataclass(eq=False, slots=True)
class _Traced:
    """What is kept with a call that is recorded.

    Attributes:
        span: Its own.
        image: The one that it was about, once that is answered; of a stream none.
        frames: That were answered with a result.
        refused: Frames that were answered with an error.
        dropped: Frames that a newer one replaced.
    """

    span: Span
    image: ImageEvent | None = None
    frames: int = 0
    refused: int = 0
    dropped: int = 0


class Tracing(ServerEvents):
    """Makes spans of what it sees.

    Args:
        endpoint: Where spans go by OTLP over gRPC, e.g. "http://localhost:4317".
        ratio: Share of the calls without a trace of their own that are recorded, 0 to 1. Calls that
            come with one are recorded if it is.
    """

    def __init__(self, endpoint: str, ratio: float) -> None:
        self._endpoint = endpoint
        self._ratio = ratio
        self._tracer: Tracer = NoOpTracer()
        self._provider: TracerProvider | None = None
        self._exporter: _Exporter | None = None
        # Spans are dated by the wall clock as it was then: a step of it tears no trace apart.
        self._offset_ns = time.time_ns() - time.perf_counter_ns()

    def start(self) -> None:
        """Get ready to export; what OTEL_* names in the environment say is heeded.

        Raises:
            UnusableSetting: One of them cannot be.
        """
        _hush()
        try:
            self._exporter = _Exporter(OTLPSpanExporter(endpoint=self._endpoint), self._endpoint)
            processor = BatchSpanProcessor(self._exporter)
        except ValueError as error:
            raise UnusableSetting(
                "otlp_endpoint", f"a name of OpenTelemetry's in the environment (OTEL_*): {error}"
            ) from error
        # Whether a call is recorded is decided in `call_started`.
        self._provider = TracerProvider(
            sampler=ALWAYS_ON, resource=_resource(), shutdown_on_exit=False
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("resnet50_server", version("resnet50-serving"))

    async def close(self) -> None:
        """Export what is there, within `FLUSH_S`."""
        if self._provider is None or self._exporter is None:
            return
        await asyncio.sleep(0)  # calls that have just ended become spans
        flushing = asyncio.ensure_future(asyncio.to_thread(self._provider.shutdown))
        await asyncio.wait([flushing], timeout=FLUSH_S)
        self._exporter.shutdown()  # ends an export that still waits

    def call_started(self, call: RequestContext) -> None:
        """Decide whether a call is recorded."""
        # Whoever calls this has not begun to answer, so what fails here must not leave it.
        _guarded(self._begin, (call,))

    def _begin(self, call: RequestContext) -> None:
        context, sampled = _context(call.metadata)
        if not (random() < self._ratio if sampled is None else sampled):
            return
        method = METHODS.get(call.method, call.method)
        span = self._tracer.start_span(
            method,
            context,
            SpanKind.SERVER,
            {
                "rpc.system.name": "grpc",
                "rpc.method": method,
                "resnet50.request_id": call.request_id,
            },
            start_time=self._ns(call.started),
        )
        call.trace_id = f"{span.get_span_context().trace_id:032x}"
        call.notes[self] = _Traced(span)

    def image_answered(self, image: ImageEvent) -> None:
        """Keep its times; a frame of a stream gets its spans."""
        traced: _Traced | None = image.context.notes.get(self)
        if traced is None:
            return
        if image.context.place is not None:  # which only calls about a single image have
            traced.image = image
            return
        traced.frames += 1
        if traced.frames <= MAX_FRAME_SPANS:
            _soon(self._make_frame, traced.span, image)

    def frame_refused(self, call: RequestContext, error: Exception) -> None:
        """Note it in the stream's span, which has room for so many."""
        traced: _Traced | None = call.notes.get(self)
        if traced is not None:
            traced.refused += 1
            traced.span.add_event(
                "frame refused", {"error.type": code_of(error).name, "message": _message(error)}
            )

    def frame_dropped(self, call: RequestContext) -> None:
        """Count it."""
        traced: _Traced | None = call.notes.get(self)
        if traced is not None:
            traced.dropped += 1

    def batch_ended(self, batch: BatchEvent) -> None:
        """Make its span if one of its requests is recorded."""
        calls = dict.fromkeys(call for call in batch.contexts if isinstance(call, RequestContext))
        requests = [call.notes[self].span for call in calls if self in call.notes]
        if requests:
            # Before those of its requests, whose calls have not ended yet.
            _soon(self._make_batch, batch, requests)

    def call_ended(self, call: RequestContext, code: str, error: Exception | None) -> None:
        """Have its spans made once the reply is on its way."""
        traced: _Traced | None = call.notes.get(self)
        if traced is not None:
            _soon(self._make_call, call, traced, code, error, time.perf_counter())

    def _make_call(
        self,
        call: RequestContext,
        traced: _Traced,
        code: str,
        error: Exception | None,
        ended: float,
    ) -> None:
        span = traced.span
        span.set_attribute("rpc.response.status_code", code)
        if call.variant:
            span.set_attribute("resnet50.variant", call.variant)
        if code != "OK":
            span.set_attribute("error.type", code)
        if code in FAULTS:
            span.set_status(Status(StatusCode.ERROR, _message(error)))
        if traced.image is not None:
            self._make_stages(span, traced.image)
        elif call.place is None:
            for name in ("frames", "refused", "dropped"):
                if count := getattr(traced, name):
                    span.set_attribute(f"resnet50.stream.{name}", count)
        span.end(self._ns(ended))

    def _make_frame(self, stream: Span, image: ImageEvent) -> None:
        started = self._ns(image.ended - image.total_s)
        span = self._tracer.start_span("frame", set_span_in_context(stream), start_time=started)
        self._make_stages(span, image)
        span.end(self._ns(image.ended))

    def _make_stages(self, parent: Span, image: ImageEvent) -> None:
        if image.cache != "none":
            parent.set_attribute("resnet50.cache", image.cache)
        batch = image.batch
        if batch is None:
            return
        queued = batch.started - image.queue_s
        computed = max(batch.started, batch.ended - image.compute_s)
        context = set_span_in_context(parent)
        self._make(
            "decode",
            context,
            min(image.decoded, queued) - image.decode_s,
            min(image.decoded, queued),
        )
        self._make("queue", context, queued, batch.started)
        made: SpanContext | None = batch.notes.get(self)
        self._make(
            "compute",
            context,
            computed,
            batch.ended,
            {"resnet50.batch.size": batch.size},
            [Link(made)] if made is not None else (),
        )

    def _make_batch(self, batch: BatchEvent, requests: Sequence[Span]) -> None:
        # A trace of its own: it belongs to all of them.
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
            span.set_status(Status(StatusCode.ERROR, "the engine failed; the log says why"))
        else:
            span.set_attribute("resnet50.batch.compute_s", batch.compute_s)
        span.end(self._ns(batch.ended))
        batch.notes[self] = span.get_span_context()

    def _make(
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
        """Return a time of `time.perf_counter` in nanoseconds since 1970."""
        return self._offset_ns + int(moment * 1e9)


class _Exporter(SpanExporter):
    """Keeps failures of another exporter from everybody, and says that there are some.

    Args:
        inner: The other one.
        endpoint: Where it sends spans.
    """

    def __init__(self, inner: SpanExporter, endpoint: str) -> None:
        self._inner = inner
        self._endpoint = endpoint
        self._said = -QUIET_S
        self._closed = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export; runs in the SDK's thread."""
        try:
            result = self._inner.export(spans)
            reason = "see --log-level debug"
        except Exception as error:
            result, reason = SpanExportResult.FAILURE, repr(error)
        if result is SpanExportResult.FAILURE and not self._closed:
            now = time.monotonic()
            if now - self._said >= QUIET_S:
                self._said = now
                log.warning(
                    "traces do not reach %s and are lost, serving goes on (%s)",
                    self._endpoint,
                    reason,
                )
        return result

    def shutdown(self) -> None:
        """End, also an export that waits for its turn."""
        if not self._closed:
            self._closed = True
            self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Do nothing: nothing is kept here."""
        return True


def _hush() -> None:
    """Keep the SDK from logging each failed export; what is to be said about it `_Exporter` says.

    Unless somebody has asked for it: with --log-level debug, or for these very loggers.
    """
    if logging.getLogger().isEnabledFor(logging.DEBUG):
        return
    for name, level in (
        ("opentelemetry.exporter", logging.CRITICAL),
        ("opentelemetry.sdk", logging.ERROR),  # what is wrong with the environment
    ):
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(level)


def _resource() -> Resource:
    """Return who exports: as the environment says, else by our name."""
    resource = Resource.create({"service.version": version("resnet50-serving")})
    if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": SERVICE_NAME}))
    return resource


def _context(metadata: Metadata) -> tuple[Context, bool | None]:
    """Return the caller's trace, and whether it is recorded.

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
    return None if error is None else str(error)[:MAX_MESSAGE]


def _soon(make: Callable[..., None], *arguments: Any) -> None:
    """Do something in the loop's next turn, in the order of the calls; nothing depends on it."""
    asyncio.get_running_loop().call_soon(_guarded, make, arguments)


def _guarded(make: Callable[..., None], arguments: Sequence[Any]) -> None:
    try:
        make(*arguments)
    except Exception:
        log.exception("a span was lost")
