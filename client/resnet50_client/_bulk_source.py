"""Sources of images of bulk calls, with keys or without."""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from . import _sources
from ._arguments import check_flag

# Threads that read files ahead: with one, a network disk at 10 ms a file gives 100 images/s.
READERS = 4


@dataclass(frozen=True)
class Entry:
    """An image of a source.

    Attributes:
        index: Its position, from 0.
        key: Its key; None without keys.
        image: The image.
        parallel: True if the image may be read while the next one is taken from the source.
    """

    index: int
    key: Any
    image: Any
    parallel: bool


class _Entries:
    """Numbers the entries of a source."""

    def __init__(self, images: object, keyed: bool) -> None:
        self._keyed = keyed
        # The files of a generator may be gone once it has yielded the next one.
        self._collection = isinstance(images, Collection)
        self._count = 0

    def entry(self, item: Any) -> Entry | None:
        """Return the entry of an item; None at the end.

        Raises:
            TypeError: The source is keyed, and this is not a pair.
        """
        if item is _sources.END:
            return None
        key, image = self._pair(item) if self._keyed else (None, item)
        parallel = self._collection and isinstance(image, (str, os.PathLike))
        self._count += 1
        return Entry(self._count - 1, key, image, parallel)

    def _pair(self, item: Any) -> tuple[Any, Any]:
        if not (isinstance(item, tuple) and len(item) == 2):
            raise TypeError(
                f"images: item {self._count} is {type(item).__name__}, must be a pair (key, image):"
                " keyed=True takes pairs, or a mapping of keys to images"
            )
        return item[0], item[1]


class BulkSource:
    """Images of a bulk call, in a thread at a time; closed at the end.

    Args:
        images: The images; with keys pairs (key, image), or a mapping.
        keyed: Whether they have keys.

    Attributes:
        readers: Number of threads that can read concurrently.
    """

    def __init__(self, images: Iterable[Any], keyed: bool) -> None:
        self._entries = _Entries(images, keyed)
        self.readers = READERS if isinstance(images, Collection) else 1
        self._source = _sources.Source(_items(images, keyed))

    def read(self) -> Entry | None:
        """Return the next image; None at the end. May block as long as the source does."""
        return self._entries.entry(self._source.read())

    def close(self) -> None:
        """Close the source; a thread that is reading it closes it after the read."""
        self._source.close()


class AsyncBulkSource:
    """As `BulkSource`, for one task at a time; asynchronous iterables, too."""

    def __init__(self, images: Iterable[Any] | AsyncIterable[Any], keyed: bool) -> None:
        self._entries = _Entries(images, keyed)
        self.readers = READERS if isinstance(images, Collection) else 1
        self._source = _sources.AsyncSource(_items(images, keyed))

    async def read(self) -> Entry | None:
        """Return the next image; None at the end."""
        return self._entries.entry(await self._source.read())

    async def close(self) -> None:
        """Close the source; a thread that is reading it closes it after the read."""
        await self._source.close()


def _items(images: Any, keyed: bool) -> Any:
    """Return an iterable of the images, or of pairs."""
    if keyed and isinstance(images, dict):
        return list(images.items())  # in memory, and may be changed meanwhile
    if keyed and isinstance(images, Mapping):
        return images.items()
    return images


def check_keyed(images: object, keyed: bool) -> None:
    """Check the argument, and that a mapping is keyed, before its keys are taken for images.

    Raises:
        InvalidRequestError: `keyed` is not a bool.
        TypeError: A mapping is not keyed.
    """
    check_flag("keyed", keyed)
    if isinstance(images, Mapping) and not keyed:
        raise TypeError(
            "images: is a mapping, whose images have keys: pass keyed=True for results with their"
            " keys, or images.values()"
        )
