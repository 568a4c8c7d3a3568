"""A server whose engine computes nothing while its gate is closed."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import resnet50_server.lifecycle.engine_builder
from resnet50.v1 import image_pb2, inference_pb2, inference_pb2_grpc
from resnet50_server.api.grpc_server import SERVICES
from resnet50_server.engines.base import BatchOutput
from resnet50_server.engines.stub_engines import NullEngine
from resnet50_server.server import Server
from tests.support.pictures import encode, picture
from tests.support.serving import serving

SERVING = health_pb2.HealthCheckResponse.SERVING
PNG = encode(picture())


def classify(channel: grpc.aio.Channel, variant: str = "", **call: Any) -> Any:
    """Begin a call with an image of this module."""
    request = inference_pb2.ClassifyRequest(
        options=inference_pb2.ClassifyOptions(variant=variant),
        image=image_pb2.Image(encoded=PNG),
    )
    return inference_pb2_grpc.InferenceServiceStub(channel).Classify(request, **call)


async def health(channel: grpc.aio.Channel) -> set[int]:
    """Return the health of everything that has one."""
    stub = health_pb2_grpc.HealthStub(channel)
    replies = [
        await stub.Check(health_pb2.HealthCheckRequest(service=service))
        for service in ("", *SERVICES)
    ]
    return {reply.status for reply in replies}


class GatedEngine(NullEngine):
    """Computes nothing while its gate is closed; knows its batches."""

    def __init__(self, categories: int) -> None:
        super().__init__(categories)
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[int] = []

    def run(self, images: Any, top_k: int, with_embeddings: bool) -> BatchOutput:
        self.batches.append(len(images))
        assert self.gate.wait(60)
        return super().run(images, top_k, with_embeddings)


@contextlib.asynccontextmanager
async def gated(
    monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> AsyncIterator[tuple[Server, GatedEngine]]:
    """Run a server whose engine is warm and whose gate is closed."""
    engine = GatedEngine(1000)
    monkeypatch.setattr(resnet50_server.lifecycle.engine_builder, "NullEngine", lambda *_: engine)
    async with serving(**settings) as server:
        engine.batches.clear()
        engine.gate.clear()
        try:
            yield server, engine
        finally:
            engine.gate.set()
