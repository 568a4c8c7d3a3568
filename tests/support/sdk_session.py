"""Calls of every shape over the SDK that is installed where this runs: a program of its own.

    python -I sdk_session.py ADDRESS PHOTO

ADDRESS is a real server's, PHOTO a JPEG. Prints, as JSON, the versions and the names of the checks
that passed; the first one that fails ends the program with its traceback.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import math
import pickle
import platform
import sys
import threading
import typing
from collections.abc import Callable
from importlib.metadata import distributions

import google.protobuf
import grpc
import numpy as np
from google.protobuf.internal import api_implementation

import resnet50_client
from resnet50_client import (
    AsyncClient,
    CallCancelledError,
    Classification,
    Client,
    DeadlineExceededError,
    ImageInput,
    InvalidImageError,
    OverloadedError,
    RetryPolicy,
    UnavailableError,
    VariantNotFoundError,
)
from resnet50_client.testing import FakeServer

# Ends a check that hangs.
LIMIT_S = 60.0
FRAMES = 24
PIXELS = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
# Above the size up to which an image is sent in one message.
LARGE = b"\xff\xd8" + bytes(6 * 2**20)

CHECKS: list[Callable[[str, str], None]] = []
ASYNC_CHECKS: list[Callable[[str, str], typing.Coroutine[None, None, None]]] = []


def check(function):
    """Register a check; it gets the real server's address and the photo's path."""
    (ASYNC_CHECKS if inspect.iscoroutinefunction(function) else CHECKS).append(function)
    return function


def raises(kind: type[BaseException], function: Callable[..., object], *args, **options):
    """Return the error that a call raises."""
    try:
        function(*args, **options)
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


async def raises_async(kind: type[BaseException], awaitable: typing.Awaitable[object]):
    """Return the error that an awaitable raises."""
    try:
        await awaitable
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


@check
def single_calls(address: str, photo: str) -> None:
    with Client(address, timeout_s=LIMIT_S) as client:
        client.wait_until_ready()
        assert client.health() == "SERVING"
        with open(photo, "rb") as file:
            content = file.read()
            file.seek(0)
            for image in (photo, content, file, PIXELS):
                assert len(client.classify(image, top_k=3)) == 3
        embedding = client.embed(photo, dtype="float16", l2_normalize=True)
        assert np.asarray(embedding).shape == (2048,) and embedding.vector.dtype == np.float16
        json.dumps(embedding.to_dict())
        assert client.get_variant("IMAGENET1K_V2").embedding_dimension == 2048


@check
def uploads(address: str, photo: str) -> None:
    with Client(address, timeout_s=LIMIT_S) as client:
        with open(photo, "rb") as file:
            padded = file.read() + bytes(6 * 2**20)
        assert client.classify(padded).top.probability > 0
        assert "image" in raises(InvalidImageError, client.classify, LARGE).field


@check
def streams(address: str, photo: str) -> None:
    with Client(address, timeout_s=LIMIT_S) as client:
        frames: list[ImageInput] = [photo if n % 2 else PIXELS for n in range(FRAMES)]
        answers = list(client.classify_stream(iter(frames), delivery="ordered"))
        assert [answer.frame_id for answer in answers] == list(range(FRAMES))
        assert all(isinstance(answer.result, Classification) for answer in answers)
        frames[3] = b"no image"
        errors = [answer.error for answer in client.embed_stream(iter(frames))]
        assert [number for number, error in enumerate(errors) if error] == [3]
        latest = list(client.classify_stream(iter(frames[4:]), delivery="latest"))
        assert sorted(answer.frame_id for answer in latest) == list(range(FRAMES - 4))


@check
def many(address: str, photo: str) -> None:
    with Client(address, timeout_s=LIMIT_S) as client:
        results = list(client.classify_many([photo] * FRAMES))
        assert len(results) == FRAMES and results[0].source == photo
        images: list[ImageInput] = [PIXELS, b"no image", photo]
        outcomes = list(client.classify_many(images, return_exceptions=True))
        assert [isinstance(one, InvalidImageError) for one in outcomes] == [False, True, False]
        named: dict[str, ImageInput] = {"a": photo, "b": PIXELS}
        keyed = client.embed_many(named, keyed=True, ordered=False)
        assert {key: len(embedding) for key, embedding in keyed} == {"a": 2048, "b": 2048}
        batch = client.embed_batch(images)
        assert np.asarray(batch).shape == (3, 2048) and list(batch.errors) == [1]


@check
def errors(address: str, photo: str) -> None:
    with Client(address, timeout_s=LIMIT_S) as client:
        error = raises(InvalidImageError, client.classify, b"no image")
        assert (error.field, error.code) == ("image.encoded", "INVALID_ARGUMENT")
        assert pickle.loads(pickle.dumps(error)).field == "image.encoded"
        error = raises(VariantNotFoundError, client.classify, photo, variant="NONE")
        assert "IMAGENET1K_V2" in error.served
    with FakeServer() as server, Client(server.address, timeout_s=LIMIT_S) as client:
        server.script(OverloadedError("full", retry_after_s=0.25))
        assert raises(OverloadedError, client.classify, b"any").retry_after_s == 0.25
    retry = RetryPolicy(attempts=1)
    with Client(server.address, retry=retry, timeout_s=LIMIT_S) as client:
        assert raises(UnavailableError, client.classify, b"any").never_sent


@check
def retries(address: str, photo: str) -> None:
    with FakeServer() as server, Client(server.address, timeout_s=LIMIT_S) as client:
        server.script(UnavailableError("restarting"), UnavailableError("restarting"), {"daisy": 1})
        assert client.classify(b"any").top.label == "daisy"
        assert len(server.received) == 3


@check
def deadlines(address: str, photo: str) -> None:
    with FakeServer() as server, Client(server.address) as client:
        server.delay_s = LIMIT_S
        raises(DeadlineExceededError, client.classify, b"any", timeout_s=0.2)


@check
def cancellation(address: str, photo: str) -> None:
    with FakeServer() as server:
        server.delay_s = LIMIT_S
        client, ended = Client(server.address, timeout_s=math.inf), []

        def call() -> None:
            ended.append(raises(CallCancelledError, client.classify, b"any"))

        thread = threading.Thread(target=call)
        thread.start()
        until(lambda: server.received)
        client.close()
        thread.join(LIMIT_S)
        assert len(ended) == 1


@check
def stream_cancellation(address: str, photo: str) -> None:
    with FakeServer() as server, Client(server.address, timeout_s=LIMIT_S) as client:
        server.delay_s = LIMIT_S
        with client.classify_stream([b"any"]) as stream:
            timer = threading.Timer(0.1, stream.cancel)
            timer.start()
            raises(CallCancelledError, list, stream)


@check
def copies(address: str, photo: str) -> None:
    with pickle.loads(pickle.dumps(Client(address, timeout_s=LIMIT_S))) as client:
        assert client.classify(photo).top.probability > 0


@check
def types(address: str, photo: str) -> None:
    for name in resnet50_client.__all__:
        value = getattr(resnet50_client, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            typing.get_type_hints(value)
    typing.get_type_hints(Client.classify)
    typing.get_type_hints(AsyncClient.classify)


@check
async def async_calls(address: str, photo: str) -> None:
    async with AsyncClient(address, timeout_s=LIMIT_S) as client:
        await client.wait_until_ready()
        results = await asyncio.gather(*(client.classify(photo) for _ in range(FRAMES)))
        assert all(len(result) == 5 for result in results)
        assert (await client.embed(PIXELS)).vector.shape == (2048,)
        # Rejected after its first part: grpc.aio itself would lose the server's status.
        assert "image" in (await raises_async(InvalidImageError, client.classify(LARGE))).field
        error = await raises_async(VariantNotFoundError, client.embed(photo, variant="NONE"))
        assert "IMAGENET1K_V2" in error.served


@check
async def async_streams(address: str, photo: str) -> None:
    async with AsyncClient(address, timeout_s=LIMIT_S) as client:

        async def frames():
            for number in range(FRAMES):
                yield photo if number % 2 else PIXELS

        for delivery in ("ordered", "latest"):
            stream = client.classify_stream(frames(), delivery=delivery)
            found = [answer.frame_id async for answer in stream]
            assert sorted(found) == list(range(FRAMES))
        assert len([one async for one in client.embed_many([photo] * FRAMES)]) == FRAMES
        assert (await client.embed_batch([photo, PIXELS])).vectors.shape == (2, 2048)


@check
async def async_retries_and_deadlines(address: str, photo: str) -> None:
    with FakeServer() as server:
        async with AsyncClient(server.address, timeout_s=LIMIT_S) as client:
            server.script(UnavailableError("restarting"), {"daisy": 1})
            assert (await client.classify(b"any")).top.label == "daisy"
            server.delay_s = LIMIT_S
            await raises_async(DeadlineExceededError, client.classify(b"any", timeout_s=0.2))


@check
async def async_cancellation(address: str, photo: str) -> None:
    with FakeServer() as server:
        async with AsyncClient(server.address, timeout_s=math.inf) as client:
            server.delay_s = LIMIT_S
            task = asyncio.create_task(client.classify(b"any"))
            await asyncio.to_thread(until, lambda: server.received)
            task.cancel()
            await raises_async(asyncio.CancelledError, task)
            closed = asyncio.create_task(client.classify(b"other"))
            await asyncio.to_thread(until, lambda: len(server.received) == 2)
            await client.close()
            await raises_async(CallCancelledError, closed)


def until(condition: Callable[[], object]) -> None:
    """Wait for a condition, which holds within a second unless the machine is loaded."""
    pause = threading.Event()
    for _ in range(int(LIMIT_S / 0.01)):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("the condition did not become true")


async def run_async(address: str, photo: str) -> None:
    """Run the checks of the asyncio client on one loop, each within the limit."""
    for function in ASYNC_CHECKS:
        await asyncio.wait_for(function(address, photo), 2 * LIMIT_S)


def main(address: str, photo: str) -> None:
    """Run all checks, and print what ran on what."""
    for function in CHECKS:
        function(address, photo)
    asyncio.run(run_async(address, photo))
    installed = {one.metadata["Name"].lower(): one.version for one in distributions()}
    print(
        json.dumps(
            {
                "python": platform.python_version(),
                "grpcio": grpc.__version__,
                "protobuf": google.protobuf.__version__,
                "implementation": api_implementation.Type(),
                "numpy": np.__version__,
                "installed": installed,
                "checks": [function.__name__ for function in (*CHECKS, *ASYNC_CHECKS)],
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
