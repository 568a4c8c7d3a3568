"""A lock file for work that only one process may do at a time."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

# How often a waiting process logs that it still waits.
REMIND_S = 60.0
POLL_INTERVAL_S = 0.1


@contextlib.contextmanager
def file_lock(path: Path, task: str, timeout_s: float | None = None) -> Iterator[None]:
    """Hold the lock file `path` for the block; the kernel frees it if this process dies.

    Args:
        path: Created if missing; it is not removed.
        task: Work of the process that has the lock, e.g. "downloads a.pth"; for the log.
        timeout_s: How long to wait for the lock, in seconds; None: without limit.

    Raises:
        TimeoutError: Another process has held the lock for the whole time.
        OSError: The file cannot be created or locked.
    """
    lock = FileLock(path)
    ends = None if timeout_s is None else time.monotonic() + timeout_s
    wait_s = 0.0
    while True:
        try:
            lock.acquire(timeout=wait_s, poll_interval=POLL_INTERVAL_S)
            break
        except Timeout:
            left_s = REMIND_S if ends is None else ends - time.monotonic()
            if left_s <= 0:
                raise TimeoutError(f"another process has held {path} for {timeout_s:g} s") from None
            log.info("waiting for another process that %s (it holds %s)", task, path)
            wait_s = min(REMIND_S, left_s)
    try:
        yield
    finally:
        lock.release()
