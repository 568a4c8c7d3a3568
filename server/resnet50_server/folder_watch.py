"""Watches the folder of variants: what appears or changes is loaded, what goes is unloaded."""

from __future__ import annotations

import asyncio
import logging

from .changes import Changes
from .errors import ServingError
from .held import HeldVariants
from .variants.directory import VariantsDirectory

log = logging.getLogger(__name__)


class FolderWatch:
    """Looks at the folder now and then, and has done what has changed.

    A folder is taken as it is once two looks in a row have found the same: files that are still
    being written are left alone. What could not be loaded is tried again when its files change.

    Args:
        directory: The folder.
        variants: Those that the server holds.
        changes: Changes them.
        every_s: From one look to the next, in seconds.
    """

    def __init__(
        self,
        directory: VariantsDirectory,
        variants: HeldVariants,
        changes: Changes,
        every_s: float,
    ) -> None:
        self._directory = directory
        self._variants = variants
        self._changes = changes
        self._every_s = every_s
        # What two looks have found: the last one, and the one that was done by, be it by an
        # administrator.
        try:
            self._last = directory.stamps()
        except OSError:
            self._last = {}  # as each look says
        self._done = changes.stamps
        served = {one.name for one in variants.definitions if directory.holds(one)}
        self._done.update({name: stamp for name, stamp in self._last.items() if name in served})
        self._refused: dict[str, str] = {}
        self._passed_over: set[str] = set()
        self._problem = ""

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(self._every_s)
            try:
                await self._look()
            except Exception as error:
                # It may be so at every look, as while the folder is not mounted.
                foreseen = isinstance(error, OSError)
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
        found = await asyncio.to_thread(self._directory.stamps)
        last, self._last = self._last, found
        for name in sorted(found.keys() | self._done.keys()):
            stamp = found.get(name)
            if self._directory.is_official(name):
                self._pass_over(name)
                continue
            await self._changes.settle()  # it may be an administrator's load of the same
            if stamp == self._done.get(name) or stamp != last.get(name):
                continue
            try:
                if stamp is None:
                    await self._unload(name)
                    del self._done[name]
                else:
                    self._done[name] = stamp
                    await self._changes.load(name, replace=True)
            except ServingError as error:
                # One that may not go yet, as the default, is asked to go at each look.
                if self._refused.get(name) != str(error):
                    self._refused[name] = str(error)
                    log.warning("variants_dir: %s: %s", name, error)
            else:
                self._refused.pop(name, None)

    async def _unload(self, name: str) -> None:
        definition = self._variants.by_name(name)
        if definition is None:
            self._variants.failures.pop(name, None)
        elif self._directory.holds(definition):
            if name not in self._refused:  # else it is said already why it stays
                log.info("variants_dir: %s has gone", name)
            await self._changes.unload(name)

    def _pass_over(self, name: str) -> None:
        """Leave alone a folder whose name loads other weights; say so once."""
        if name not in self._passed_over:
            self._passed_over.add(name)
            log.warning(
                "variants_dir: %s is not loaded: it is torchvision's name; rename the folder", name
            )
