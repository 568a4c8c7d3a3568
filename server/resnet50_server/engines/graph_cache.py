"""Disk cache of exported graphs: written once per weights, bounded, with digests."""

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

# Hex digits of a file's SHA-256 in its name. A flipped bit would cause wrong results, not errors.
DIGEST_DIGITS = 32
# The cache's files, partial ones too, in a directory that may have others.
_OURS = re.compile(r"(fastest-)?[0-9a-f]{32}[^/]*\.(onnx|json)")
# Time limit for another server that holds the lock; then a temporary directory is used.
LOCK_TIMEOUT_S = 120.0
# Files used within this time are not removed: a server may be about to open them.
RECENT_S = 3600.0


class CacheFull(WeightsError):
    """A file cannot be written, neither in the cache nor in a temporary directory."""


class GraphCache:
    """Cache of files that are expensive to make.

    Files are written atomically, and damaged ones are exported again. If two servers need the same
    file, one makes it. If the directory cannot be written, files are made in a temporary one, which
    is removed at the end of the `with` block, and a warning is logged.

    Args:
        directory: Directory of the cache; created with the first file.
        max_bytes: Maximum size; beyond it the least recently used files are removed.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> GraphCache:
        return self

    def __exit__(self, *_: object) -> None:
        if self._temporary is not None:
            self._temporary.cleanup()

    def path(self, name: str, make: Callable[[Path], None]) -> Path:
        """Return the path of a file, which is made if it is not cached.

        Args:
            name: Identifies everything that the content depends on.
            make: Writes the file to the path that it is given.

        Raises:
            CacheFull: It cannot be written, neither here nor in a temporary directory.
        """
        if found := self._found(name):
            return found
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            with file_lock(self._directory / ".lock", "exports graphs", LOCK_TIMEOUT_S):
                # Another server may have made it in the meantime.
                if found := self._found(name):
                    return found
                self._remove_partial()
                path = _write_atomically(self._directory, name, make)
                self._remove_unused(path)
                return path
        except OSError as error:
            refused = error
        if self._temporary is None:
            log.warning(
                "graph_cache_dir: %s cannot be written (%s): graphs are exported again at each"
                " start; free space there, or choose another directory with --graph-cache-dir",
                self._directory,
                refused.strerror or refused,
            )
        try:
            if self._temporary is None:
                self._temporary = tempfile.TemporaryDirectory(prefix="resnet50-")
            return _write_atomically(Path(self._temporary.name), name, make)
        except OSError as error:
            raise CacheFull(
                f"graph_cache_dir: no room for {name}: neither in {self._directory}"
                f" ({refused.strerror or refused}) nor in a temporary directory"
                f" ({error.strerror or error}); free space, or choose directories with"
                " --graph-cache-dir and TMPDIR, or use --engine torch, which needs none"
            ) from error

    def cached_json(self, name: str, make: Callable[[], Any]) -> Any:
        """Return the content of JSON file `name`, or else what `make` returns, which is cached."""
        if found := self._found(name):
            try:
                return json.loads(found.read_text())
            except (OSError, ValueError):
                self.evict(found)
        value = make()
        # If it cannot be cached, it is measured again at the next start.
        with contextlib.suppress(CacheFull):
            self.path(name, partial(_write, json.dumps(value)))
        return value

    def evict(self, path: Path) -> None:
        """Remove a file, such as a broken one."""
        with contextlib.suppress(OSError):
            path.unlink()

    def _found(self, name: str) -> Path | None:
        """Return the path of a cached file; damaged ones are removed."""
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
                        log.warning(
                            "graph_cache_dir: %s is damaged and will be exported again", path
                        )
                        self.evict(path)
                        continue
                    with contextlib.suppress(OSError):
                        os.utime(path)  # the time of its last use
                    return path
        return None

    def _remove_partial(self) -> None:
        """Remove partial files of servers that died; the caller holds the lock."""
        for path in _listed(self._directory):
            if _OURS.fullmatch(path.name) and path.stem.endswith(".part"):
                self.evict(path)

    def _remove_unused(self, made: Path) -> None:
        """Remove the least recently used files beyond the maximum size, but not `made`.

        Running servers are not affected: on POSIX, open files stay readable.
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
            # The absolute difference, since the clock may have been set back.
            if path == made or abs(now - used_at) < RECENT_S:
                continue
            log.info(
                "graph_cache_dir: removed %s, unused for %.0f days: max_graph_cache_bytes is %d",
                path,
                (now - used_at) / 86400,
                self._max_bytes,
            )
            self.evict(path)
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


def _write_atomically(directory: Path, name: str, make: Callable[[Path], None]) -> Path:
    """Write a file with `make` under a partial name, then rename it."""
    stem, suffix = os.path.splitext(name)
    partial_file = directory / f"{stem}.part{suffix}"
    try:
        make(partial_file)
        return partial_file.replace(directory / f"{stem}.{_digest(partial_file)}{suffix}")
    finally:
        with contextlib.suppress(OSError):
            partial_file.unlink()
