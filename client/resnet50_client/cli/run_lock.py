"""One run at a time writes an output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Keep other runs from an output for the block; a run that is killed keeps nobody from it.

    Args:
        out: The output. The lock is a file beside it, which is gone afterwards.

    Raises:
        OSError: Another run has it, or no file can be made there.
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
        # Before the lock is let go: whoever takes a lock on a removed file notices and asks again.
        with suppress(OSError):  # Windows removes no open file; filelock does it there
            path.unlink()
        lock.release()
