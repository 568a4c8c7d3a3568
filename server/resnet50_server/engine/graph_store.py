"""Graphs on disk: made once per weights, then read."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


class GraphStore:
    """Files that are expensive to make and can always be made again.

    A file appears under its name when it is whole. Two servers that make the same one at once both
    succeed; the later one stays. Where the folder cannot be written, files are made in a temporary
    one, which goes away when the `with` block ends, and the log says so.

    Args:
        directory: Where they lie; made when something is stored.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> GraphStore:
        return self

    def __exit__(self, *_: object) -> None:
        if self._temporary is not None:
            self._temporary.cleanup()

    def path(self, name: str, make: Callable[[Path], None]) -> Path:
        """Return the file of that name, made first if it is not there.

        Args:
            name: Says everything that the content depends on.
            make: Writes it to the path that it is given.
        """
        path = self._directory / name
        if path.exists():
            return path
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            return _put(path, make)
        except OSError as error:
            if self._temporary is None:
                log.warning(
                    "cache_dir: %s cannot be written (%s): what is kept there is made anew at each"
                    " start",
                    self._directory,
                    error.strerror or error,
                )
                self._temporary = tempfile.TemporaryDirectory(prefix="resnet50-")
            path = Path(self._temporary.name) / name
            return path if path.exists() else _put(path, make)

    def remember(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what JSON file `name` holds, or else what `make` returns, and keep that."""
        path = self._directory / name
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError):
            self.forget(path)
        value = make()
        self.path(name, partial(_write, json.dumps(value)))
        return value

    def forget(self, path: Path) -> None:
        """Remove a file that turned out to be broken."""
        with contextlib.suppress(OSError):
            path.unlink()


def _write(text: str, path: Path) -> None:
    path.write_text(text)


def _put(path: Path, make: Callable[[Path], None]) -> Path:
    """Let `make` write beside `path`, then move what it wrote there at once."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem + "-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        make(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
