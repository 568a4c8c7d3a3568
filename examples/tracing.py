"""One call, seen from both ends: python examples/tracing.py [IMAGE] [--server HOST:PORT].

Prints the spans of the app and of the SDK as they end. Start a server that traces too, and look at
the whole in Jaeger, say:

    docker run -p 16686:16686 -p 4317:4317 jaegertracing/jaeger
    resnet50-server serve --variants IMAGENET1K_V2 --otlp-endpoint http://localhost:4317
    python examples/tracing.py --otlp http://localhost:4317

Needs resnet50-serving[otel]. Without IMAGE it sends a grey square.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)

from resnet50_client import Client, UnavailableError
from resnet50_client.opentelemetry import OpenTelemetryObserver


class Printer(SpanExporter):
    """Prints a line for each span, and its attributes."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Print."""
        for span in spans:
            took_ms = ((span.end_time or 0) - (span.start_time or 0)) / 1e6
            print(f"{span.name}: {took_ms:.1f} ms, in trace {span.context.trace_id:032x}")
            for name, value in (span.attributes or {}).items():
                print(f"    {name} = {value!s}")
        return SpanExportResult.SUCCESS


def main() -> int:
    """Make one call within a span of the app; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("image", nargs="?", help="default: a grey square")
    parser.add_argument("--server", default="localhost:50051")
    parser.add_argument("--otlp", metavar="URL", help="also send the spans there")
    arguments = parser.parse_args()
    image = arguments.image or np.full((224, 224, 3), 128, dtype=np.uint8)

    provider = TracerProvider(resource=Resource.create({"service.name": "example"}))
    provider.add_span_processor(SimpleSpanProcessor(Printer()))
    if arguments.otlp:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(arguments.otlp)))
    tracer = provider.get_tracer("example")
    observer = OpenTelemetryObserver(provider)
    try:
        with (
            Client(arguments.server, observers=[observer]) as client,
            tracer.start_as_current_span("look at a picture"),
        ):
            print(client.classify(image).top)
    except UnavailableError as error:
        print(f"{error}; start a server first: make serve", file=sys.stderr)
        return 1
    finally:
        provider.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
