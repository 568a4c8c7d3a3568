"""Single calls, each answer checked, and who makes them: what the trials put a server under.

Closed loops: each caller makes its next call when the last one has been answered, so that a few
callers keep a server busy, and none full. Both clients make each shape of call.
"""

from __future__ import annotations

import asyncio
import random
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from benchmarks.expected import Expected, Picture, Wrong
from benchmarks.ledger import LOST, WRONG, Ledger
from benchmarks.timeline import Timeline
from resnet50_client import AsyncClient, Classification, Client, Embedding, VariantRef
from tests.support.clients import Caller

# Longer than any call may take: what has not ended by then is lost.
PATIENCE_S = 300.0
# The deadline of calls that have no other reason for one: no server refuses it, however slow the
# machine makes it.
DEADLINE_S = 240.0
KINDS: dict[str, type] = {"blocking": Client, "asyncio": AsyncClient}


@dataclass(frozen=True)
class Question:
    """Request about a picture.

    Attributes:
        method: "classify" or "embed".
        options: Of the method.
    """

    method: str
    options: dict[str, Any]

    @classmethod
    def drawn(cls, draw: random.Random) -> Question:
        """Draw one."""
        if draw.random() < 0.3:
            half = draw.random() < 0.3
            return cls(
                "embed",
                {
                    "l2_normalize": draw.random() < 0.5,
                    "dtype": "float16" if half else "float32",
                },
            )
        return cls(
            "classify",
            {
                "top_k": draw.choice((None, None, 1, 3, 8)),
                "min_probability": draw.choice((None, None, 0.05, 0.3)),
                "include_embedding": draw.random() < 0.5,
            },
        )

    def check(
        self, expected: Expected, picture: Picture, result: Classification | Embedding
    ) -> None:
        """Compare a result with the right one; see `Expected`."""
        if isinstance(result, Classification) and self.method == "classify":
            expected.check_classification(picture, result, **self.options)
        elif isinstance(result, Embedding) and self.method == "embed":
            expected.check_embedding(picture, result, **self.options)
        else:
            raise Wrong(f"{self.method} gives {result!r}")


@dataclass
class Load:
    """State that callers share.

    Attributes:
        server: Address of the server, or of several.
        expected: The right answers.
        pictures: Images to send.
        large: Images to upload in chunks.
        timeline: Which weights may answer.
        ledger: Where everything is counted.
        variants: Those that callers name; "" is the default.
        options: Of every client, such as its token.
        stopped: Whether callers are to make no more calls.
    """

    server: str | Sequence[str]
    expected: Expected
    pictures: Sequence[Picture]
    large: Sequence[Picture]
    timeline: Timeline
    ledger: Ledger
    variants: Sequence[str]
    options: dict[str, Any] = field(default_factory=dict)
    stopped: bool = False

    def client(self, kind: type) -> Caller:
        """Return a client of a kind; close it."""
        return Caller(kind, self.server, timeout_s=DEADLINE_S, **self.options)

    def question(self, draw: random.Random) -> Question:
        """Return what is asked next."""
        return Question.drawn(draw)

    def examine(
        self,
        shape: str,
        question: Question,
        picture: Picture,
        result: Classification | Embedding,
        may_be: dict[str, set[str | None]],
        since: float,
    ) -> None:
        """Compare an answer with all that is known, and count it.

        Args:
            shape: Of the call.
            question: Method and options.
            picture: Of what.
            result: The result.
            may_be: Which variants may have answered, by which weights.
            since: When the picture was sent.
        """
        try:
            check_weights(result.variant, may_be)
            question.check(self.expected, picture, result)
        except Wrong as wrong:
            asked = f"{picture.name}, {question}, took {time.monotonic() - since:.2f} s"
            self.ledger.fault(shape, WRONG, f"{wrong} ({asked}; may be {shortened(may_be)})")
        else:
            label = self.expected.label(result.variant.digest)
            self.ledger.right(shape, label, time.monotonic() - since)

    def refuse(
        self,
        shape: str,
        error: BaseException,
        may_be: dict[str, set[str | None]],
        count: int,
        asked: str,
    ) -> None:
        """Count calls that ended with an error, which is right only if no variant had to answer.

        Args:
            shape: Of the calls.
            error: The error.
            may_be: Which variants could have answered, by which weights.
            count: How many calls.
            asked: The request, for the report.
        """
        digests = {digest for of_name in may_be.values() for digest in of_name}
        code = getattr(error, "code", "")
        # Not served for all of the time, or on its way in or out.
        if None in digests and (
            code == "NOT_FOUND" or (code == "UNAVAILABLE" and len(digests) > 1)
        ):
            self.ledger.refused(shape, code, count)
            return
        text = f"{describe(error)} ({asked}; may be {shortened(may_be)})"
        self.ledger.fault(shape, LOST, text, count)


def check_weights(variant: VariantRef, may_be: dict[str, set[str | None]]) -> None:
    """See that an answer is given by weights that may answer.

    Raises:
        Wrong: By others: stale ones, or some that never were.
    """
    if variant.digest not in may_be.get(variant.name, set()):
        raise Wrong(f"{variant!r} may not answer any more, or not yet, or never")


def shortened(may_be: dict[str, set[str | None]]) -> str:
    """Return which weights may answer, as replies show them."""
    return ", ".join(
        f"{name or 'default'}@{digest[:12] if digest else 'none'}"
        for name, digests in may_be.items()
        for digest in digests
    )


def describe(error: BaseException) -> str:
    """Return everything that an error tells."""
    code, request_id = getattr(error, "code", ""), getattr(error, "request_id", None)
    cause = f", caused by {error.__cause__!r}" if error.__cause__ is not None else ""
    return f"{type(error).__name__} {code} (request {request_id}): {error}{cause}"


# One shape of calls: makes some, by a client, as the random numbers have it.
Shape = Callable[[Load, Caller, random.Random, str], Awaitable[None]]


async def unary(load: Load, client: Caller, draw: random.Random, shape: str) -> None:
    """Ask about one picture."""
    await single(load, client, draw, shape, draw.choice(load.pictures))


async def upload(load: Load, client: Caller, draw: random.Random, shape: str) -> None:
    """Ask about one large picture, in chunks."""
    await single(load, client, draw, shape, draw.choice(load.large))


async def single(
    load: Load, client: Caller, draw: random.Random, shape: str, picture: Picture
) -> None:
    """Ask about a picture."""
    question, variant = load.question(draw), draw.choice(load.variants)
    method = getattr(client, question.method)
    load.ledger.began(shape)
    since = time.monotonic()
    try:
        call = method(picture.image, variant=variant or None, **question.options)
        result = await asyncio.wait_for(call, PATIENCE_S)
    except Exception as error:  # whatever it is, the call has failed
        may_be = load.timeline.digests(variant, since, time.monotonic())
        asked = f"{picture.name}, {question}, took {time.monotonic() - since:.2f} s"
        load.refuse(shape, error, may_be, 1, asked)
    else:
        may_be = load.timeline.digests(variant, since, time.monotonic())
        load.examine(shape, question, picture, result, may_be, since)


class Callers:
    """Tasks that make calls, each of one shape and by one client, until they are stopped.

    Args:
        load: The load that they share.
        seed: Of all that is random; the same one draws the same calls.
    """

    def __init__(self, load: Load, seed: int = 0) -> None:
        self._load = load
        self._seed = seed
        self._tasks: list[asyncio.Task[None]] = []
        # A thread for each call that blocks, and one for each source of frames.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(64))

    def start(self, shape: Shape, kind: str, pause_s: float = 0.05, name: str = "") -> None:
        """Start a caller.

        Args:
            shape: The call that it repeats.
            kind: "blocking" or "asyncio".
            pause_s: Between its calls, at most.
            name: Of the shape in the ledger; its own by default.
        """
        draw = random.Random(f"{self._seed} {len(self._tasks)}")
        named = f"{name or getattr(shape, '__name__', '')}, {kind}"
        self._tasks.append(asyncio.create_task(self._go_on(shape, kind, draw, named, pause_s)))

    async def stop(self) -> None:
        """Wait until all have ended."""
        self._load.stopped = True
        await asyncio.gather(*self._tasks)

    async def _go_on(
        self, shape: Shape, kind: str, draw: random.Random, named: str, pause_s: float
    ) -> None:
        async with self._load.client(KINDS[kind]) as client:
            while not self._load.stopped:
                try:
                    await shape(self._load, client, draw, named)
                except Exception:  # of the trial itself, which runs to its end
                    self._load.ledger.broken(f"{named}: {traceback.format_exc()}")
                await asyncio.sleep(draw.uniform(0, pause_s))
