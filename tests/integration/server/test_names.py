"""Names for profilers: every thread and task of a server has a name of its purpose."""

from __future__ import annotations

import asyncio
import re
import sys
import threading
from pathlib import Path

from resnet50.v1 import image_pb2, inference_pb2, inference_pb2_grpc
from tests.support.pictures import encode, photo_like
from tests.support.scrape import ON
from tests.support.serving import DECODING, connected, engines_of, serving, until

JPEG = image_pb2.Image(encoded=encode(photo_like(320, 240), "JPEG"))
Request = inference_pb2.ClassifyStreamRequest
# Python's own for what was given no name.
NAMELESS = re.compile(r"Task-\d+|Thread-\d+.*")


def names_of_threads() -> set[str]:
    """Return what the system calls this process's threads."""
    tasks = Path("/proc/self/task").iterdir()
    return {(task / "comm").read_text().strip() for task in tasks}


async def test_threads_and_tasks_of_a_server_have_names():
    before = set(threading.enumerate())
    began, ended = threading.Event(), threading.Event()
    async with serving(**ON, **DECODING) as server, connected(server) as channel:
        (engine,) = engines_of(server)
        run = engine.run

        def wait(*arguments):
            began.set()
            ended.wait(60)
            return run(*arguments)

        engine.run = wait
        try:
            tasks, threads = await seen(server, channel, began)
        finally:
            ended.set()
    ours = {name for name, file in tasks if "resnet50_server" in file}
    assert ours == {"read frames", "compute frames", "latest frames", "frame 7", "follow health"}
    assert "stop gRPC" in {name for name, _ in tasks}
    # gRPC's own thread has the name of the function that it runs.
    names = {one.name for one in threads - before if "_poll_wrapper" not in one.name}
    assert not [name for name in names if NAMELESS.fullmatch(name)]
    assert names >= {"decode-0", "engine-cpu-0", "metrics"}
    assert all(len(name) <= 15 for name in names), names


async def seen(server, channel, began) -> tuple[set[tuple[str, str]], set[threading.Thread]]:
    """Return the tasks, with the file of their code, and the threads of a server that drains."""
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    calls = []
    for delivery in (inference_pb2.DELIVERY_ORDERED, inference_pb2.DELIVERY_LATEST):
        call = stub.ClassifyStream()
        config = inference_pb2.ClassifyStreamConfig(delivery=delivery)
        await call.write(Request(config=config))
        await call.write(Request(frame=inference_pb2.Frame(frame_id=7, image=JPEG)))
        calls.append(call)
    # Both streams have been admitted, and one frame computes: the other's task waits for it.
    await until(lambda: server.snapshot().requests == 2 and began.is_set())

    def running() -> set[tuple[str, str]]:
        return {
            (task.get_name(), getattr(task.get_coro(), "cr_code", running.__code__).co_filename)
            for task in asyncio.all_tasks()
        }

    tasks = running()
    stopping = asyncio.create_task(server.stop(), name="the test's")
    await until(lambda: "stop gRPC" in {name for name, _ in running()})
    tasks |= {one for one in running() if one[0] == "stop gRPC"}
    threads = set(threading.enumerate())
    for call in calls:
        call.cancel()
    await stopping
    return tasks, threads


async def test_the_system_knows_the_names_as_well():
    async with serving(**ON):
        if sys.platform == "linux":
            await until(lambda: {"decode-0", "engine-cpu-0", "metrics"} <= names_of_threads())
