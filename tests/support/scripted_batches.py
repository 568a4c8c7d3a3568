"""A server that answers batches as a test scripts, behind a line that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from google.rpc import status_pb2

from resnet50.v1 import inference_pb2, inference_pb2_grpc, result_pb2
from tests.support.faults import Line, line_to


@dataclass
class BatchServer:
    """The server. The label of an image's category is its content, as text.

    Attributes:
        line: Before it.
        calls: The images of each call so far.
        metadata: The metadata of each call.
    """

    script: Script
    line: Line
    calls: list[list[bytes]] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return self.line.address

    @property
    def images(self) -> list[bytes]:
        """All images that came, in the order of their calls."""
        return [image for call in self.calls for image in call]

    async def cut(self) -> None:
        """Break the connection, as a server does that is killed."""
        self.line.cut()
        await asyncio.Event().wait()  # until gRPC cancels the call

    async def answers(self, images: list[bytes], context: Any) -> list[Any]:
        self.calls.append(images)
        self.metadata.append(dict(context.invocation_metadata()))
        return await self.script(self, images, context)


Script = Callable[[BatchServer, list[bytes], Any], Awaitable[list[Any]]]


async def healthy(server: BatchServer, images: list[bytes], context: Any) -> list[Any]:
    """Answer each image."""
    return [image.decode() for image in images]


def status(code: grpc.StatusCode, message: str = "scripted") -> status_pb2.Status:
    """Return an error of one image."""
    return status_pb2.Status(code=code.value[0], message=message)


class _Servicer(inference_pb2_grpc.InferenceServiceServicer):
    def __init__(self, server: BatchServer) -> None:
        self._server = server

    async def Classify(self, request: Any, context: Any) -> Any:
        (found,) = await self._server.answers([request.image.encoded], context)
        if isinstance(found, status_pb2.Status):
            code = next(one for one in grpc.StatusCode if one.value[0] == found.code)
            await context.abort(code, found.message)
        return inference_pb2.ClassifyResponse(classification=classification(found))

    async def ClassifyBatch(self, request: Any, context: Any) -> Any:
        images = [image.encoded for image in request.images]
        reply = inference_pb2.ClassifyBatchResponse()
        for found in await self._server.answers(images, context):
            if isinstance(found, status_pb2.Status):
                reply.results.add(error=found)
            else:
                reply.results.add(classification=classification(found))
        return reply

    async def Embed(self, request: Any, context: Any) -> Any:
        (found,) = await self._server.answers([request.image.encoded], context)
        return inference_pb2.EmbedResponse(embedding=embedding(found))

    async def EmbedBatch(self, request: Any, context: Any) -> Any:
        images = [image.encoded for image in request.images]
        reply = inference_pb2.EmbedBatchResponse()
        for found in await self._server.answers(images, context):
            reply.results.add(embedding=embedding(found))
        return reply


def classification(label: str) -> result_pb2.Classification:
    """Return one with a single category."""
    category = result_pb2.Category(label=label, probability=1.0)
    return result_pb2.Classification(categories=[category])


def embedding(space: str) -> result_pb2.Embedding:
    """Return one of a space."""
    values = np.ones(2048, dtype="<f4").tobytes()
    return result_pb2.Embedding(
        values=values, type=result_pb2.EMBEDDING_TYPE_FLOAT32, dimension=2048, space=space
    )


class _WithoutBatches(_Servicer):
    ClassifyBatch = inference_pb2_grpc.InferenceServiceServicer.ClassifyBatch
    EmbedBatch = inference_pb2_grpc.InferenceServiceServicer.EmbedBatch


@contextlib.asynccontextmanager
async def scripted_batches(
    script: Script = healthy, *, batches: bool = True
) -> AsyncIterator[BatchServer]:
    """Run a server in this event loop; without `batches` it is of an older release."""
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    async with line_to(f"127.0.0.1:{port}") as line:
        scripted = BatchServer(script, line)
        servicer = (_Servicer if batches else _WithoutBatches)(scripted)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, server)
        await server.start()
        try:
            yield scripted
        finally:
            await server.stop(0)
