"""Callers who give up, hurry, or send what is wrong; each knows what it has to be told."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from benchmarks.expected import Picture, pictures
from benchmarks.frames import Answers, Frames
from benchmarks.ledger import LOST, WRONG
from benchmarks.load import PATIENCE_S, Load, Question, describe
from resnet50_client import AsyncClient
from tests.support.clients import Caller, items


@dataclass(frozen=True)
class Provocation:
    """A wrong call and the error that has to answer it.

    Attributes:
        name: For reports.
        code: The error's.
        field: The error's; None if it has none.
        options: Of the call.
        image: The image to send; None for one of the load's.
    """

    name: str
    code: str
    field: str | None
    options: dict[str, Any]
    image: Callable[[random.Random], Any] | None = None


def cut(picture: Picture) -> Callable[[random.Random], bytes]:
    """Return what cuts a file off somewhere behind its header."""
    file = picture.image
    assert isinstance(file, bytes)
    return lambda draw: file[: draw.randint(len(file) // 8, len(file) // 2)]


BY_NAME = {one.name: one for one in pictures()}
OF_IMAGE = OF_OPTION = "INVALID_ARGUMENT"
PROVOCATIONS = (
    *(
        Provocation(f"half of {name}", OF_IMAGE, "image.encoded", {}, cut(BY_NAME[name]))
        for name in ("china.jpg", "grey.jpg", "tall.png", "small.webp")
    ),
    Provocation("noise", OF_IMAGE, "image.encoded", {}, lambda draw: draw.randbytes(5000)),
    Provocation("a text", OF_IMAGE, "image.encoded", {}, lambda draw: b"<html>Not Found</html>"),
    Provocation("nothing", OF_IMAGE, "image.encoded", {}, lambda draw: b""),
    Provocation("unknown variant", "NOT_FOUND", None, {"variant": "unknown"}),
    Provocation("top_k", OF_OPTION, "options.top_k", {"top_k": 500}),
)


async def wrong(load: Load, client: Caller, draw: random.Random, shape: str) -> None:
    """Send what is wrong."""
    one = draw.choice(PROVOCATIONS)
    image = one.image(draw) if one.image is not None else draw.choice(load.pictures).image
    load.ledger.began(shape)
    try:
        result = await asyncio.wait_for(client.classify(image, **one.options), PATIENCE_S)
    except Exception as error:  # whatever it is, it is compared
        told = getattr(error, "code", ""), getattr(error, "field", None)
        if told == (one.code, one.field):
            load.ledger.refused(shape, one.code)
        else:
            load.ledger.fault(shape, LOST, f"{one.name} is told {describe(error)}")
    else:
        load.ledger.fault(shape, WRONG, f"{one.name} is answered: {result!r}")


async def hurried(load: Load, client: Caller, draw: random.Random, shape: str) -> None:
    """Allow an answer less time than it mostly needs."""
    picture, question = draw.choice(load.pictures), Question.drawn(draw)
    variant, timeout_s = draw.choice(load.variants), 10 ** draw.uniform(-2.0, 0.7)
    call = getattr(client, question.method)
    load.ledger.began(shape)
    since = time.monotonic()
    try:
        made = call(picture.image, variant=variant or None, timeout_s=timeout_s, **question.options)
        result = await asyncio.wait_for(made, PATIENCE_S)
    except Exception as error:  # whatever it is, it is compared
        may_be = load.timeline.digests(variant, since, time.monotonic())
        if getattr(error, "code", "") == "DEADLINE_EXCEEDED":
            load.ledger.refused(shape, "DEADLINE_EXCEEDED")
        else:
            load.refuse(shape, error, may_be, 1, f"{picture.name}, {timeout_s:.3f} s, {question}")
    else:
        may_be = load.timeline.digests(variant, since, time.monotonic())
        load.examine(shape, question, picture, result, may_be, since)


async def cancelled(load: Load, client: Caller, draw: random.Random, shape: str) -> None:
    """Give a call up at some moment; a blocking one by closing its client."""
    picture, question = draw.choice([*load.pictures, *load.large]), Question.drawn(draw)
    variant = draw.choice(load.variants)
    async with load.client(type(client.client)) as own:
        call = getattr(own, question.method)
        load.ledger.began(shape)
        since = time.monotonic()
        task = asyncio.ensure_future(
            call(picture.image, variant=variant or None, **question.options)
        )
        await asyncio.wait([task], timeout=draw.choice((0.02, 0.3, 3.0)) * draw.random())
        if isinstance(own.client, AsyncClient):
            task.cancel()
        else:
            await own.close()
        done, _ = await asyncio.wait([task], timeout=PATIENCE_S)
        may_be = load.timeline.digests(variant, since, time.monotonic())
        asked = f"{picture.name}, {question}, to be cancelled"
        if not done:
            load.ledger.fault(shape, LOST, f"does not end ({asked})")
        elif task.cancelled() or is_cancelled(task.exception()):
            load.ledger.cancelled(shape)
        elif (error := task.exception()) is None:
            load.examine(shape, question, picture, task.result(), may_be, since)
        else:
            load.refuse(shape, error, may_be, 1, asked)


def is_cancelled(error: BaseException | None) -> bool:
    """Return whether a call failed because its client was closed: during it, or just before."""
    closed_before = isinstance(error, RuntimeError) and "is closed" in str(error)
    return closed_before or getattr(error, "code", "") == "CANCELLED"


async def left(load: Load, client: Caller, draw: random.Random, shape: str) -> None:
    """Leave a stream in its middle."""
    question, variant = Question.drawn(draw), draw.choice(load.variants)
    frames = Frames(load, shape, draw, 100)
    answers = Answers(load, shape, question, variant, frames)
    given = items(
        client,
        f"{question.method}_stream",
        frames,
        window=2,
        variant=variant or None,
        **question.options,
    )
    try:
        async with aclosing(given):
            for _ in range(draw.randint(1, 6)):
                answer = await asyncio.wait_for(anext(given, None), PATIENCE_S)
                if answer is None:
                    break
                answers.take(answer, ordered=True)
    except Exception as error:  # whatever it is, the stream has failed
        answers.end(error)
    else:
        answers.leave()
