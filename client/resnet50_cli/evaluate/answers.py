"""Labelled images, classified by one variant or by two at the same time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TypeAlias

from resnet50_client.errors import ServerError
from resnet50_client.types import Classification, VariantRef

from ..images import BulkCall, answers
from .labelled_images import LabelledImage

Outcome: TypeAlias = Classification | Exception
Call: TypeAlias = BulkCall[Classification]


class WeightsChanged(Exception):
    """The answers of a run are of different weights."""


@dataclass(frozen=True)
class Answered:
    """An image and its outcomes.

    Attributes:
        image: The image with its label.
        outcomes: The result or error of each variant.
    """

    image: LabelledImage
    outcomes: tuple[Outcome, ...]


def classify_all(
    calls: list[Call], images: Iterable[LabelledImage], stop: threading.Event
) -> Generator[Answered, None, None]:
    """Send images to each variant and yield the outcomes in the images' order.

    Args:
        calls: `classify_many` of each variant, with all other arguments bound.
        images: The images, read as the first variant's calls need them.
        stop: No image is sent after this is set.

    Raises:
        WeightsChanged: A result is of other weights than the results before it.
        Resnet50Error: As of `images.answers`.
    """
    pending: deque[LabelledImage] = deque()
    # Bounded by the images that the first run reads ahead: outcomes are taken from all in turn.
    queues: list[SimpleQueue[str | None]] = [SimpleQueue() for _ in calls[1:]]

    def end() -> None:
        for queue in queues:
            queue.put(None)

    def paths() -> Iterator[str]:
        for image in images:
            if stop.is_set():
                break
            pending.append(image)
            for queue in queues:
                queue.put(image.path)
            yield image.path
        end()

    sources: list[Iterable[str]] = [paths(), *(iter(queue.get, None) for queue in queues)]
    weights: list[VariantRef | None] = [None] * len(calls)
    with ExitStack() as stack:
        runs = [
            stack.enter_context(closing(answers(call, source)))
            for call, source in zip(calls, sources, strict=True)
        ]
        # Before the runs are closed: their threads wait for names.
        stack.callback(end)
        for results in zip(*runs, strict=True):
            outcomes = tuple(_checked(result.outcome) for result in results)
            for position, outcome in enumerate(outcomes):
                if isinstance(outcome, Classification):
                    _check(weights[position], outcome.variant)
                    weights[position] = outcome.variant
            yield Answered(pending.popleft(), outcomes)


def _checked(outcome: Outcome) -> Outcome:
    if isinstance(outcome, Classification) and not outcome.categories:
        return ServerError("the server answered without categories")
    return outcome


def _check(before: VariantRef | None, now: VariantRef) -> None:
    if before not in (None, now):
        raise WeightsChanged(
            f"the servers answered with different weights, {before!r} and {now!r}; evaluate while"
            " no variant is replaced and no traffic split sends images to a candidate"
        )
