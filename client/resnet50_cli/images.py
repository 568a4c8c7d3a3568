"""Many images in batches: send them, yield results in order."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from resnet50_bulk.image_files import STDIN
from resnet50_client._redaction import redact
from resnet50_client._sync_bulk import BulkResults
from resnet50_client.errors import DeadlineExceededError, OverloadedError, UnavailableError
from resnet50_client.images import ImageInput, is_url
from resnet50_client.types import Classification, Embedding

from .output import warn

Result = TypeVar("Result")
# `classify_many` or `embed_many` with all arguments but the images bound: keyed by path, and with
# errors in their places.
KeyedImages: TypeAlias = Iterable[tuple[str, ImageInput]]
BulkCall: TypeAlias = Callable[[KeyedImages], BulkResults[tuple[str, Result | Exception]]]

# So many images in a row without an answer end a run: more would only wait for their timeouts.
MAX_UNANSWERED = 100


@dataclass(frozen=True)
class Answer(Generic[Result]):
    """The result of one image.

    Attributes:
        path: The image's path.
        outcome: The result, or the error.
    """

    path: str
    outcome: Result | Exception


def warn_of_image(answer: Answer[Classification] | Answer[Embedding]) -> None:
    """Write what a result does not tell about its image to stderr."""
    if not isinstance(answer.outcome, Exception):
        warn_of_result(answer.path, answer.outcome)


def warn_of_result(name: str, result: Classification | Embedding) -> None:
    """Write what a result does not tell about its image to stderr, under the image's name."""
    for one in result.warnings:
        warn(f"{name}: the image is {one}; the result is that of the part that is there")


def is_unanswered(error: Exception) -> bool:
    """Return True for errors of servers that are too slow or leave, rather than of an image."""
    if isinstance(error, UnavailableError):
        # Without a request ID it is about an image that breaks each connection it is sent over.
        return error.request_id is not None
    return isinstance(error, (DeadlineExceededError, OverloadedError))


def answers(call: BulkCall[Result], paths: Iterable[str]) -> Generator[Answer[Result], None, None]:
    """Send images in batches and yield the results in the images' order.

    An image that is unreadable or rejected does not affect the others.

    Args:
        call: The call.
        paths: Image paths, read ahead by one window.

    Raises:
        Resnet50Error: All images would fail: the server rejects the request for a reason other
            than its image, or `MAX_UNANSWERED` images in a row had no answer.
    """

    def images() -> Iterator[tuple[str, ImageInput]]:
        for path in paths:
            # URLs are rejected with an error that shows them; file names are shown unchanged.
            shown = redact(path, path) if is_url(path) else path
            yield shown, sys.stdin.buffer if path == STDIN else path

    in_a_row = 0
    with closing(call(images())) as outcomes:
        for path, outcome in outcomes:
            yield Answer(path, outcome)
            if not isinstance(outcome, Exception) or not is_unanswered(outcome):
                in_a_row = 0
                continue
            in_a_row += 1
            if in_a_row == MAX_UNANSWERED:
                raise outcome
