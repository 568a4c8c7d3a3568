"""A server with two variants, and its operator, who splits their traffic."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from resnet50.v1 import (
    image_pb2,
    inference_pb2,
    inference_pb2_grpc,
    variant_pb2,
    variant_pb2_grpc,
)
from tests.support.administering import ADMIN, administered
from tests.support.pictures import encode, picture
from tests.support.serving import connected, queues_of, until_result

PNG = encode(picture())
V1, V2 = "IMAGENET1K_V1", "IMAGENET1K_V2"
BOTH = [V2, V1]  # V2, which is DEFAULT too, is the server's default


class Operator:
    """Calls a server as an administrator, and as its callers."""

    def __init__(self, server, channel: grpc.aio.Channel) -> None:
        self.server = server
        self.channel = channel
        self.variants = variant_pb2_grpc.VariantServiceStub(channel)
        self.inference = inference_pb2_grpc.InferenceServiceStub(channel)

    async def split(self, variant: str, candidate: str, token: str = ADMIN, **shares):
        message = variant_pb2.TrafficSplit(variant=variant, candidate=candidate, **shares)
        request = variant_pb2.SetTrafficSplitRequest(split=message)
        answer = await self.variants.SetTrafficSplit(request, metadata=metadata(token=token))
        return answer.report

    async def delete(self, variant: str, token: str = ADMIN):
        request = variant_pb2.DeleteTrafficSplitRequest(variant=variant)
        answer = await self.variants.DeleteTrafficSplit(request, metadata=metadata(token=token))
        return answer.report

    async def reports(self, token: str = ADMIN) -> list[variant_pb2.TrafficReport]:
        request = variant_pb2.ListTrafficSplitsRequest()
        answer = await self.variants.ListTrafficSplits(request, metadata=metadata(token=token))
        return list(answer.reports)

    async def report(self) -> variant_pb2.TrafficReport:
        (report,) = await self.reports()
        return report

    async def compared(self, images: int) -> variant_pb2.TrafficReport:
        """Return the report once so many images have been compared."""
        return await until_result(self.report, lambda report: report.comparison.images >= images)

    def classify(self, image: bytes = PNG, key: str | None = None, **options):
        request = inference_pb2.ClassifyRequest(
            options=inference_pb2.ClassifyOptions(**options), image=image_pb2.Image(encoded=image)
        )
        return self.inference.Classify(request, metadata=metadata(key))

    def embed(self, image: bytes = PNG, key: str | None = None, **options):
        request = inference_pb2.EmbedRequest(
            options=inference_pb2.EmbedOptions(**options), image=image_pb2.Image(encoded=image)
        )
        return self.inference.Embed(request, metadata=metadata(key))

    def upload(self, image: bytes = PNG, key: str | None = None, **options):
        Part = inference_pb2.ClassifyUploadRequest
        begin = inference_pb2.ClassifyUploadOptions(
            options=inference_pb2.ClassifyOptions(**options)
        )
        parts = [Part(options=begin), Part(chunk=image[:100]), Part(chunk=image[100:])]
        return self.inference.ClassifyUpload(iter(parts), metadata=metadata(key))

    async def stream(self, *images: bytes, key: str | None = None, **options) -> list:
        call = self.inference.ClassifyStream(metadata=metadata(key))
        config = inference_pb2.ClassifyStreamConfig(
            options=inference_pb2.ClassifyOptions(**options)
        )
        await call.write(inference_pb2.ClassifyStreamRequest(config=config))
        for number, image in enumerate(images):
            await call.write(frame(number, image))
        await call.done_writing()
        return [reply async for reply in call]


def frame(number: int, image: bytes) -> inference_pb2.ClassifyStreamRequest:
    one = inference_pb2.Frame(frame_id=number, image=image_pb2.Image(encoded=image))
    return inference_pb2.ClassifyStreamRequest(frame=one)


def metadata(key: str | None = None, token: str = ADMIN) -> tuple[tuple[str, str], ...]:
    known = () if key is None else (("x-caller-key", key),)
    return (("authorization", f"Bearer {token}"), *known)


@contextlib.asynccontextmanager
async def operated(tmp_path: Path, **settings) -> AsyncIterator[Operator]:
    """Run a server with two variants whose answers never differ, and whose callers have tokens."""
    folder = tmp_path / "variants"
    folder.mkdir(exist_ok=True)
    async with (
        administered(folder, **{"variants": BOTH} | settings) as server,
        connected(server) as channel,
    ):
        yield Operator(server, channel)


@contextlib.contextmanager
def refused(code: str, *texts: str):
    with pytest.raises(grpc.RpcError) as failed:
        yield
    assert failed.value.code().name == code, failed.value
    for text in texts:
        assert text in (failed.value.details() or "")


def engine_of(operator: Operator, name: str):
    (engine,) = [queue.engine for queue in queues_of(operator.server) if queue.name == name]
    return engine


def held_back(engine) -> threading.Event:
    """Make an engine wait for an event before each batch."""
    run, opened = engine.run, threading.Event()

    def wait(*arguments):
        opened.wait(60)
        return run(*arguments)

    engine.run = wait
    return opened
