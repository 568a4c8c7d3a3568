"""Streams by hand: their messages, and an engine that computes when it is let."""

from __future__ import annotations

import asyncio

import grpc

from resnet50.v1 import image_pb2, inference_pb2, inference_pb2_grpc
from resnet50_client._aio_status import keep_status
from resnet50_server.server import Server
from tests.support.pictures import encode, picture
from tests.support.serving import engines_of

PNG = encode(picture(32, 32))
ORDERED, LATEST = inference_pb2.DELIVERY_ORDERED, inference_pb2.DELIVERY_LATEST
Request = inference_pb2.ClassifyStreamRequest


def config(delivery=ORDERED, max_in_flight=0, **options) -> Request:
    return Request(
        config=inference_pb2.ClassifyStreamConfig(
            options=inference_pb2.ClassifyOptions(**options),
            delivery=delivery,
            max_in_flight=max_in_flight,
        )
    )


def frame(frame_id: int, encoded: bytes = PNG) -> Request:
    image = image_pb2.Image(encoded=encoded)
    return Request(frame=inference_pb2.Frame(frame_id=frame_id, image=image))


def open_stream(channel: grpc.aio.Channel):
    return inference_pb2_grpc.InferenceServiceStub(channel).ClassifyStream()


async def converse(channel: grpc.aio.Channel, *requests: Request) -> list:
    """Send all requests, end them, and return all answers."""
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    call = keep_status(stub.ClassifyStream(iter(requests)))
    return [reply async for reply in call]


def outcomes(replies) -> list[str]:
    return [reply.WhichOneof("outcome") for reply in replies]


class Gate:
    """An engine that computes a batch each time it is let."""

    def __init__(self, server: Server, monkeypatch) -> None:
        self.batches: list[int] = []
        self.loop = asyncio.get_running_loop()
        self.entered: asyncio.Queue[int] = asyncio.Queue()
        self.permits = asyncio.Queue()
        (engine,) = engines_of(server)
        run = engine.run

        def gated(images, *arguments):
            self.loop.call_soon_threadsafe(self.entered.put_nowait, len(images))
            asyncio.run_coroutine_threadsafe(self.permits.get(), self.loop).result(60)
            return run(images, *arguments)

        monkeypatch.setattr(engine, "run", gated)

    def let(self, batches: int = 1) -> None:
        for _ in range(batches):
            self.permits.put_nowait(None)
