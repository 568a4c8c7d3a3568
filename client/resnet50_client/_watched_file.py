"""A small file that is reloaded when it changes: a mounted secret, a renewed certificate."""

from __future__ import annotations

import logging
import os
import stat
import threading
import time

from ._forks import tell_after_fork

# The resolution of file timestamps is some milliseconds: after a very recent change, another one
# may not be detectable.
SETTLED_S = 1.0
MOST_BYTES = 4 * 2**20
_Fingerprint = tuple[int, ...]

log = logging.getLogger(__name__)


class WatchedFile:
    """Reads a file again when it changes, with one `stat` per access. Thread-safe.

    Args:
        path: Path of the file; symbolic links are followed, so that swapping one is detected.
        argument: Name in errors.

    Attributes:
        path: Path of the file.

    Raises:
        OSError: The file cannot be read; the message names the argument.
    """

    def __init__(self, path: str | os.PathLike[str], argument: str) -> None:
        self.path = os.fspath(path)
        self._argument = argument
        self._lock = threading.Lock()
        self._fingerprint: _Fingerprint | None = None  # None: always read the file
        self._content = b""
        with self._lock:
            self._read()
        tell_after_fork(self)

    def content(self) -> bytes:
        """Return the file's current content.

        Raises:
            OSError: The file cannot be read; the message names the argument.
        """
        with self._lock:
            try:
                changed = self._fingerprint is None or self._fingerprint != fingerprint_of(
                    os.stat(self.path)
                )
            except OSError as error:
                raise self._named(error) from error
            if changed:
                self._read()
            return self._content

    def after_fork(self) -> None:
        """Create a new lock and read the file again: another thread may have held the old lock."""
        self._lock, self._fingerprint = threading.Lock(), None

    def _read(self) -> None:
        try:
            with open(self.path, "rb") as file:
                status = os.fstat(file.fileno())
                content = file.read(MOST_BYTES + 1)
        except OSError as error:
            raise self._named(error) from error
        if len(content) > MOST_BYTES:
            raise OSError(f"{self._argument}: {self.path} is over {MOST_BYTES} bytes")
        if self._content and content != self._content:
            log.debug("%s: %s has changed", self._argument, self.path)
        self._content = content
        # Something other than a regular file, such as a shell's <(command), can be read only once.
        settled = time.time() - status.st_mtime > SETTLED_S or not stat.S_ISREG(status.st_mode)
        self._fingerprint = fingerprint_of(status) if settled else None

    def _named(self, error: OSError) -> OSError:
        return OSError(error.errno, f"{self._argument}: {error.strerror}", self.path)


def fingerprint_of(status: os.stat_result) -> _Fingerprint:
    """Return numbers that change with a regular file; none for other kinds of files."""
    if not stat.S_ISREG(status.st_mode):
        return ()
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
