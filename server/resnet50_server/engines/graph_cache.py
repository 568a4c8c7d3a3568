"""Graphs on disk: made once per weights, then read, for as long as there is room."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from resnet50_server.errors import WeightsError
from resnet50_server.runtime.file_lock import file_lock

log = logging.getLogger(__name__)

# A bit that flips in a file is a wrong answer, not an error: so many hex digits of its SHA-256
# stand in its name.
DIGEST_DIGITS = 32
# Ours in a folder that may hold other things, half-made ones too.
_OURS = re.compile(r"(fastest-)?[0-9a-f]{32}[^/]*\.(onnx|json)")
# How long another server may make something before we make what we need elsewhere.
LOCK_PATIENCE_S = 120.0
# What was used so recently is not removed: a server may be about to open it.
RECENT_S = 3600.0


class NoRoom(WeightsError):
    """A file could be written nowhere."""


class GraphStore:
    """Files that are expensive to make and can always be made again.

    A file appears under its name when it is whole, and one that was damaged since is made anew. Of
    two servers that want the same one at once, one makes it. Where the folder cannot be written,
    files are made in a temporary one, which goes away when the `with` block ends, and the log says
    so.

    Args:
        directory: Where they lie; made when something is stored.
        max_bytes: What they may take together; beyond that the longest unused ones are removed.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> GraphStore:
        return self

    def __exit__(self, *_: object) -> None:
        if self._temporary is not None:
            self._temporary.cleanup()

    def path(self, name: str, make: Callable[[Path], None]) -> Path:
        """Return a file that holds what `name` says, made first if there is none.

        Args:
            name: Says everything that the content depends on.
            make: Writes it to the path that it is given.

        Raises:
            NoRoom: It can be written neither here nor to the temporary folder.
        """
        if found := self._found(name):
            return found
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            with file_lock(self._directory / ".lock", "makes graphs", LOCK_PATIENCE_S):
                # Another server may have made it meanwhile.
                if found := self._found(name):
                    return found
                self._remove_halves()
                path = _put(self._directory, name, make)
                self._remove_unused(path)
                return path
        except OSError as error:
            refused = error
        if self._temporary is None:
            log.warning(
                "graph_cache_dir: %s cannot be written (%s): graphs are made again at each start;"
                " free space there, or name another folder with --graph-cache-dir",
                self._directory,
                refused.strerror or refused,
            )
        try:
            if self._temporary is None:
                self._temporary = tempfile.TemporaryDirectory(prefix="resnet50-")
            return _put(Path(self._temporary.name), name, make)
        except OSError as error:
            raise NoRoom(
                f"graph_cache_dir: no room for {name}: neither in {self._directory}"
                f" ({refused.strerror or refused}) nor in a temporary folder"
                f" ({error.strerror or error}); free space, or name folders with"
                " --graph-cache-dir and TMPDIR, or use --engine torch, which needs none"
            ) from error

    def remember(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what JSON file `name` holds, or else what `make` returns, and keep that."""
        if found := self._found(name):
            try:
                return json.loads(found.read_text())
            except (OSError, ValueError):
                self.forget(found)
        value = make()
        # Measured anew at the next start.
        with contextlib.suppress(NoRoom):
            self.path(name, partial(_write, json.dumps(value)))
        return value

    def forget(self, path: Path) -> None:
        """Remove a file that turned out to be broken."""
        with contextlib.suppress(OSError):
            path.unlink()

    def _found(self, name: str) -> Path | None:
        """Return a whole file of that name; remove damaged ones."""
        stem, suffix = os.path.splitext(name)
        form = re.compile(rf"{re.escape(stem)}\.([0-9a-f]{{{DIGEST_DIGITS}}}){re.escape(suffix)}")
        folders = [self._directory]
        if self._temporary is not None:
            folders.append(Path(self._temporary.name))
        for folder in folders:
            for path in _listed(folder):
                if not (match := form.fullmatch(path.name)):
                    continue
                with contextlib.suppress(OSError):
                    if _digest(path) != match[1]:
                        log.warning("graph_cache_dir: %s is damaged, and is made anew", path)
                        self.forget(path)
                        continue
                    with contextlib.suppress(OSError):
                        os.utime(path)  # the moment of its last use
                    return path
        return None

    def _remove_halves(self) -> None:
        """Remove what servers that died have left; for whoever holds the lock."""
        for path in _listed(self._directory):
            if _OURS.fullmatch(path.name) and path.stem.endswith(".part"):
                self.forget(path)

    def _remove_unused(self, made: Path) -> None:
        """Remove what has not been used for longest until the rest fits; `made` stays.

        Servers that run go on: on POSIX what they have open stays theirs.
        """
        kept: list[tuple[float, int, Path]] = []
        for path in _listed(self._directory):
            with contextlib.suppress(OSError):
                if _OURS.fullmatch(path.name):
                    found = path.stat()
                    kept.append((found.st_mtime, found.st_size, path))
        total = sum(size for _, size, _ in kept)
        now = time.time()
        for used_at, size, path in sorted(kept):
            if total <= self._max_bytes:
                break
            # Either way: the clock may have been set back since.
            if path == made or abs(now - used_at) < RECENT_S:
                continue
            log.info(
                "graph_cache_dir: removed %s, unused for %.0f days: max_graph_cache_bytes is %d",
                path,
                (now - used_at) / 86400,
                self._max_bytes,
            )
            self.forget(path)
            total -= size


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:DIGEST_DIGITS]


def _write(text: str, path: Path) -> None:
    path.write_text(text)


def _put(directory: Path, name: str, make: Callable[[Path], None]) -> Path:
    """Let `make` write a file beside its place, then move it there at once."""
    stem, suffix = os.path.splitext(name)
    half = directory / f"{stem}.part{suffix}"
    try:
        make(half)
        return half.replace(directory / f"{stem}.{_digest(half)}{suffix}")
    finally:
        with contextlib.suppress(OSError):
            half.unlink()
