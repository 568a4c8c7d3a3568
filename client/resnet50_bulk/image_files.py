"""Image files of the command line, named or found in folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from .signatures import START_BYTES, image_format, other_format

STDIN = "-"
# Of the formats that servers decode; other files are recognised by their first bytes.
IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo"),
        *(".png", ".apng", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
        *(".heic", ".heics", ".heif", ".heifs", ".hif", ".avif", ".avifs"),
    }
)
_RAW_SUFFIXES = (
    *(".3fr", ".arw", ".cr2", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mos"),
    *(".nef", ".nrw", ".orf", ".pef", ".rw2", ".sr2", ".srw"),
)
# These begin like an image, but a decoder finds only a thumbnail in them.
_THUMBNAIL_SUFFIXES = dict.fromkeys(_RAW_SUFFIXES, "camera raw") | {".thm": "video's thumbnail"}
# Files and folders that Finder, Windows and NAS systems place beside images.
_COMPANIONS = frozenset(
    {
        *(".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx"),
        *("@eadir", "#recycle", ".@__thumb"),
    }
)
_COMPANION_PREFIX = "._"
# The summary names as many reasons.
_MAX_REASONS = 8
_MAX_SUFFIX = 10


class LeftOut:
    """Files and folders that a search found and left out, counted by reason.

    Attributes:
        files: Number of files by reason, e.g. ".mov (MP4 video)".
        folders: Number of folders by reason.
    """

    def __init__(self) -> None:
        self.files: Counter[str] = Counter()
        self.folders: Counter[str] = Counter()

    def __str__(self) -> str:
        """Return one line, "" if nothing was left out."""
        parts = []
        for noun, counts in (("file", self.files), ("folder", self.folders)):
            if count := sum(counts.values()):
                parts.append(f"{count} {noun}{'s' * (count > 1)}: {_reasons(counts)}")
        return f"left out {'; '.join(parts)}" if parts else ""


def find_images(names: Iterable[str], left_out: LeftOut | None = None) -> Iterator[str]:
    """Yield paths of images: each file, and for each folder the image files in its tree, sorted.

    Files in folders are images by their suffix or their first bytes. Links to folders are followed
    once. Companion files of operating systems are passed over; other hidden files are left out.

    Args:
        names: Names of files and folders; `STDIN` is yielded as it is.
        left_out: Counts the files that are left out.

    Raises:
        FileNotFoundError: A folder contains no image files.
        OSError: A named folder cannot be read.
    """
    for name in names:
        if name == STDIN or not os.path.isdir(name):
            yield name
            continue
        counted = LeftOut()
        found = False
        for path in walk(name, counted):
            found = True
            yield path
        if not found:
            reason = f"; {counted}" if str(counted) else ""
            raise FileNotFoundError(f"{Path(name)}: no image files in this folder{reason}")
        if left_out is not None:
            left_out.files.update(counted.files)
            left_out.folders.update(counted.folders)


def walk(folder: str, left_out: LeftOut, tree: str | None = None) -> Iterator[str]:
    """Yield the image files in a folder's tree in the order of their paths.

    Memory: the names in one folder, and the identities of all folders.

    Args:
        folder: The folder.
        left_out: Counts the files that are left out.
        tree: A folder above it: links to folders in that tree are not followed, because its walk
            finds them. Default: `folder`.

    Raises:
        OSError: The folder cannot be read.
    """
    top = str(Path(folder))
    inside = os.path.realpath(top if tree is None else tree)
    status = os.stat(top)
    seen = {(status.st_dev, status.st_ino)}
    pending = [iter(_entries(top))]
    while pending:
        entry = next(pending[-1], None)
        if entry is None:
            pending.pop()
        elif not _is_folder(entry):
            reason = _reason(entry)
            if reason is not None:
                left_out.files[reason] += 1
            else:
                # Path() removes the "./" of the current folder.
                yield entry.path if top != os.curdir else str(Path(entry.path))
        elif is_hidden(entry.name):
            left_out.folders["hidden"] += 1
        elif not (entry.is_symlink() and _is_found_in(entry.path, inside)):
            try:
                status = entry.stat()
                if (status.st_dev, status.st_ino) not in seen:
                    seen.add((status.st_dev, status.st_ino))
                    pending.append(iter(_entries(entry.path)))
            except OSError:
                left_out.folders["unreadable"] += 1


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """Return a folder's entries in the order of the paths below them."""
    with os.scandir(folder) as found:
        entries = [entry for entry in found if not is_companion(entry.name)]
    return sorted(entries, key=lambda one: one.name + os.sep if _is_folder(one) else one.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links that go in a circle
        return False


def _reason(entry: os.DirEntry[str]) -> str | None:
    """Return why a file is left out, None if it is an image."""
    try:
        regular = entry.is_file()
    except OSError:
        regular = False
    if not regular:
        return "linked to nothing" if entry.is_symlink() else "not regular"
    if is_hidden(entry.name):
        return "hidden"
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix in IMAGE_SUFFIXES:
        return None
    shown = suffix if 1 < len(suffix) <= _MAX_SUFFIX else "without a suffix"
    if suffix in _THUMBNAIL_SUFFIXES:
        return f"{shown} ({_THUMBNAIL_SUFFIXES[suffix]})"
    try:
        with open(entry.path, "rb", buffering=0) as file:
            start = file.read(START_BYTES)
    except OSError:
        return "unreadable"
    if image_format(start) is not None:
        return None
    name = other_format(start)
    return f"{shown} ({name})" if name else shown


def is_hidden(name: str) -> bool:
    """Return True for names that begin with a dot."""
    return name.startswith(".")


def is_companion(name: str) -> bool:
    """Return True for files and folders that systems place beside images, e.g. `.DS_Store`."""
    return name.startswith(_COMPANION_PREFIX) or name.lower() in _COMPANIONS


def _is_found_in(link: str, tree: str) -> bool:
    """Return True if the walk of a tree finds the folder that a link leads to by its own path.

    Args:
        link: Path of the link.
        tree: Real path of the tree.
    """
    target = os.path.realpath(link)
    try:
        if os.path.commonpath((target, tree)) != tree:
            return False
    except ValueError:  # on another drive
        return False
    parts = Path(os.path.relpath(target, tree)).parts
    return not any(is_hidden(part) or is_companion(part) for part in parts)


def _reasons(counts: Counter[str]) -> str:
    shown = [f"{count} {reason}" for reason, count in counts.most_common(_MAX_REASONS)]
    rest = sum(counts.values()) - sum(count for _, count in counts.most_common(_MAX_REASONS))
    return ", ".join([*shown, f"{rest} of other kinds"] if rest else shown)
