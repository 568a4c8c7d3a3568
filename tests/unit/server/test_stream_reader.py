"""The messages of a stream, in virtual time and without a server."""

from __future__ import annotations

import asyncio

import pytest

from resnet50.v1 import inference_pb2
from resnet50_server.api.call import Received
from resnet50_server.api.stream_reader import StreamReader
from resnet50_server.errors import InvalidRequest, ShuttingDown, Stalled
from tests.support import virtual_time

IDLE_S = 10.0


def frame(number: int) -> Received:
    request = inference_pb2.ClassifyStreamRequest(frame=inference_pb2.Frame(frame_id=number))
    return Received(request, 100 + number)


def test_time_in_which_the_server_is_busy_is_not_idle():
    async def read() -> None:
        messages: asyncio.Queue[Received] = asyncio.Queue()
        reader = StreamReader(messages.get, IDLE_S)
        messages.put_nowait(frame(0))
        assert (await anext(reader)).message.frame_id == 0
        await asyncio.sleep(3 * IDLE_S)  # the window is full
        messages.put_nowait(frame(1))
        frame_1, size = await anext(reader)
        assert (frame_1.frame_id, size) == (1, 101)
        with pytest.raises(Stalled, match="stream_idle_timeout_s"):
            await asyncio.wait_for(anext(reader), 5 * IDLE_S)
        reader.close()

    virtual_time.run(read())


@pytest.mark.parametrize("number", [6, 7])
async def test_frame_id_that_does_not_increase_is_refused(number):
    messages: asyncio.Queue[Received] = asyncio.Queue()
    reader = StreamReader(messages.get, IDLE_S)
    for one in (7, number):
        messages.put_nowait(frame(one))
    assert (await anext(reader)).message.frame_id == 7
    with pytest.raises(InvalidRequest, match=f"is {number} after 7"):
        await anext(reader)
    reader.close()


async def test_stop_does_not_cancel_a_task_that_starts_a_frame():
    messages: asyncio.Queue[Received] = asyncio.Queue()
    reader = StreamReader(messages.get, IDLE_S)
    messages.put_nowait(frame(0))
    reading, started = asyncio.Event(), asyncio.Event()

    async def read() -> None:
        await anext(reader)
        reading.set()
        await started.wait()  # as for a permit
        with pytest.raises(ShuttingDown):
            await anext(reader)

    task = asyncio.create_task(read())
    await reading.wait()
    reader.stop(ShuttingDown())
    started.set()
    await task
    reader.close()
