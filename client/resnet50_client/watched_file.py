"""A small file that may be replaced at any time: a mounted secret, a renewed certificate."""

from __future__ import annotations

import os
import stat
import threading
import time
from pathlib import Path

from .forks import tell_after_fork

# File systems stamp changes to some milliseconds: of what was changed so lately, another change
# might not show.
SETTLED_S = 1.0
MOST_BYTES = 4 * 2**20
_Stamp = tuple[int, ...]


class WatchedFile:
    """Reads a file again when it has changed: one `stat` a look. May be used by many threads.

    Args:
        path: Of the file; links are followed, so that swapping one is seen.
        argument: What errors call it.

    Raises:
        OSError: It cannot be read; names the argument.
    """

    def __init__(self, path: str | os.PathLike[str], argument: str) -> None:
        self.path = Path(path)
        self._argument = argument
        self._lock = threading.Lock()
        self._stamp: _Stamp | None = None  # None: read it whatever the stamp says
        self._content = b""
        with self._lock:
            self._read()
        tell_after_fork(self)

    def content(self) -> bytes:
        """Return what is in the file now.

        Raises:
            OSError: It cannot be read; names the argument.
        """
        with self._lock:
            try:
                changed = self._stamp is None or self._stamp != _stamp(os.stat(self.path))
            except OSError as error:
                raise self._named(error) from error
            if changed:
                self._read()
            return self._content

    def after_fork(self) -> None:
        """Make a new lock, and read the file anew: the old one may have been held meanwhile."""
        self._lock, self._stamp = threading.Lock(), None

    def _read(self) -> None:
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                content = file.read(MOST_BYTES + 1)
        except OSError as error:
            raise self._named(error) from error
        if len(content) > MOST_BYTES:
            raise OSError(f"{self._argument}: {self.path} is over {MOST_BYTES} bytes")
        self._content = content
        # What is not a file, such as a shell's <(command), gives its content once.
        settled = time.time() - status.st_mtime > SETTLED_S or not stat.S_ISREG(status.st_mode)
        self._stamp = _stamp(status) if settled else None

    def _named(self, error: OSError) -> OSError:
        return OSError(error.errno, f"{self._argument}: {error.strerror}", str(self.path))


def _stamp(status: os.stat_result) -> _Stamp:
    if not stat.S_ISREG(status.st_mode):
        return ()
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
