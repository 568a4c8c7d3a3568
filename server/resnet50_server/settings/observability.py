"""The group of observability: logs, metrics, traces."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from resnet50_settings.groups import Group


class Observability(Group):
    """Logs, metrics and traces."""

    title = "Observability"

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Field(description="Minimum level of log messages. debug logs a line per request."),
    ] = "info"
    log_format: Annotated[
        Literal["text", "json"],
        Field(description="Format of log lines. json: one object per line, with fields."),
    ] = "text"
    metrics_listen: Annotated[
        str | None,
        Field(
            description="Address of /metrics, /livez (liveness) and /readyz (readiness) over"
            " plaintext HTTP: host:port, or host:0 (a free port, printed at the start). Default:"
            " disabled."
        ),
    ] = None
    channelz: Annotated[
        bool,
        Field(description="Enable gRPC channelz for clients with the scope admin."),
    ] = False
    otlp_endpoint: Annotated[
        str | None,
        Field(
            description="Endpoint for OpenTelemetry traces over OTLP/gRPC, such as"
            " http://localhost:4317. Needs the extra `otel`. Default: tracing is disabled.",
        ),
    ] = None
    trace_ratio: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Share of calls to trace, from 0 to 1, unless the client has decided"
            " (traceparent).",
        ),
    ] = 0.01
