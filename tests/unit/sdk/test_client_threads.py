"""Threads of the asyncio client: those of the application stay free, and none is left behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar

import pytest

from resnet50_client import AsyncClient
from resnet50_client._sources import AsyncSource
from resnet50_client.testing import FakeServer

SOURCES = 3
# Images above this size are read in a thread.
LARGE = bytes(2 * 2**20)


@pytest.fixture
def server():
    with FakeServer() as fake:
        yield fake


class Camera:
    """Gives one image, and then waits until it is released."""

    def __init__(self) -> None:
        self.waiting = threading.Event()
        self.released = threading.Event()
        self.closed = threading.Event()

    def images(self) -> Iterator[bytes]:
        try:
            yield b"1"
            self.waiting.set()
            self.released.wait()
        finally:
            self.closed.set()


def threads(prefix: str) -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name.startswith(prefix)]


async def test_source_is_read_once_a_thread_can_be_started(monkeypatch):
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    source = AsyncSource(iter([b"1"]))
    with monkeypatch.context() as without_threads:
        without_threads.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError, match="new thread"):
            await source.read()
    assert await source.read() == b"1"
    await source.close()


async def test_waiting_sources_take_none_of_asyncios_threads(server, tmp_path):
    path = tmp_path / "image"
    path.write_bytes(LARGE)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    cameras = [Camera() for _ in range(SOURCES)]
    async with AsyncClient(server.address, timeout_s=60) as client:
        streams = [client.classify_stream(one.images()) for one in cameras]
        waiting = []
        for stream, camera in zip(streams, cameras, strict=True):
            assert (await anext(stream)).result is not None
            waiting.append(asyncio.ensure_future(anext(stream)))
            while not camera.waiting.is_set():
                await asyncio.sleep(0)
        assert await asyncio.to_thread(lambda: 7) == 7
        assert (await client.classify(path)).top
        async for result in client.classify_many([path] * 3):
            assert result.top
        for task, stream in zip(waiting, streams, strict=True):
            task.cancel()
            await asyncio.wait([task])
            await stream.aclose()
    for camera in cameras:
        assert not camera.closed.is_set()
        camera.released.set()
        assert camera.closed.wait(60)


def test_waiting_source_does_not_hold_up_the_end_of_a_program(server):
    camera = Camera()

    async def main() -> None:
        async with AsyncClient(server.address, timeout_s=60) as client:
            stream = client.classify_stream(camera.images())
            await anext(stream)
            await stream.aclose()

    asyncio.run(main())  # waits for asyncio's threads
    assert all(one.daemon for one in threads("resnet50 source"))
    camera.released.set()
    assert camera.closed.wait(60)


async def test_threads_of_a_client_end_with_it(server):
    before = set(threads("resnet50 "))
    async with AsyncClient(server.address, timeout_s=60) as client:
        await asyncio.gather(*(client.classify(LARGE) for _ in range(4)))
        answers = [one async for one in client.classify_stream(iter([LARGE] * 4))]
        assert all(one.result is not None for one in answers)
        started = set(threads("resnet50 images")) - before
        assert 0 < len(started) <= 16
    for thread in set(threads("resnet50 ")) - before:
        thread.join(60)
        assert not thread.is_alive()


async def test_closed_source_is_closed_in_its_thread(server):
    seen = []

    def images() -> Iterator[bytes]:
        try:
            for _ in range(100):
                seen.append(threading.current_thread())
                yield b"1"
        finally:
            seen.append(threading.current_thread())

    async with AsyncClient(server.address, timeout_s=60) as client:
        stream = client.classify_stream(images(), window=1)
        await anext(stream)
        await stream.aclose()
    assert len(set(seen)) == 1
    assert seen[0] is not threading.main_thread()


async def test_sources_see_the_context_of_their_task(server):
    variable: ContextVar[str] = ContextVar("variable", default="none")
    seen = []

    def images() -> Iterator[bytes]:
        seen.append(variable.get())
        yield b"1"

    variable.set("caller's")
    async with AsyncClient(server.address, timeout_s=60) as client:
        async for answer in client.classify_stream(images()):
            assert answer.result is not None
    assert seen == ["caller's"]
