"""Sources of images: names in an order, and the image of each name."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, NamedTuple, Protocol, TypeAlias

from .image_files import STDIN


class Readable(Protocol):
    """A file that is read once, such as an open file."""

    def read(self, size: int, /) -> bytes:
        """Return its content, up to a number of bytes."""


ImageContent: TypeAlias = str | bytes | Readable | IO[bytes] | OSError
"""Path of an image file, its content, a file to read, or the error of reading it."""


class FileFingerprint(NamedTuple):
    """A file's size in bytes and modification time in ns, by which changes are detected."""

    size: int
    mtime_ns: int


# Of files that cannot be read.
NO_FINGERPRINT = FileFingerprint(-1, -1)


class Source(Protocol):
    """Images by name."""

    def names(self) -> Iterable[str]:
        """Return the names of all images in order.

        Raises:
            ValueError: The source is not of its format.
            OSError: It cannot be read.
        """

    def fingerprint(self, name: str) -> FileFingerprint:
        """Return the fingerprint of the file that contains an image."""

    def images(self, names: Sequence[str]) -> Iterator[tuple[str, ImageContent]]:
        """Yield the names and the images of some names, which are in the order of `names()`."""


class FileSource:
    """Image files by path; `STDIN` is an image on the standard input.

    Args:
        paths: The paths.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = paths

    def __getstate__(self) -> dict[str, object]:
        """Return the state of a copy in another process, which reads images by their names."""
        return {"_paths": ()}

    def names(self) -> Iterable[str]:
        """See `Source`."""
        return self._paths

    def fingerprint(self, name: str) -> FileFingerprint:
        """See `Source`; one that no file has for images on stdin."""
        return fingerprint_of(name)

    def images(self, names: Sequence[str]) -> Iterator[tuple[str, ImageContent]]:
        """See `Source`."""
        for name in names:
            yield name, sys.stdin.buffer if name == STDIN else name


def fingerprint_of(path: str) -> FileFingerprint:
    """Return a file's fingerprint; one that no file has for images on stdin."""
    if path == STDIN:
        return FileFingerprint(-1, os.getpid())  # never the same again
    try:
        status = os.stat(path)
    except OSError:
        return NO_FINGERPRINT  # reading it will fail with the reason
    return FileFingerprint(status.st_size, status.st_mtime_ns)
