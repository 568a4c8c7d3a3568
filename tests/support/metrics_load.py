"""A server under load, and the outcomes of the calls, to compare with its metrics."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc

from resnet50.v1 import image_pb2, inference_pb2, inference_pb2_grpc
from resnet50_client import AsyncClient
from resnet50_server.server import Server
from tests.support.pictures import encode, photo_like
from tests.support.scrape import ON
from tests.support.serving import (
    DECODING,
    connected,
    engines_of,
    queues_of,
    serving,
    until,
)

V2 = "IMAGENET1K_V2"
JPEG = encode(photo_like(320, 240), "JPEG")
REQUEST = inference_pb2.ClassifyRequest(image=image_pb2.Image(encoded=JPEG))


class Load:
    """Calls a server, and records the outcomes."""

    def __init__(self, server: Server, client: AsyncClient, channel: grpc.aio.Channel) -> None:
        self.server = server
        self.client = client
        self.stub = inference_pb2_grpc.InferenceServiceStub(channel)
        self.channel = channel
        engine: Any
        (engine,) = engines_of(server)
        self.engine = engine
        (self.queue,) = queues_of(server)
        self.calls: Counter[tuple[str, str, str]] = Counter()
        self.images: Counter[str] = Counter()
        self.shed: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.cancelled: Counter[str] = Counter()
        self.timings: list[Any] = []
        self.batches: list[int] = []
        self.failed_batches = 0
        self.go_on = threading.Event()
        self.go_on.set()
        self.broken = False
        run = self.engine.run

        def counted(images: Any, *arguments: Any) -> Any:
            self.batches.append(len(images))
            self.go_on.wait(60)
            if self.broken:
                raise RuntimeError("as the test wants it")
            return run(images, *arguments)

        self.engine.run = counted

    @contextlib.contextmanager
    def stuck(self) -> Iterator[None]:
        """Keep the engine from ending a batch."""
        self.go_on.clear()
        try:
            yield
        finally:
            self.go_on.set()

    def answered(self, method: str, timing: Any) -> None:
        """Record a successful call."""
        self.calls[method, V2, "OK"] += 1
        self.images["answered"] += 1
        self.timings.append(timing)

    def took(self, stage: str) -> float:
        """Return the time that all calls spent in a stage, in seconds."""
        return sum(getattr(timing, f"{stage}_ms") for timing in self.timings) / 1e3

    async def inside(self, requests: int) -> None:
        """Wait until so many requests are in the server."""
        await until(lambda: self.server.snapshot().requests == requests)


@contextlib.asynccontextmanager
async def loaded(**settings: Any) -> AsyncIterator[Load]:
    """Run a server to load."""
    async with (
        serving(**ON, **DECODING, **settings) as server,
        connected(server) as channel,
        AsyncClient(server.addresses[0]) as client,
    ):
        yield Load(server, client, channel)
