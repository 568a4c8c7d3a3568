"""Streams of frames: what was sent, what has come of it, each answer checked and in its turn."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

from benchmarks.expected import Picture
from benchmarks.ledger import LOST, WRONG
from benchmarks.load import PATIENCE_S, Load, Question
from resnet50_client import FrameAnswer
from tests.support.clients import Caller, items

# Frames that are no pictures, and have to be refused one by one.
BROKEN = Picture("broken", b"\xff\xd8\xff\xe0 this is no JPEG", None)  # type: ignore[arg-type]


class Frames:
    """Gives pictures, and remembers which and when.

    Args:
        load: Counts them.
        shape: Of the stream.
        draw: Draws them.
        count: How many there are.
        pause_s: Between them, at most.
        broken: Share of them that are no pictures.
    """

    def __init__(
        self,
        load: Load,
        shape: str,
        draw: random.Random,
        count: int,
        pause_s: float = 0.0,
        broken: float = 0.0,
    ) -> None:
        self.given: list[tuple[Picture, float]] = []
        self._load = load
        self._shape = shape
        self._count = count
        self._pause_s = pause_s
        # Drawn here: frames are taken in another thread.
        self._draw = random.Random(draw.random())
        self._broken = broken
        self._closed = False
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Any]:
        draw = self._draw
        while len(self.given) < self._count and not self._load.stopped:
            picture = BROKEN if draw.random() < self._broken else draw.choice(self._load.pictures)
            with self._lock:
                if self._closed:
                    return
                self.given.append((picture, time.monotonic()))
                self._load.ledger.began(self._shape)
            yield picture.image
            if self._pause_s:
                time.sleep(draw.uniform(0, self._pause_s))

    def close(self) -> None:
        """Give no more: the stream has ended, though its client may still ask for a frame."""
        with self._lock:
            self._closed = True


class Answers:
    """Takes the answers of one stream, each checked.

    Args:
        load: Counts them.
        shape: Of the stream.
        question: Method and options of each frame.
        variant: Which variant.
        frames: The frames that were sent.
    """

    def __init__(
        self, load: Load, shape: str, question: Question, variant: str, frames: Frames
    ) -> None:
        self._load = load
        self._shape = shape
        self._question = question
        self._variant = variant
        self._frames = frames
        self._answered: set[int] = set()
        self._began = time.monotonic()
        self._name: str | None = None

    def take(self, answer: FrameAnswer[Any], ordered: bool) -> None:
        """Check and count an answer."""
        number, ledger, shape = answer.frame_id, self._load.ledger, self._shape
        if not 0 <= number < len(self._frames.given):
            ledger.broken(f"{shape}: an answer to frame {number}, which was never sent")
            return
        if number in self._answered:
            ledger.broken(f"{shape}: a second answer to frame {number}: {answer!r}")
            return
        if ordered and number != len(self._answered):
            ledger.broken(f"{shape}: frame {number} is answered, {len(self._answered)} is due")
        self._answered.add(number)
        picture, since = self._frames.given[number]
        may_be = self._may_be(since)
        asked = f"frame {number}, {picture.name}, {self._question}, variant {self._variant!r}"
        if answer.replaced_by is not None:
            if ordered or not number < answer.replaced_by < len(self._frames.given):
                ledger.fault(shape, WRONG, f"{answer!r} ({asked})")
            else:
                ledger.cancelled(shape)
        elif picture is BROKEN:
            code = getattr(answer.error, "code", "")
            if code == "INVALID_ARGUMENT":
                ledger.refused(shape, code)
            else:
                ledger.fault(shape, WRONG, f"a broken frame is answered by {answer!r} ({asked})")
        elif answer.error is not None:
            self._load.refuse(shape, answer.error, may_be, 1, asked)
        elif answer.result is None:
            ledger.fault(shape, WRONG, f"neither an answer nor an error ({asked})")
        else:
            if not shape.startswith("list"):  # each batch of a list chooses the default anew
                self._one_name(answer.result.variant.name)
            self._load.examine(shape, self._question, picture, answer.result, may_be, since)

    def end(self, error: BaseException | None) -> None:
        """Count what was not answered: nothing, unless the stream broke."""
        self._frames.close()
        left = [n for n in range(len(self._frames.given)) if n not in self._answered]
        asked = f"frames {left[:5]} of {len(self._frames.given)}, variant {self._variant!r}"
        if error is None and left:
            self._load.ledger.fault(self._shape, LOST, f"no answer ({asked})", len(left))
        elif error is not None:
            if not left:  # the stream itself counts, so that its end is accounted for
                self._load.ledger.began(self._shape)
            self._load.refuse(self._shape, error, self._may_be(self._began), len(left) or 1, asked)

    def leave(self) -> None:
        """Count what was not answered, since the caller has gone."""
        self._frames.close()
        left = len(self._frames.given) - len(self._answered)
        self._load.ledger.cancelled(self._shape, left)

    def _may_be(self, since: float) -> dict[str, set[str | None]]:
        """Return what may answer a frame: the default is chosen when its stream begins."""
        timeline, now = self._load.timeline, time.monotonic()
        names = timeline.digests(self._variant, self._began, now)
        return {name: timeline.values(name, since, now) for name in names}

    def _one_name(self, name: str) -> None:
        if self._name not in (None, name):
            self._load.ledger.broken(f"{self._shape}: answers of {self._name} and {name}")
        self._name = name


async def stream(
    load: Load,
    client: Caller,
    draw: random.Random,
    shape: str,
    *,
    delivery: str = "ordered",
    count: tuple[int, int] = (4, 24),
    broken: float = 0.05,
) -> None:
    """Send frames over a stream of either delivery."""
    question, variant = load.question(draw), draw.choice(load.variants)
    ordered = delivery == "ordered"
    frames = Frames(
        load, shape, draw, draw.randint(*count), 0.0 if ordered else 0.05, broken=broken
    )
    answers = Answers(load, shape, question, variant, frames)
    window = draw.choice((1, 2, 4)) if ordered else 8
    options = {
        "delivery": delivery,
        "window": window,
        "variant": variant or None,
        **question.options,
    }
    given = items(client, f"{question.method}_stream", frames, **options)
    try:
        async with aclosing(given):
            while (answer := await asyncio.wait_for(anext(given, None), PATIENCE_S)) is not None:
                answers.take(answer, ordered)
    except Exception as error:  # whatever it is, the call has failed
        answers.end(error)
    else:
        answers.end(None)


async def latest(
    load: Load, client: Caller, draw: random.Random, shape: str, broken: float = 0.05
) -> None:
    """Send frames faster than they can be answered; the newest counts."""
    await stream(load, client, draw, shape, delivery="latest", count=(10, 40), broken=broken)


async def many(
    load: Load, client: Caller, draw: random.Random, shape: str, broken: float = 0.05
) -> None:
    """Ask about several pictures at once."""
    question, variant = load.question(draw), draw.choice(load.variants)
    frames = Frames(load, shape, draw, draw.randint(2, 16), broken=broken)
    answers = Answers(load, shape, question, variant, frames)
    given = items(
        client,
        f"{question.method}_many",
        frames,
        return_exceptions=True,
        max_in_flight=2,
        variant=variant or None,
        **question.options,
    )
    number = 0
    try:
        async with aclosing(given):
            while (one := await asyncio.wait_for(anext(given, None), PATIENCE_S)) is not None:
                failed = isinstance(one, Exception)
                answer = FrameAnswer(number, None if failed else one, one if failed else None)
                answers.take(answer, ordered=True)
                number += 1
    except Exception as error:  # whatever it is, the call has failed
        answers.end(error)
    else:
        answers.end(None)
