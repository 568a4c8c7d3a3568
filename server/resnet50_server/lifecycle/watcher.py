"""Watches the folder of variants: what appears or changes is loaded, what goes is unloaded."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from functools import partial

from resnet50_server.errors import DiskTimeout, NotNow, ServingError
from resnet50_server.variants.directory import Stamp, VariantsDirectory
from resnet50_server.variants.disk import ALL_FILES_S, Disk

from .control import VariantControl
from .registry import VariantRegistry

log = logging.getLogger(__name__)

# The longest pause before what failed for a passing reason is tried again.
MAX_PAUSE_S = 300.0


@dataclass(frozen=True)
class _Retry:
    """A folder that could not be loaded for a reason that may pass.

    Attributes:
        stamp: What it was like then; when it changes, the reason may be another one.
        pause_s: How long to wait, in seconds.
        due_s: When to try again, on the event loop's clock.
    """

    stamp: Stamp
    pause_s: float
    due_s: float


class DirectoryWatcher:
    """Looks at the folder now and then, and loads and unloads what has changed.

    A folder is taken as it is once two looks in a row have found the same: files that are still
    being written are left alone. A load that failed for a reason that may pass (memory, another
    change, a disk that does not answer) is tried again with growing pauses, one that failed for its
    files when they change.

    Args:
        directory: The folder.
        variants: Those that the server holds.
        control: VariantControl them.
        every_s: From one look to the next, in seconds.
    """

    def __init__(
        self,
        directory: VariantsDirectory,
        variants: VariantRegistry,
        control: VariantControl,
        every_s: float,
    ) -> None:
        self._directory = directory
        self._disk = Disk(str(directory), ALL_FILES_S)
        self._variants = variants
        self._control = control
        self._every_s = every_s
        # What looks have found: the last one, and those whose outcome is final until files change,
        # be it an administrator's doing.
        self._last: dict[str, Stamp] = {}
        self._done = control.stamps
        self._retries: dict[str, _Retry] = {}
        self._refused: dict[str, str] = {}
        self._passed_over: set[str] = set()
        self._problem = ""

    async def begin(self) -> None:
        """Take a first look, before the server loads what it is started with from the folder."""
        specs = self._variants.specs

        def look() -> tuple[dict[str, Stamp], set[str]]:
            served = {one.name for one in specs if self._directory.holds(one)}
            return self._directory.stamps(), served

        try:
            self._last, served = await self._disk.run(look)
        except (OSError, DiskTimeout):
            return  # each look says so
        self._done.update({name: stamp for name, stamp in self._last.items() if name in served})

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(self._every_s)
            try:
                await self._look()
            except Exception as error:
                # It may be so at every look, as while the folder is not mounted.
                foreseen = isinstance(error, (OSError, DiskTimeout))
                problem = str(error) if foreseen else repr(error)
                if problem != self._problem:
                    log.warning(
                        "variants_dir could not be looked at; it will be again: %s",
                        problem,
                        exc_info=not foreseen,
                    )
                self._problem = problem
            else:
                self._problem = ""

    async def _look(self) -> None:
        found = await self._disk.run(self._directory.stamps)
        last, self._last = self._last, found
        self._retries = {name: one for name, one in self._retries.items() if name in found}
        for name in sorted(found.keys() | self._done.keys()):
            stamp = found.get(name)
            if self._directory.is_official(name):
                self._pass_over(name)
                continue
            await self._control.settle()  # it may be an administrator's load of the same
            if stamp == self._done.get(name) or stamp != last.get(name):
                continue
            try:
                if stamp is None:
                    await self._unload(name)
                    del self._done[name]
                elif self._is_due(name, stamp):
                    await self._load(name, stamp)
            except ServingError as error:
                # One that may not go yet, as the default, is asked to go at each look.
                if self._refused.get(name) != str(error):
                    self._refused[name] = str(error)
                    log.warning("variants_dir: %s: %s", name, error)
            else:
                self._refused.pop(name, None)

    def _is_due(self, name: str, stamp: Stamp) -> bool:
        """Return whether a folder may be tried: for the first time, or again."""
        retry = self._retries.get(name)
        if retry is None or retry.stamp != stamp:
            return True
        return asyncio.get_running_loop().time() >= retry.due_s

    async def _load(self, name: str, stamp: Stamp) -> None:
        """Load a folder; what has become of it is final, or is to be tried again.

        Raises:
            ServingError: It cannot be loaded, or not now.
        """
        try:
            await self._control.load(name, replace=True)  # notes the stamp itself
        except DiskTimeout:
            self._try_again(name, stamp)
            raise
        except NotNow as error:
            if error.passing:
                self._try_again(name, stamp)
            else:
                self._done[name] = stamp
            raise
        except ServingError:  # the name, or where a link leads
            self._done[name] = stamp
            raise
        self._retries.pop(name, None)

    def _try_again(self, name: str, stamp: Stamp) -> None:
        """Note that a folder is to be tried again, after a longer pause each time."""
        before, pause_s = self._retries.get(name), self._every_s
        if before is not None and before.stamp == stamp:
            pause_s = min(MAX_PAUSE_S, 2 * before.pause_s)
        due_s = asyncio.get_running_loop().time() + pause_s
        self._retries[name] = _Retry(stamp, pause_s, due_s)

    async def _unload(self, name: str) -> None:
        spec = self._variants.by_name(name)
        if spec is None:
            self._variants.failures.pop(name, None)
        elif await self._disk.run(partial(self._directory.holds, spec)):
            if name not in self._refused:  # else it is said already why it stays
                log.info("variants_dir: %s has gone", name)
            await self._control.unload(name)

    def _pass_over(self, name: str) -> None:
        """Leave alone a folder whose name loads other weights; say so once."""
        if name not in self._passed_over:
            self._passed_over.add(name)
            log.warning(
                "variants_dir: %s is not loaded: it is torchvision's name; rename the folder", name
            )
