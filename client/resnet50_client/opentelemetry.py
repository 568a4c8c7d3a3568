"""A client's calls as OpenTelemetry spans and metrics.

Needs opentelemetry-api, and an SDK and exporter set up by the application. Names follow the
semantic conventions for RPC of 2026 (stable, v1.45); others start with `resnet50.`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ._addresses import GRPC_SCHEMES, split
from ._frames import FrameAnswer
from ._types.results import Timing
from .errors import Resnet50Error
from .observers import CallObserver, ObservedCall

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import Span, TracerProvider
else:  # not a dependency; `typing.get_type_hints` works without it
    MeterProvider = TracerProvider = Span = Any

__all__ = ["OpenTelemetryObserver"]

SCOPE = "resnet50_client"
# Buckets that the conventions recommend for call durations, in seconds.
DURATIONS_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class OpenTelemetryObserver(CallObserver):
    """Creates a span per call, propagates it to the server, and records metrics.

    Spans are of kind CLIENT, with the current span as parent; the global propagator adds the
    metadata (by default W3C traceparent).

    Args:
        tracer_provider: Provider of tracers; None for the global one.
        meter_provider: Provider of meters; None for the global one.

    Raises:
        ImportError: opentelemetry-api is not installed.
    """

    def __init__(
        self,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        try:
            from opentelemetry import metrics, propagate, trace
        except ImportError as error:
            raise ImportError(
                "OpenTelemetryObserver needs OpenTelemetry: pip install opentelemetry-api, or"
                " install resnet50-serving with the extra [otel] for its SDK and exporter too"
            ) from error
        self._trace = trace
        self._inject = propagate.inject
        self._tracer = trace.get_tracer(SCOPE, tracer_provider=tracer_provider)
        meter = metrics.get_meter(SCOPE, meter_provider=meter_provider)
        self._duration = meter.create_histogram(
            "rpc.client.call.duration",
            unit="s",
            description="Duration of calls, including retries.",
            explicit_bucket_boundaries_advisory=DURATIONS_S,
        )
        self._stage = meter.create_histogram(
            "resnet50.client.stage.duration",
            unit="s",
            description="Time of an image in the server by stage: decode, queue, compute.",
            explicit_bucket_boundaries_advisory=DURATIONS_S,
        )
        self._batch = meter.create_histogram(
            "resnet50.client.batch.size",
            unit="{image}",
            description="Size of the batch of an image.",
            explicit_bucket_boundaries_advisory=BATCH_SIZES,
        )
        self._sent = meter.create_counter(
            "resnet50.client.sent", unit="By", description="Bytes of messages sent."
        )
        self._retries = meter.create_counter(
            "resnet50.client.retries",
            unit="{attempt}",
            description="Retries of calls and resumptions of streams.",
        )
        self._frames = meter.create_counter(
            "resnet50.client.frames",
            unit="{frame}",
            description="Frames of streams by outcome.",
        )

    def call_started(self, call: ObservedCall) -> None:
        """Start the call's span, and propagate it to the server."""
        span = self._tracer.start_span(
            call.method,
            kind=self._trace.SpanKind.CLIENT,
            attributes=_about(call.method, call.servers),
        )
        call.notes[self] = span
        carrier: dict[str, str] = {}
        self._inject(carrier, self._trace.set_span_in_context(span))
        call.metadata += carrier.items()

    def call_retried(self, call: ObservedCall, error: Resnet50Error, pause_s: float) -> None:
        """Record the retry in the span and the metrics."""
        error_type = error.code or type(error).__name__
        self._retries.add(1, {"rpc.method": call.method, "error.type": error_type})
        span: Span = call.notes[self]
        span.add_event(
            "retry",
            {"error.type": error_type, "message": error.message, "resnet50.pause_s": pause_s},
        )

    def frame_answered(self, call: ObservedCall, answer: FrameAnswer[Any]) -> None:
        """Record the frame's outcome and times."""
        outcome = "dropped" if answer.dropped else "answered" if answer.error is None else "error"
        self._frames.add(1, {"rpc.method": call.method, "resnet50.frame.outcome": outcome})
        if answer.result is not None:
            self._count(call.method, answer.result.timing)

    def call_ended(self, call: ObservedCall) -> None:
        """End the span and record metrics."""
        span: Span = call.notes.pop(self)
        ended: dict[str, str | int | float] = {"rpc.response.status_code": call.code}
        if call.error is not None:
            ended["error.type"] = call.code
            span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, str(call.error)))
        span.set_attributes(ended)
        span.set_attribute("resnet50.request_id", call.request_id)
        if call.attempts > 1:
            span.set_attribute("resnet50.attempts", call.attempts)
        if call.timing is not None and call.variant is not None:
            span.set_attributes(
                {
                    "resnet50.variant": call.variant.name,
                    "resnet50.batch.size": call.timing.batch_size,
                    "resnet50.server.total_s": call.timing.total_ms / 1e3,
                }
            )
            if call.timing.cache is not None:
                span.set_attribute("resnet50.cache", call.timing.cache)
            self._count(call.method, call.timing)
        for name, count in (
            ("frames", call.frames),
            ("refused", call.failed_frames),
            ("dropped", call.dropped_frames),
        ):
            if count:
                span.set_attribute(f"resnet50.stream.{name}", count)
        span.end()
        self._sent.add(call.bytes_sent, {"rpc.method": call.method})
        # With the span, so that a metric can point to a trace.
        self._duration.record(
            call.duration_s,
            _about(call.method, call.servers) | ended,
            self._trace.set_span_in_context(span),
        )

    def _count(self, method: str, timing: Timing) -> None:
        if timing.cache is not None:
            return  # nothing was computed
        self._batch.record(timing.batch_size, {"rpc.method": method})
        for stage, took_ms in (
            ("decode", timing.decode_ms),
            ("queue", timing.queue_ms),
            ("compute", timing.compute_ms),
        ):
            self._stage.record(took_ms / 1e3, {"rpc.method": method, "resnet50.stage": stage})


@lru_cache(maxsize=64)
def _about(method: str, servers: tuple[str, ...]) -> dict[str, str | int | float]:
    """Return a call's attributes known at its start; must not be modified."""
    about: dict[str, str | int | float] = {"rpc.system.name": "grpc", "rpc.method": method}
    if len(servers) == 1:  # of several it is unknown which one gRPC selects
        (address,) = servers
        if address.startswith(GRPC_SCHEMES):
            about["server.address"] = address.removeprefix("unix:")
        else:
            about["server.address"], about["server.port"] = split(address)
    return about
