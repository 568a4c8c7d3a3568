"""The source for names: files, folders, glob patterns, archives, tables and object stores."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias, cast

from .image_files import LeftOut, find_images
from .source import FileSource, Source

Names: TypeAlias = "str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | Source"
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
TABLE_SUFFIXES = (".parquet", ".lance")


def source_of(names: Names, left_out: LeftOut | None = None) -> Source:
    """Return the source that some names are of.

    Args:
        names: A file, a folder or a glob pattern; a WebDataset archive (.tar, .tar.gz); a table
            (.parquet, .lance); an address of an object store ("s3://…"); several of one kind; or a
            `Source`, which is returned.
        left_out: Counts the files in folders that are left out.

    Raises:
        ValueError: The names are of several kinds, or a package for them is not installed.
        OSError: A file of the source cannot be read.
    """
    if isinstance(names, (str, os.PathLike)):
        listed = [os.fspath(names)]
    elif hasattr(names, "fingerprint"):
        return cast("Source", names)
    else:
        listed = [os.fspath(name) for name in cast("Iterable[str]", names)]
    found = list(_expanded(listed))
    kinds = {kind for _, kind in found}
    if len(kinds) > 1:
        raise ValueError(
            f"the images are in {' and '.join(sorted(kinds))}: pass one kind of source, and the"
            " others to runs of their own with append"
        )
    paths = [path for path, _ in found]
    kind = next(iter(kinds), "files")
    # Imported here: pyarrow, Lance and fsspec are optional.
    if kind == "archives":
        from .tar_source import TarSource

        return TarSource(paths)
    if kind == "tables":
        from .table_source import TableSource

        return TableSource(paths)
    if kind == "object stores":
        from .store_source import StoreSource

        return StoreSource(paths)
    return FileSource(find_images(paths, left_out))


def is_address(name: str) -> bool:
    """Return True for addresses of object stores, e.g. "s3://bucket/folder"."""
    return "://" in name


def _expanded(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield names and their kinds; glob patterns of local files become the files, sorted."""
    for name in names:
        if not is_address(name) and glob.has_magic(name) and not Path(name).exists():
            matches = sorted(glob.glob(name, recursive=True))
            if not matches:
                raise FileNotFoundError(f"{name}: no file matches this pattern")
            yield from ((match, _kind(match)) for match in matches)
        else:
            yield name, _kind(name)


def _kind(name: str) -> str:
    lower = name.lower()
    if lower.endswith(TAR_SUFFIXES):
        return "archives"
    if lower.endswith(TABLE_SUFFIXES):
        return "tables"
    return "object stores" if is_address(name) else "files"
