"""Files that are read again when they have changed."""

from __future__ import annotations

import os
import time
from pathlib import Path

# A file that has changed so recently may change again without its time or size telling.
MTIME_GRANULARITY_NS = 2_000_000_000


class FileChangeDetector:
    """Tells, for the price of a `stat` each, whether files may have changed.

    Not safe for several threads at once.

    Args:
        paths: The files. Links are followed, so one that is turned to another file is a change.
    """

    def __init__(self, *paths: Path) -> None:
        self._paths = paths
        self._seen: tuple[object, ...] | None = None

    def changed(self) -> bool:
        """Return whether the files should be read again; the first time, they should.

        Whatever is read after this call is at least as new as what it has seen, so a change while
        reading is seen by the next call.
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
            # The time of the last change of any kind; unlike the content's, it cannot be set.
            stamps.append((found.st_ctime_ns, found.st_size, found.st_ino, found.st_dev))
            # A time to come is from before the clock was set back: a change now has another one.
            settled = settled and abs(now_ns - found.st_ctime_ns) > MTIME_GRANULARITY_NS
        seen, self._seen = self._seen, tuple(stamps) if settled else None
        return not settled or seen != self._seen
