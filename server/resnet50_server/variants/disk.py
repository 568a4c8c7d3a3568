"""File access that may hang, as on a network disk, beside an event loop that must not."""

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

# Some files of one variant; a look at all of them.
FEW_FILES_S = 10.0
ALL_FILES_S = 60.0


class Disk:
    """Runs file access in a thread of its own, one call at a time; event loop only.

    Nothing can end a thread that waits for a disk. So at most one does, which nothing else uses:
    calls that come meanwhile wait, as long as any call may take, and then fail without a thread.

    Args:
        what: What is accessed, for messages: a setting and its value.
        timeout_s: How long a call is waited for, in seconds, those before it included.
    """

    def __init__(self, what: str, timeout_s: float) -> None:
        self._what = what
        self._timeout_s = timeout_s
        self._running: asyncio.Future[tuple[Any, BaseException | None]] | None = None

    async def run(self, call: Callable[[], Result]) -> Result:
        """Return what a call returns.

        Raises:
            DiskTimeout: It did not return in time; it may do so later, and is not waited for.
            Exception: What the call raises.
        """
        loop = asyncio.get_running_loop()
        ends = loop.time() + self._timeout_s
        while self._running is not None and not self._running.done():
            await self._wait(self._running, ends - loop.time())
        self._running = running = loop.create_future()

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

        # A daemon: the process ends without waiting for the disk.
        threading.Thread(target=work, name="files of variants", daemon=True).start()
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
            raise DiskTimeout(self._what, self._timeout_s)
        return running.result()


def read_file(path: Path, max_bytes: int | None = None) -> bytes:
    """Read a file whole; not a pipe or a device, which may have no end; blocks.

    Args:
        path: Of the file.
        max_bytes: A longer one is refused; None for any length.

    Raises:
        OSError: It cannot be read, is no file, or is too long.
    """
    # Opening a pipe would wait for a process that writes into it.
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(0, "is no file")
    with path.open("rb") as file:
        content = file.read(-1 if max_bytes is None else max_bytes + 1)
    if max_bytes is not None and len(content) > max_bytes:
        raise OSError(0, f"is longer than {max_bytes // 2**20} MiB")
    return content
