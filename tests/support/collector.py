"""A real OTLP collector in the test's event loop: what a server exports arrives here."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

ERROR = 2  # opentelemetry.proto.trace.v1.Status.StatusCode.STATUS_CODE_ERROR
SERVER, CLIENT = 2, 3


@dataclass(frozen=True)
class Link:
    trace_id: str
    span_id: str


@dataclass(frozen=True)
class Span:
    """A span as it arrived, with ids in hexadecimal and times in nanoseconds."""

    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    trace_state: str
    start: int
    end: int
    attributes: dict[str, Any]
    resource: dict[str, Any]
    links: tuple[Link, ...]
    events: tuple[tuple[str, dict[str, Any]], ...]
    failed: bool
    message: str

    def holds(self, other: Span) -> bool:
        return self.start <= other.start <= other.end <= self.end

    @property
    def link(self) -> Link:
        """How another span refers to this one."""
        return Link(self.trace_id, self.span_id)


class Collector:
    """Spans received; all spans of a server are present once it has stopped."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.spans: list[Span] = []
        self.answering = asyncio.Event()
        self.answering.set()

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> Span:
        (span,) = self.named(name)
        return span

    def children(self, parent: Span) -> dict[str, Span]:
        """Return those of a span by their names, each of which is there once."""
        found = [span for span in self.spans if span.parent_id == parent.span_id]
        by_name = {span.name: span for span in found}
        assert len(by_name) == len(found), found
        return by_name

    def assert_stages_follow_each_other(self, parent: Span) -> None:
        stages = self.children(parent)
        assert stages.keys() == {"decode", "queue", "compute"}
        decode, queue, compute = stages["decode"], stages["queue"], stages["compute"]
        assert all(parent.holds(stage) for stage in stages.values())
        assert decode.end <= queue.start
        assert queue.end <= compute.start
        assert {stage.trace_id for stage in stages.values()} == {parent.trace_id}

    async def Export(self, request: Any, context: Any) -> Any:
        await self.answering.wait()
        for of_resource in request.resource_spans:
            resource = _values(of_resource.resource.attributes)
            for of_scope in of_resource.scope_spans:
                self.spans += [_span(span, resource) for span in of_scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


def _span(span: Any, resource: dict[str, Any]) -> Span:
    return Span(
        span.name,
        span.kind,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.trace_state,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        _values(span.attributes),
        resource,
        tuple(Link(link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        tuple((event.name, _values(event.attributes)) for event in span.events),
        span.status.code == ERROR,
        span.status.message,
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {
        one.key: getattr(one.value, one.value.WhichOneof("value") or "string_value")
        for one in attributes
    }


@contextlib.asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    collector = Collector(f"http://127.0.0.1:{port}")
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    await server.start()
    try:
        yield collector
    finally:
        await server.stop(0)
