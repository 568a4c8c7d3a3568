"""Detects changed files by their status, without reading them."""

from __future__ import annotations

import os
import time
from pathlib import Path

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
