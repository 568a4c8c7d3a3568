"""Lock of an output file: one run at a time writes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def exclusive_lock(out: Path) -> Iterator[None]:
    """Lock an output file for the block; a killed run's lock is released by the system.

    Args:
        out: The output file. The lock is a file beside it, deleted afterwards.

    Raises:
        OSError: Another run holds the lock, or the lock file cannot be created.
    """
    path = out.with_name(out.name + ".lock")
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BlockingIOError(
            f"--out: another run is writing {out}; wait until it has ended, or name another file"
        ) from error
    try:
        yield
    finally:
        # Before the release: a process that locks a removed file notices and retries.
        with suppress(OSError):  # Windows cannot remove an open file; filelock does it there
            path.unlink()
        lock.release()
