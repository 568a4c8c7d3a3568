"""Calls of every shape, from both clients, made until they are stopped."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator

from resnet50_client import (
    AsyncClient,
    Client,
    FrameAnswer,
    InvalidImageError,
    Resnet50Error,
    VariantNotFoundError,
)
from tests.support.pictures import encode, photo_like

PHOTO = encode(photo_like(400, 300), "JPEG")
# Above the SDK's limit for one message, so it is sent in chunks.
LARGE = encode(photo_like(1600, 1200), "BMP")

Shape = Callable[[str, "Caller"], Iterator[str]]


class NotAsPromised(Exception):
    """An answer differs from what was asked for."""


class Caller(threading.Thread):
    """Makes calls of one shape until it is stopped, and counts their outcomes.

    Args:
        name: Of the shape.
        shape: Gives, for each answer, the name of the server that gave it.
        answers_due: In each phase of the trial.
        address: Of the load balancer.
    """

    def __init__(self, name: str, shape: Shape, answers_due: int, address: str) -> None:
        super().__init__(name=name, daemon=True)
        self.answers_due = answers_due
        self.answers: collections.Counter[str] = collections.Counter()
        self.failures: list[Exception] = []
        self.stopped = False
        self._shape = shape
        self._address = address

    def run(self) -> None:
        """Continue after a failure: their number tells more than the first one."""
        while not self.stopped:
            try:
                for server in self._shape(self._address, self):
                    self.answers[server] += 1
            except (Resnet50Error, NotAsPromised) as error:
                self.failures.append(error)


# Shapes of calls


def unary(address: str, caller: Caller) -> Iterator[str]:
    """Classify a photograph again and again."""
    with Client(address) as client:
        while not caller.stopped:
            yield client.classify(PHOTO).variant.name


def new_connection(address: str, caller: Caller) -> Iterator[str]:
    """Embed, each time over a connection of its own."""
    while not caller.stopped:
        with Client(address) as client:
            result = client.embed(PHOTO)
        if result.vector.shape != (2048,):
            raise NotAsPromised(f"a vector of shape {result.vector.shape}")
        yield result.variant.name


def bulk(address: str, caller: Caller) -> Iterator[str]:
    """Classify lists of photographs, in calls about several of them."""
    with Client(address) as client:
        while not caller.stopped:
            for answer in client.classify_many([PHOTO] * 16):
                yield answer.variant.name


def upload(address: str, caller: Caller) -> Iterator[str]:
    """Send 5.8 MB, in chunks."""
    with Client(address) as client:
        while not caller.stopped:
            yield client.classify(LARGE).variant.name


def refused(address: str, caller: Caller) -> Iterator[str]:
    """Ask for what is refused: the details of a status come through, in trailing metadata."""
    with Client(address) as client:
        while not caller.stopped:
            try:
                client.classify(PHOTO, variant="three")
                raise NotAsPromised("a variant that is not served was answered")
            except VariantNotFoundError as error:
                if error.served[:2] != ("one", "two") or not error.request_id:
                    raise NotAsPromised(f"details are missing: {error.served}") from error
            try:
                client.classify(b"no image")
                raise NotAsPromised("what is no image was answered")
            except InvalidImageError as error:
                if not error.field:
                    raise NotAsPromised("the field is missing") from error
            yield "either"


def ordered(address: str, caller: Caller) -> Iterator[str]:
    """Send frames; each is answered once, in its turn."""
    with Client(address) as client:
        frames = _frames(caller)
        next_id = 0
        for answer in client.classify_stream(frames, window=8):
            if answer.frame_id != next_id:
                raise NotAsPromised(f"frame {answer.frame_id} is answered, {next_id} is due")
            next_id += 1
            yield _server(answer)
        if next_id != frames.given:
            raise NotAsPromised(f"{next_id} of {frames.given} frames were answered")


def latest(address: str, caller: Caller) -> Iterator[str]:
    """Send frames, of which the newest is answered; each has one answer or is dropped once."""
    with Client(address) as client:
        frames = _frames(caller, pause_s=0.01)
        seen: set[int] = set()
        for answer in client.classify_stream(frames, delivery="latest"):
            if answer.frame_id in seen:
                raise NotAsPromised(f"frame {answer.frame_id} is answered twice")
            seen.add(answer.frame_id)
            if not answer.dropped:
                yield _server(answer)
        if len(seen) != frames.given:
            raise NotAsPromised(f"{len(seen)} of {frames.given} frames were answered")


def asyncio_unary(address: str, caller: Caller) -> Iterator[str]:
    """Embed by the other client, eight calls at a time."""

    async def calls() -> AsyncIterator[str]:
        async with AsyncClient(address) as client:
            while not caller.stopped:
                for result in await asyncio.gather(*[client.embed(PHOTO) for _ in range(8)]):
                    yield result.variant.name

    return _blocking(calls())


def asyncio_stream(address: str, caller: Caller) -> Iterator[str]:
    """Send frames by the other client."""

    async def calls() -> AsyncIterator[str]:
        frames = _frames(caller)
        answered = 0
        async with AsyncClient(address) as client:
            async for answer in client.embed_stream(frames, window=8):
                if answer.frame_id != answered:
                    raise NotAsPromised(f"frame {answer.frame_id} instead of {answered}")
                answered += 1
                yield _server(answer)
        if answered != frames.given:
            raise NotAsPromised(f"{answered} of {frames.given} frames were answered")

    return _blocking(calls())


# Each with the answers that are due in each phase.
SHAPES: dict[str, tuple[Shape, int]] = {
    "unary 1": (unary, 25),
    "unary 2": (unary, 25),
    "new connection": (new_connection, 25),
    "upload": (upload, 6),
    "bulk": (bulk, 50),
    "refused": (refused, 25),
    "ordered stream 1": (ordered, 50),
    "ordered stream 2": (ordered, 50),
    "latest stream": (latest, 25),
    "asyncio unary": (asyncio_unary, 50),
    "asyncio stream": (asyncio_stream, 50),
}


class _Frames:
    """Frames until the caller is stopped; knows how many it has given."""

    def __init__(self, caller: Caller, pause_s: float) -> None:
        self.given = 0
        self._caller = caller
        self._pause_s = pause_s

    def __iter__(self) -> Iterator[bytes]:
        while not self._caller.stopped:
            self.given += 1
            yield PHOTO
            time.sleep(self._pause_s)


def _frames(caller: Caller, pause_s: float = 0.0) -> _Frames:
    return _Frames(caller, pause_s)


def _server(answer: FrameAnswer) -> str:
    if answer.error is not None:
        raise NotAsPromised(f"frame {answer.frame_id}: {answer.error!r}")
    return answer.result.variant.name


def _blocking(answers: AsyncIterator[str]) -> Iterator[str]:
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        while (answer := loop.run_until_complete(anext(answers, None))) is not None:
            yield answer
