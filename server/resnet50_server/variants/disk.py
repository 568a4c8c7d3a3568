"""File access with a time limit: a disk, such as a network disk, may hang."""

from __future__ import annotations

import asyncio
import contextlib
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from resnet50_server.errors import DiskTimeout

Result = TypeVar("Result")

# Time limits in seconds: for some files of one variant, and for a scan of all variants.
FEW_FILES_S = 10.0
ALL_FILES_S = 60.0


class Disk:
    """Runs file access in a separate thread, one call at a time. Event loop only.

    A thread that waits for a disk cannot be cancelled, so there is at most one. Further calls are
    queued, and time out without a thread.

    Args:
        source: The setting that names the files, and its value, for error messages.
        timeout_s: Time limit of a call in seconds, including the time in the queue.
    """

    def __init__(self, source: str, timeout_s: float) -> None:
        self._source = source
        self._timeout_s = timeout_s
        self._running: asyncio.Future[tuple[Any, BaseException | None]] | None = None

    async def run(self, call: Callable[[], Result]) -> Result:
        """Return what a call returns.

        Raises:
            DiskTimeout: It did not return in time. It may still complete later.
            Exception: The call's.
        """
        loop = asyncio.get_running_loop()
        ends = loop.time() + self._timeout_s
        while self._running is not None and not self._running.done():
            await self._wait(self._running, ends - loop.time())
        running = loop.create_future()

        def finish(outcome: tuple[Any, BaseException | None]) -> None:
            running.set_result(outcome)

        def work() -> None:
            outcome: tuple[Any, BaseException | None]
            try:
                outcome = call(), None
            except BaseException as error:
                outcome = None, error
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(finish, outcome)

        # A daemon thread: the process exits without waiting for the disk.
        threading.Thread(target=work, name="files of variants", daemon=True).start()
        self._running = running  # only if the thread was started: otherwise it would never end
        result, error = await self._wait(running, ends - loop.time())
        if error is not None:
            raise error
        found: Result = result
        return found

    async def _wait(
        self, running: asyncio.Future[tuple[Any, BaseException | None]], timeout_s: float
    ) -> tuple[Any, BaseException | None]:
        done, _ = await asyncio.wait([running], timeout=max(0.0, timeout_s))
        if not done:
            raise DiskTimeout(self._source, self._timeout_s)
        return running.result()


def read_file(path: Path, max_bytes: int | None = None) -> bytes:
    """Return the content of a regular file. Blocks.

    Args:
        path: The file; not a pipe or a device, which may never end.
        max_bytes: The longest content; None for no limit.

    Raises:
        OSError: It cannot be read, is not a regular file, or is too long.
    """
    # Opening a pipe would wait for a writer.
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(0, "is not a regular file")
    with path.open("rb") as file:
        content = file.read(-1 if max_bytes is None else max_bytes + 1)
    if max_bytes is not None and len(content) > max_bytes:
        raise OSError(0, f"is longer than {max_bytes // 2**20} MiB")
    return content
