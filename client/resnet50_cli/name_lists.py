"""Names of files and folders, on the command line and in lists (`--files-from`)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import IO

from resnet50_bulk.file_names import text_to_name
from resnet50_bulk.image_files import STDIN

# PATH_MAX on Linux; a longer entry of a list is no name.
_MAX_NAME_BYTES = 4096
_READ_BYTES = 2**16


def chosen_names(files: Sequence[str], files_from: str | None, null: bool) -> Iterator[str]:
    """Return the names on the command line, then those listed in a file, which is read lazily.

    Args:
        files: Names on the command line.
        files_from: Path of the list, `STDIN` for the standard input, None for no list.
        null: The list's names end with NUL bytes, not with line ends.

    Raises:
        ValueError: No names are given. The iterator raises it if the file is no list of names.
        OSError: The iterator raises it if the list cannot be read.
    """
    if files_from is None:
        if null:
            raise ValueError("--null describes the list of --files-from, which is not given")
        if not files:
            raise ValueError("no images: pass FILES, or a list of them by --files-from")
        return iter(files)
    if files_from == STDIN and STDIN in files:
        raise ValueError("- and --files-from - both read the standard input; pass one of them")
    return chain(files, listed_names(files_from, null))


def listed_names(files_from: str, null: bool) -> Iterator[str]:
    """Yield the names listed in a file; arguments and errors as of `chosen_names`."""
    if files_from == STDIN:
        yield from _listed(sys.stdin.buffer, null)
    else:
        with open(files_from, "rb") as file:
            yield from _listed(file, null)


def _listed(file: IO[bytes], null: bool) -> Iterator[str]:
    """Yield the names of a list; in lines they may be `file:` URIs, as the commands write them."""
    for number, entry in enumerate(_pieces(file, b"\0" if null else b"\n"), 1):
        name = entry if null else entry.removesuffix(b"\r")
        if number == 1 and not null:
            name = name.removeprefix(b"\xef\xbb\xbf")
        if not name:
            continue
        if b"\0" in name:
            raise ValueError(
                f"--files-from: line {number} contains a NUL byte; pass --null if names end with it"
            )
        text = os.fsdecode(name) if null else text_to_name(os.fsdecode(name))
        yield os.path.join(os.curdir, text) if text == STDIN else text


def _pieces(file: IO[bytes], end: bytes) -> Iterator[bytes]:
    """Yield the content of a file up to each `end`, as it arrives."""
    rest = b""
    # read1 returns what is there: names of a pipe are used before the next ones are written.
    read = getattr(file, "read1", file.read)
    number = 0
    while content := read(_READ_BYTES):
        *whole, rest = (rest + content).split(end)
        for piece in whole:
            number += 1
            yield _checked(piece, number)
        _checked(rest, number + 1)
    if rest:
        yield rest


def _checked(name: bytes, number: int) -> bytes:
    if len(name) > _MAX_NAME_BYTES:
        raise ValueError(
            f"--files-from: entry {number} is longer than {_MAX_NAME_BYTES} bytes, which no file"
            " name is; pass one name per line, or --null for names that end with NUL bytes"
        )
    return name
