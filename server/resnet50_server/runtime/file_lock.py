"""One process at a time: a lock beside a file that several servers may want to make at once."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

# So often is it said that another process is still waited for.
REMIND_S = 60.0
LOOK_S = 0.1


@contextlib.contextmanager
def locked(path: Path, task: str, patience_s: float | None = None) -> Iterator[None]:
    """Hold the lock file `path` for the block; the kernel frees it if this process dies.

    Args:
        path: Made if it is not there; stays.
        task: What whoever holds it does, for the log.
        patience_s: How long to wait for it, in seconds; None: for ever.

    Raises:
        TimeoutError: It was not to be had in time.
        OSError: The file cannot be made or locked.
    """
    lock = FileLock(path)
    ends = None if patience_s is None else time.monotonic() + patience_s
    wait_s = 0.0
    while True:
        try:
            lock.acquire(timeout=wait_s, poll_interval=LOOK_S)
            break
        except Timeout:
            left_s = REMIND_S if ends is None else ends - time.monotonic()
            if left_s <= 0:
                raise TimeoutError(
                    f"another process has held {path} for {patience_s:g} s"
                ) from None
            log.info("waiting for another process that %s (it holds %s)", task, path)
            wait_s = min(REMIND_S, left_s)
    try:
        yield
    finally:
        lock.release()
