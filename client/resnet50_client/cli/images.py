"""Many images over one stream: find them, send them, answer in order."""

from __future__ import annotations

import collections
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from ..errors import UnavailableError
from ..images import ImageInput, is_url
from ..redaction import redact

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
STDIN = "-"
Result = TypeVar("Result")


@dataclass(frozen=True)
class Answer(Generic[Result]):
    """What became of one image.

    Attributes:
        path: Where it lies.
        outcome: The result, or why there is none.
    """

    path: str
    outcome: Result | Exception


def find_images(given: Iterable[str]) -> Iterator[str]:
    """Return paths of images: files as they are, of folders all image files below, sorted.

    Raises:
        FileNotFoundError: A folder holds none.
    """
    for one in given:
        path = Path(one)
        if one != STDIN and path.is_dir():
            files = (file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
            found = sorted(map(str, files))
            if not found:
                raise FileNotFoundError(f"{path}: no image files below this folder")
            yield from found
        else:
            yield one


def answers(
    call: Callable[[Iterable[ImageInput]], Generator[Result | Exception, None, None]],
    paths: Iterable[str],
) -> Generator[Answer[Result], None, None]:
    """Send images over one stream and give the answers in the images' order.

    An image that cannot be read or is refused fails alone.

    Args:
        call: `classify_many` or `embed_many`, all but its images given.
        paths: Read as the stream has room.

    Raises:
        Resnet50Error: No other image would fare better: no server answers, or it refuses the
            request for another reason than its image.
    """
    under_way: collections.deque[str] = collections.deque()

    def images() -> Iterator[ImageInput]:
        for path in paths:
            # A URL is refused, and shown then; a file keeps its name, whatever that is.
            under_way.append(redact(path, path) if is_url(path) else path)
            yield sys.stdin.buffer if path == STDIN else path

    with closing(call(images())) as outcomes:
        for outcome in outcomes:
            # Said by a server, it is the server's state; the SDK says it of an image under which
            # connections break, and the others go on.
            if isinstance(outcome, UnavailableError) and outcome.request_id is not None:
                raise outcome
            yield Answer(under_way.popleft(), outcome)
