"""Source: images in tar archives, such as the shards of a WebDataset."""

from __future__ import annotations

import errno
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager

from .image_files import IMAGE_SUFFIXES
from .source import FileFingerprint, ImageContent
from .store_source import open_file, store_fingerprint

# Larger members are errors; the default of a server's limit is an eighth.
MAX_MEMBER_BYTES = 256 * 2**20


class TarSource:
    """Images in tar archives, compressed or not, which are read from start to end.

    Members are images by their suffix; others, such as the texts of a WebDataset, are passed over.
    A name is "tar://MEMBER::ARCHIVE", as fsspec writes it. The fingerprint of an image is that of
    its archive.

    Args:
        archives: Paths, or addresses of object stores.
    """

    def __init__(self, archives: Iterable[str]) -> None:
        self._archives = list(archives)
        self._fingerprints = {archive: store_fingerprint(archive) for archive in self._archives}

    def names(self) -> Iterator[str]:
        """See `Source`."""
        for archive in self._archives:
            seen = set()
            with _opened(archive) as tar:
                for member in _images(tar):
                    if member.name in seen:
                        raise ValueError(
                            f"{archive} has two members {member.name!r}: pack it again with one"
                        )
                    seen.add(member.name)
                    yield _name(archive, member)

    def fingerprint(self, name: str) -> FileFingerprint:
        """See `Source`."""
        return self._fingerprints[name.rpartition("::")[2]]

    def images(self, names: Sequence[str]) -> Iterator[tuple[str, ImageContent]]:
        """See `Source`."""
        missing = iter(names)
        wanted = next(missing, None)
        for archive in self._archives:
            if wanted is None:
                return
            if not wanted.endswith(f"::{archive}"):
                continue
            with _opened(archive) as tar:
                for member in _images(tar):
                    if _name(archive, member) == wanted:
                        yield wanted, _content(tar, member)
                        wanted = next(missing, None)


@contextmanager
def _opened(archive: str) -> Iterator[tarfile.TarFile]:
    """Open an archive as a stream, so that compressed ones and object stores work alike.

    Raises:
        ValueError: It is no tar archive, or its end is missing.
        OSError: It cannot be read.
    """
    with closing(open_file(archive)) as file:
        try:
            seekable = not archive.lower().endswith(("gz",))
            with tarfile.open(fileobj=file, mode="r:" if seekable else "r|*") as tar:
                yield tar
        except (tarfile.TarError, EOFError) as error:
            raise ValueError(f"{archive} is no whole tar archive: {error}") from error


def _images(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # it would keep all of them
        if member.isreg() and os.path.splitext(member.name)[1].lower() in IMAGE_SUFFIXES:
            yield member


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> ImageContent:
    if member.size > MAX_MEMBER_BYTES:
        return OSError(
            errno.EFBIG, f"has {member.size} bytes, the limit in archives is {MAX_MEMBER_BYTES}"
        )
    file = tar.extractfile(member)
    assert file is not None  # a regular file
    return file.read()


def _name(archive: str, member: tarfile.TarInfo) -> str:
    return f"tar://{member.name}::{archive}"
