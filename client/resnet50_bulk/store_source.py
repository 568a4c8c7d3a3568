"""Source: images in an object store, and files there, by fsspec."""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, cast

from .image_files import IMAGE_SUFFIXES
from .source import FileFingerprint, ImageContent, fingerprint_of

# Members of fsspec's file information that change with a file, by store.
_VERSIONS = ("ETag", "etag", "md5Hash", "content_md5", "LastModified", "last_modified", "mtime")


class StoreSource:
    """Images by their addresses in an object store, e.g. "s3://bucket/photos".

    Objects below an address, or that match its pattern, are images by their suffix. They are read
    in parallel.

    Args:
        addresses: Addresses of objects, of folders, or with a glob pattern.

    Raises:
        ValueError: fsspec, or its package for the store, is not installed.
    """

    def __init__(self, addresses: Iterable[str]) -> None:
        self._addresses = list(addresses)
        self._stores = {address: _store(address) for address in self._addresses}
        self._fingerprints: dict[str, FileFingerprint] = {}

    def names(self) -> Iterator[str]:
        """See `Source`."""
        for address in self._addresses:
            store, path = self._stores[address]
            if any(sign in path for sign in "*?["):
                found = store.glob(path, detail=True)
            else:
                found = store.find(path, detail=True)
            images = {
                name: info
                for name, info in found.items()
                if info["type"] == "file" and (name == path or _is_image(name))
            }
            if not images:
                raise FileNotFoundError(f"{address}: no image files there")
            for name, info in sorted(images.items()):
                full = store.unstrip_protocol(name)
                self._fingerprints[full] = _fingerprint(info)
                yield full

    def fingerprint(self, name: str) -> FileFingerprint:
        """See `Source`."""
        return self._fingerprints[name]

    def images(self, names: Sequence[str]) -> Iterator[tuple[str, ImageContent]]:
        """See `Source`."""
        for name in names:
            yield name, StoreFile(name, self._fingerprints[name].size)


class StoreFile:
    """A file in an object store, which is opened when it is read.

    Args:
        address: Its address.
        size: Its size in bytes; None if unknown.

    Attributes:
        size: Its size in bytes; None if unknown.
    """

    def __init__(self, address: str, size: int | None = None) -> None:
        self._address = address
        self.size = size

    def read(self, size: int, /) -> bytes:
        """Return its content, up to a number of bytes.

        Raises:
            OSError: It cannot be read.
        """
        with open_file(self._address) as file:
            return file.read(size)


def open_file(path: str) -> IO[bytes]:
    """Open a local file, or one in an object store.

    Raises:
        OSError: It cannot be opened.
        ValueError: fsspec, or its package for the store, is not installed.
    """
    if "://" not in path:
        return open(path, "rb")
    store, inside = _store(path)
    return cast("IO[bytes]", store.open(inside, "rb"))


def store_fingerprint(path: str) -> FileFingerprint:
    """Return the fingerprint of a local file, or of one in an object store."""
    if "://" not in path:
        return fingerprint_of(path)
    store, inside = _store(path)
    return _fingerprint(store.info(inside))


def _fingerprint(info: dict[str, Any]) -> FileFingerprint:
    version = next((str(info[name]) for name in _VERSIONS if info.get(name)), "")
    digest = hashlib.sha256(version.encode()).digest()
    return FileFingerprint(int(info.get("size") or 0), int.from_bytes(digest[:7], "big"))


def _store(address: str) -> tuple[Any, str]:
    """Return the file system of an address and the path in it."""
    try:
        fsspec = importlib.import_module("fsspec.core")
        store, path = fsspec.url_to_fs(address)
    except ImportError as error:
        raise ValueError(
            f"{address} needs fsspec and its package for this store: install resnet50-serving with"
            " the extra [remote]"
        ) from error
    return store, path


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
