"""The gateway's own metrics, and the application that exports them at `/metrics`.

docs/reference/metrics.md lists them. The servers' metrics are figures of `live`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

# In seconds; the same as those of the server's requests.
DURATION_BUCKETS = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075),
    *(0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0),
)
# Requests for a path that does not exist.
OTHER = "other"
# WebSockets that the client has closed, or whose connection is lost.
DISCONNECTED = "disconnected"


class Metrics:
    """Counts requests, WebSockets and calls to servers; all of it on the event loop.

    Args:
        version: Of the gateway.

    Attributes:
        registry: Holds everything exported.
    """

    def __init__(self, version: str) -> None:
        # Prometheus does not use the creation time of series.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)
        Info("resnet50_gateway_build", "The gateway's version.", registry=registry).info(
            {"version": version}
        )
        self._requests = _children(
            Counter(
                "resnet50_gateway_requests",
                "Requests that have ended, by route and HTTP status. 499: the client has"
                " disconnected.",
                ("route", "status"),
                registry=registry,
            )
        )
        self._request_s = _children(
            Histogram(
                "resnet50_gateway_request_duration_seconds",
                "From headers to the end of the response, of requests with a status below 400.",
                ("route",),
                buckets=DURATION_BUCKETS,
                registry=registry,
            )
        )
        self._in_flight = Gauge(
            "resnet50_gateway_in_flight_requests",
            "Requests between headers and the end of the response (max_requests).",
            registry=registry,
        )
        self._received = _children(
            Counter(
                "resnet50_gateway_received_bytes",
                "Bodies of requests and messages of WebSockets, in bytes.",
                ("route",),
                registry=registry,
            )
        )
        self._sent = _children(
            Counter(
                "resnet50_gateway_sent_bytes",
                "Bodies of responses and messages of WebSockets, in bytes.",
                ("route",),
                registry=registry,
            )
        )
        self._open_streams = Gauge(
            "resnet50_gateway_open_streams", "Open WebSockets (max_streams).", registry=registry
        )
        self._streams = _children(
            Counter(
                "resnet50_gateway_streams",
                "WebSockets that have ended, by the gateway's close code, or disconnected.",
                ("code",),
                registry=registry,
            )
        )
        self._calls = _children(
            Counter(
                "resnet50_gateway_server_calls",
                "Calls to servers that have ended, by server and status code. Health checks are"
                " not counted.",
                ("server", "code"),
                registry=registry,
            )
        )

    def request_started(self) -> None:
        """Count a request in flight."""
        self._in_flight.inc()

    def request_ended(
        self, route: str, status: int, took_s: float, received: int, sent: int
    ) -> None:
        """Count a request that was in flight.

        Args:
            route: The path of its route, or `OTHER`.
            status: HTTP's.
            took_s: From headers to the end of the response, in seconds.
            received: Size of the part of its body that was read, in bytes.
            sent: Size of the response's body, in bytes.
        """
        self._in_flight.dec()
        self.request_rejected(route, status)
        if status < 400:
            self._request_s(route).observe(took_s)
        if received:
            self._received(route).inc(received)
        if sent:
            self._sent(route).inc(sent)

    def request_rejected(self, route: str, status: int) -> None:
        """Count a request that was never in flight."""
        self._requests(route, str(status)).inc()

    def stream_opened(self) -> None:
        """Count an open WebSocket."""
        self._open_streams.inc()

    def stream_ended(self, route: str, code: int | None, received: int, sent: int) -> None:
        """Count a WebSocket that was open.

        Args:
            route: The path of its route, or `OTHER`.
            code: The gateway's close code; None if the client has disconnected.
            received: Size of its messages, in bytes.
            sent: Size of the messages to it, in bytes.
        """
        self._open_streams.dec()
        self._streams(DISCONNECTED if code is None else str(code)).inc()
        if received:
            self._received(route).inc(received)
        if sent:
            self._sent(route).inc(sent)

    def call_ended(self, server: str, code: str) -> None:
        """Count a call to a server.

        Args:
            server: Its address.
            code: Name of the gRPC status code.
        """
        self._calls(server, code).inc()


def create_metrics_app(metrics: Metrics) -> ASGIApp:
    """Return the application that exports metrics at `/metrics`."""

    async def export(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        # In a thread: it reads files below /proc.
        content = await asyncio.to_thread(encode, metrics.registry)
        return Response(content, headers={"content-type": content_type})

    return Starlette(routes=[Route("/metrics", export)])


def _children(family: Counter | Histogram) -> Callable[..., Any]:
    """Return a function from label values to a series: `labels` takes longer than counting."""
    return lru_cache(maxsize=None)(family.labels)
