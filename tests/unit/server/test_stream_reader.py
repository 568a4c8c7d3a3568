"""The messages of a stream, in virtual time and without a server."""

from __future__ import annotations

import asyncio

import pytest

from resnet50.v1 import inference_pb2
from resnet50_server.api.stream_reader import StreamReader
from resnet50_server.errors import Stalled
from tests.support import virtual_time

IDLE_S = 10.0


def frame(number: int) -> inference_pb2.ClassifyStreamRequest:
    return inference_pb2.ClassifyStreamRequest(frame=inference_pb2.Frame(frame_id=number))


def test_time_in_which_the_server_is_busy_is_not_idle():
    async def read() -> None:
        messages: asyncio.Queue[inference_pb2.ClassifyStreamRequest] = asyncio.Queue()
        reader = StreamReader(messages.get, IDLE_S)
        frames = reader.frames()
        messages.put_nowait(frame(0))
        assert (await anext(frames)).frame_id == 0
        await asyncio.sleep(3 * IDLE_S)  # the window is full
        messages.put_nowait(frame(1))
        assert (await anext(frames)).frame_id == 1
        with pytest.raises(Stalled, match="stream_idle_timeout_s"):
            await asyncio.wait_for(anext(frames), 5 * IDLE_S)
        reader.close()

    virtual_time.run(read())
