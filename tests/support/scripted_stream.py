"""A server whose streams do what a test scripts, right or wrong, behind a line that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

from resnet50.v1 import inference_pb2, inference_pb2_grpc, result_pb2
from tests.support.faults import Line, line_to

Frames = AsyncIterator[inference_pb2.Frame]
Script = Callable[["Stream"], AsyncIterator[inference_pb2.ClassifyStreamResponse]]


@dataclass
class Stream:
    """One call of a stream, as its script sees it.

    Attributes:
        number: Of the call, from 1.
        received: Ids of the frames that have come.
        context: gRPC's.
        line: Through which it came.
        requests: Its messages, config and frames.
        ended: Whether its script has ended, or was cancelled.
    """

    number: int
    context: Any
    line: Line
    requests: Any
    received: list[int] = field(default_factory=list)
    ended: bool = False

    async def frames(self) -> Frames:
        """Give the frames that come."""
        async for request in self.requests:
            if request.WhichOneof("part") == "frame":
                self.received.append(request.frame.frame_id)
                yield request.frame

    async def refuse(self) -> None:
        """End the stream as a server does that shuts down."""
        metadata = (("x-request-id", "scripted"),)
        await self.context.abort(grpc.StatusCode.UNAVAILABLE, "restarting", metadata)

    async def cut(self) -> None:
        """Break the connection without a word, as a server does that is killed."""
        self.line.cut()
        async for _ in self.requests:  # until gRPC notices
            pass


@dataclass
class Scripted:
    """The server.

    Attributes:
        address: Where clients connect to.
        streams: The calls so far.
        line: Before it.
    """

    script: Script
    line: Line
    streams: list[Stream] = field(default_factory=list)

    @property
    def address(self) -> str:
        return self.line.address

    async def ClassifyStream(self, requests, context):
        stream = Stream(len(self.streams) + 1, context, self.line, requests)
        self.streams.append(stream)
        try:
            async for reply in self.script(stream):
                yield reply
        finally:
            stream.ended = True


@contextlib.asynccontextmanager
async def scripted_stream(script: Script) -> AsyncIterator[Scripted]:
    """Run a server in this event loop that answers `ClassifyStream` as scripted."""
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    async with line_to(f"127.0.0.1:{port}") as line:
        scripted = Scripted(script, line)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(_All(scripted), server)
        await server.start()
        try:
            yield scripted
        finally:
            await server.stop(0)


class _All(inference_pb2_grpc.InferenceServiceServicer):
    def __init__(self, scripted: Scripted) -> None:
        self.ClassifyStream = scripted.ClassifyStream


def answer(frame_id: int, **outcome: Any) -> inference_pb2.ClassifyStreamResponse:
    """Return an answer; by default a category that tells the frame."""
    category = result_pb2.Category(label=f"frame {frame_id}", probability=1.0)
    outcome = outcome or {"classification": result_pb2.Classification(categories=[category])}
    return inference_pb2.ClassifyStreamResponse(frame_id=frame_id, **outcome)


def dropped(frame_id: int, newer: int) -> inference_pb2.ClassifyStreamResponse:
    """Return what a latest stream says of a frame that a newer one has replaced."""
    return answer(frame_id, dropped=result_pb2.Dropped(replaced_by_frame_id=newer))


async def healthy(stream: Stream) -> AsyncIterator[inference_pb2.ClassifyStreamResponse]:
    """Answer every frame."""
    async for frame in stream.frames():
        yield answer(frame.frame_id)


async def mute(stream: Stream) -> AsyncIterator[inference_pb2.ClassifyStreamResponse]:
    """Take every frame and answer none."""
    async for _ in stream.frames():
        pass
    await asyncio.Event().wait()
    yield inference_pb2.ClassifyStreamResponse()  # which makes it a generator


def at_first(script: Script, then: Script = healthy) -> Script:
    """Return what does as one script in the first call, and as another in those after it."""
    return lambda stream: script(stream) if stream.number == 1 else then(stream)
