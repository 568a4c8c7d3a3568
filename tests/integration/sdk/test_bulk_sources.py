"""Sources of bulk calls, and the end of a call, in both clients."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest

import resnet50_client
from resnet50_client import (
    AsyncClient,
    CallCancelledError,
    Client,
)
from resnet50_client._batches import READ_AHEAD
from resnet50_client._bulk_flow_control import START_WINDOW
from resnet50_client.testing import FakeServer
from tests.support.bulk_calls import TINY, collect, labels, numbered
from tests.support.clients import Caller, items
from tests.support.scripted_batches import BatchServer, healthy, scripted_batches, status
from tests.support.serving import gate, serving, until


class Frames:
    """Images without end; tells whether they were closed."""

    def __init__(self) -> None:
        self.closed = threading.Event()
        self.resume = threading.Event()
        self.read = 0
        self.hold_at: int | None = None

    def __iter__(self) -> Iterator[bytes]:
        try:
            while True:
                if self.read == self.hold_at:
                    self.resume.wait(60)
                self.read += 1
                yield str(self.read).encode()
        finally:
            self.closed.set()


async def test_slow_source_gets_its_results_as_it_goes(kind):
    answered = threading.Semaphore(0)

    def images() -> Iterator[bytes]:
        for number in range(5):
            yield str(number).encode()
            assert answered.acquire(timeout=60)  # no next one before this has its result

    async with scripted_batches() as server, Caller(kind, server.address) as client:
        results = []
        async for result in items(client, "classify_many", images()):
            results.append(result)
            answered.release()
    assert labels(results) == [str(number) for number in range(5)]


async def test_endless_source_is_read_ahead_by_a_bounded_number(kind):
    frames = Frames()
    async with scripted_batches() as server, Caller(kind, server.address) as client:
        ahead, taken = [], 0
        results = items(client, "classify_many", frames, max_in_flight=4)
        async with contextlib.aclosing(results):
            async for _ in results:
                taken += 1
                ahead.append(frames.read - taken)
                if taken == 200:
                    break
        assert await asyncio.to_thread(frames.closed.wait, 60)
    assert max(map(len, server.calls)) == 1
    # The results of one window may wait to be taken, in a second one there are images read ahead.
    assert max(ahead) < 150


async def test_images_that_are_gone_with_the_next_one_are_answered(kind):
    def images() -> Iterator[memoryview]:
        for image in numbered(40):
            with memoryview(image) as view:
                yield view  # released when the next one is taken

    async with scripted_batches() as server, Caller(kind, server.address) as client:
        results = await collect(client, "classify_many", images())
    assert labels(results) == [str(number) for number in range(40)]


async def test_images_are_read_ahead_while_others_are_in_flight(kind):
    answered = asyncio.Event()

    async def script(server: BatchServer, images: list[bytes], context):
        await answered.wait()
        return await healthy(server, images, context)

    frames = Frames()
    async with scripted_batches(script) as server, Caller(kind, server.address) as client:
        results = items(client, "classify_many", frames)
        first = asyncio.ensure_future(anext(results))
        await until(lambda: frames.read == READ_AHEAD + START_WINDOW)
        answered.set()
        await first
        await results.aclose()


async def test_failing_source_is_raised_after_its_results(kind):
    def images() -> Iterator[bytes]:
        yield from numbered(3)
        raise ZeroDivisionError("the disk is gone")

    async with scripted_batches() as server, Caller(kind, server.address) as client:
        found = []
        with pytest.raises(ZeroDivisionError, match="the disk is gone"):
            async for result in items(client, "classify_many", images()):
                found.append(result)
    assert labels(found) == ["0", "1", "2"]


async def cancelled_elsewhere() -> None:
    """Await a future that something else has cancelled, not the task that waits."""
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


async def test_source_that_awaits_a_cancelled_future_ends_its_run():
    async def images() -> AsyncIterator[bytes]:
        yield b"0"
        await cancelled_elsewhere()

    async with scripted_batches() as server, AsyncClient(server.address) as client:
        results = client.classify_many(images())
        assert (await anext(results)).top.label == "0"
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(anext(results), 60)


async def test_token_that_awaits_a_cancelled_future_ends_its_run():
    async with (
        scripted_batches() as server,
        AsyncClient(server.address, token=cancelled_elsewhere) as client,
    ):
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(anext(client.classify_many([b"0"])), 60)


async def test_dropped_run_closes_a_source_that_is_slow_to_cancel():
    cleaned, closed = asyncio.Event(), asyncio.Event()

    async def clean_up() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            for _ in range(20):
                await asyncio.sleep(0)
            cleaned.set()

    async def images() -> AsyncIterator[bytes]:
        try:
            yield b"0"
            await clean_up()
        finally:
            await asyncio.sleep(0)
            closed.set()

    failures: list[dict] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    async with scripted_batches() as server, AsyncClient(server.address) as client:
        results = client.classify_many(images())
        await anext(results)
        del results
        gc.collect()
        await asyncio.wait_for(closed.wait(), 60)
        assert cleaned.is_set()
        gc.collect()
        await asyncio.sleep(0)
    assert failures == []


@pytest.mark.parametrize("end", ["closed", "error", "client", "dropped"])
async def test_source_is_closed_at_any_end(kind, end):
    async def script(server: BatchServer, images: list[bytes], context):
        if end == "error":
            return [status(grpc.StatusCode.INTERNAL)] * len(images)
        return await healthy(server, images, context)

    frames = Frames()
    async with scripted_batches(script) as server:
        client = Caller(kind, server.address)
        results = client.client.classify_many(frames)

        async def first() -> object:
            if kind is Client:
                return await asyncio.to_thread(next, results)
            return await anext(results)

        if end == "error":
            with pytest.raises(resnet50_client.ServerError):
                await first()
        else:
            await first()
        if end == "closed" and kind is Client:
            await asyncio.to_thread(results.close)
        elif end == "closed":
            await results.aclose()
        elif end == "client":
            await client.close()
            with pytest.raises(CallCancelledError):
                while True:
                    await first()
        elif end == "dropped":
            del results, first
            gc.collect()
        assert await asyncio.to_thread(frames.closed.wait, 60)
        await client.close()


class Photo(os.PathLike):
    """The path of an image."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


async def test_failed_run_is_forgotten_with_its_error(kind, tmp_path):
    (tmp_path / "image").write_bytes(TINY)
    photo = Photo(tmp_path / "image")
    alive = weakref.ref(photo)
    retry = resnet50_client.RetryPolicy(attempts=1)
    async with Caller(kind, "127.0.0.1:1", retry=retry) as client:
        with pytest.raises(resnet50_client.UnavailableError) as raised:
            await collect(client, "classify_many", [photo])
        del photo, raised
        await until(lambda: gc.collect() is not None and alive() is None)


async def test_closed_run_keeps_none_of_its_images(kind, tmp_path):
    """The results are still referenced; the images are in a call that is not answered."""
    photos = [Photo(tmp_path / f"{number}") for number in range(3)]
    for photo in photos:
        photo.path.write_bytes(TINY)
    alive = [weakref.ref(photo) for photo in photos]
    called, answered = asyncio.Event(), asyncio.Event()

    async def script(server: BatchServer, images: list[bytes], context):
        called.set()
        await answered.wait()

    async with scripted_batches(script) as server, Caller(kind, server.address) as client:
        results = client.client.classify_many(iter(photos))
        if isinstance(results, AsyncIterator):
            waiting = asyncio.ensure_future(anext(results))
            await called.wait()
            await results.aclose()
        else:
            waiting = asyncio.ensure_future(asyncio.to_thread(next, results))
            await called.wait()
            await asyncio.to_thread(results.close)
        with pytest.raises(CallCancelledError):
            await waiting
        del photo, photos, waiting
        await until(lambda: gc.collect() is not None and not any(one() for one in alive))
        answered.set()
        del results


async def test_closing_the_client_ends_a_run_that_waits_for_its_source(kind):
    frames = Frames()
    frames.hold_at = 1
    async with scripted_batches() as server:
        client = Caller(kind, server.address)
        results = items(client, "classify_many", frames)
        await anext(results)
        waiting = asyncio.ensure_future(anext(results))
        await asyncio.sleep(0)
        await client.close()
        with pytest.raises(CallCancelledError, match="the client was closed"):
            await waiting
        frames.resume.set()


async def test_run_first_read_after_close_makes_no_call(kind):
    async with scripted_batches() as server:
        client = Caller(kind, server.address)
        results = client.client.classify_many(numbered(3))
        await client.close()
        with pytest.raises(CallCancelledError):
            await (anext(results) if kind is AsyncClient else asyncio.to_thread(next, results))
        with pytest.raises(RuntimeError, match="is closed; create a new one"):
            client.client.classify_many(numbered(3))
    assert server.calls == []


async def test_another_thread_can_close_the_results():
    async with serving() as server:
        with Client(server.addresses[0]) as client:
            opened = gate(server)
            results = client.classify_many(itertools.repeat(TINY))
            waiting = asyncio.ensure_future(asyncio.to_thread(next, results))
            await until(lambda: server.snapshot().requests > 0)
            await asyncio.to_thread(results.close)
            with pytest.raises(CallCancelledError, match="closed by another thread"):
                await waiting
            await until(lambda: server.snapshot().requests == 0)
            opened.set()
            assert next(results, None) is None


async def test_cancelled_task_cancels_its_calls():
    async with serving() as server, AsyncClient(server.addresses[0]) as client:
        opened = gate(server)
        run = asyncio.ensure_future(anext(client.classify_many(itertools.repeat(TINY))))
        await until(lambda: server.snapshot().requests > 0)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        await until(lambda: server.snapshot().requests == 0)
        opened.set()


def test_results_that_were_begun_before_a_fork_say_so(monkeypatch):
    parent = os.getpid()
    with (
        FakeServer() as server,
        Client(server.address) as client,
        client.classify_many([TINY, TINY]) as results,
    ):
        next(results)
        with monkeypatch.context() as child:
            child.setattr(os, "getpid", lambda: parent + 1)
            with pytest.raises(RuntimeError, match="begun before a fork"):
                next(results)
