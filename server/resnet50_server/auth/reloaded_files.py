"""Files that are read again when they change, if they are valid."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from resnet50_server.errors import UnusableSetting
from resnet50_server.runtime.file_changes import FileChangeDetector

Value = TypeVar("Value")

log = logging.getLogger(__name__)


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
