"""Many images over one stream: send them, yield results in order."""

from __future__ import annotations

import collections
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Generic, TypeVar

from resnet50_client._redaction import redact
from resnet50_client.errors import UnavailableError
from resnet50_client.images import ImageInput, is_url
from resnet50_client.types import Classification, Embedding

from .image_files import STDIN
from .output import warn

Result = TypeVar("Result")


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


def answers(
    call: Callable[[Iterable[ImageInput]], Generator[Result | Exception, None, None]],
    paths: Iterable[str],
) -> Generator[Answer[Result], None, None]:
    """Send images over one stream and yield the results in the images' order.

    An image that is unreadable or rejected does not affect the others.

    Args:
        call: `classify_many` or `embed_many` with all other arguments bound.
        paths: Image paths, read as the stream's window allows.

    Raises:
        Resnet50Error: All images would fail: no server is reachable, or the server rejects the
            request for a reason other than its image.
    """
    pending: collections.deque[str] = collections.deque()

    def images() -> Iterator[ImageInput]:
        for path in paths:
            # URLs are rejected with an error that shows them; file names are shown unchanged.
            pending.append(redact(path, path) if is_url(path) else path)
            yield sys.stdin.buffer if path == STDIN else path

    with closing(call(images())) as outcomes:
        for outcome in outcomes:
            # From the server it is about the server; the SDK also raises it, without a request
            # ID, for a single image that repeatedly breaks the connection.
            if isinstance(outcome, UnavailableError) and outcome.request_id is not None:
                raise outcome
            yield Answer(pending.popleft(), outcome)
