"""Many images at once: find them, call for each, answer in order."""

from __future__ import annotations

import asyncio
import collections
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from ..aio import AsyncClient
from ..errors import DeadlineExceededError, InvalidImageError, Resnet50Error, ServerError

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
    outcome: Result | Resnet50Error | OSError


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


async def answers(
    client: AsyncClient,
    call: Callable[[AsyncClient, Any], Awaitable[Result]],
    paths: Iterator[str],
    concurrency: int,
) -> AsyncIterator[Answer[Result]]:
    """Call for each image, `concurrency` at once, and give the answers in the images' order.

    An image that cannot be read, is refused or is not answered in time fails alone.

    Raises:
        Resnet50Error: No other image would fare better: no server answers, or it refuses the
            request for another reason than its image.
    """

    async def answer(path: str) -> Answer[Result]:
        try:
            image = sys.stdin.buffer.read() if path == STDIN else path
            return Answer(path, await call(client, image))
        except (InvalidImageError, DeadlineExceededError, ServerError, OSError) as error:
            return Answer(path, error)

    under_way: collections.deque[asyncio.Task[Answer[Result]]] = collections.deque()
    try:
        for path in paths:
            under_way.append(asyncio.create_task(answer(path)))
            if len(under_way) >= concurrency:
                yield await under_way.popleft()
        while under_way:
            yield await under_way.popleft()
    finally:
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
