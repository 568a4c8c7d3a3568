"""Detects changed files, and reads them again if they are valid."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from resnet50_server.errors import UnusableSetting

Value = TypeVar("Value")

log = logging.getLogger(__name__)

# A file changed within this time may change again without a new timestamp or size.
MTIME_GRANULARITY_NS = 2_000_000_000


class FileChangeDetector:
    """Detects, with one `stat` a file, whether files may have changed.

    Not thread-safe.

    Args:
        paths: The files. Symbolic links are followed, so a link to another file is a change.
    """

    def __init__(self, *paths: Path) -> None:
        self._paths = paths
        self._seen: tuple[object, ...] | None = None

    def changed(self) -> bool:
        """Return whether the files may have changed since the last call; True the first time.

        A change while the files are read is detected by the next call.
        """
        now_ns = time.time_ns()
        stamps: list[object] = []
        settled = True
        for path in self._paths:
            try:
                found = os.stat(path)
            except OSError as error:
                stamps.append(error.errno)
                continue
            # ctime changes with every change and, unlike mtime, cannot be set.
            stamps.append((found.st_ctime_ns, found.st_size, found.st_ino, found.st_dev))
            # A timestamp in the future dates from before the clock was set back.
            settled = settled and abs(now_ns - found.st_ctime_ns) > MTIME_GRANULARITY_NS
        seen, self._seen = self._seen, tuple(stamps) if settled else None
        return not settled or seen != self._seen

    def reset(self) -> None:
        """Report a change at the next call, because the files could not be read."""
        self._seen = None


class ReloadedFiles(Generic[Value]):
    """The value of files, read again when they change; while they are invalid the previous one.

    Not thread-safe.

    Args:
        read: Reads the value; raises `UnusableSetting`.
        paths: The files.
        kept: Name of the value in the log, e.g. "certificate".
        check: Refuses another value than the previous one; raises `UnusableSetting`.

    Attributes:
        value: The value that was read last.

    Raises:
        UnusableSetting: The files are not valid; says why.
    """

    def __init__(
        self,
        read: Callable[[], Value],
        *paths: Path,
        kept: str,
        check: Callable[[Value], None] = lambda _: None,
    ) -> None:
        self._read = read
        self._check = check
        self._detector = FileChangeDetector(*paths)
        self._kept = kept
        self._last_error = ""
        self._detector.changed()
        self.value = read()
        check(self.value)

    def reload(self) -> bool:
        """Read the files if they may have changed; return whether there is another value."""
        if not self._detector.changed():
            return False
        try:
            value = self._read()
            if value == self.value:
                self._last_error = ""
                return False
            self._check(value)
        except UnusableSetting as error:
            if isinstance(error.__cause__, OSError):
                # Of the disk, perhaps only now: the files may be valid, and look unchanged.
                self._detector.reset()
            if str(error) != self._last_error:
                self._last_error = str(error)
                log.error("%s; continuing with the previous %s", error, self._kept)
            return False
        self._last_error, self.value = "", value
        return True
