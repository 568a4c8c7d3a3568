"""Watches `variants_dir`: loads directories that appear or change, unloads those that go."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from resnet50_server.errors import DiskTimeout, NotNow, ServingError
from resnet50_server.variants.directory import Fingerprint, VariantsDirectory
from resnet50_server.variants.disk import ALL_FILES_S, Disk

from .control import VariantControl
from .load_retries import LoadRetries
from .registry import VariantRegistry

log = logging.getLogger(__name__)


class DirectoryWatcher:
    """Scans the directory periodically, and loads and unloads what has changed.

    A change is applied once two scans in a row found the same files, so that a copy in progress is
    left alone. A load that failed for a transient reason (memory, another change, a disk that does
    not respond) is retried with growing pauses; one that failed because of its files is retried
    when they change.

    Args:
        directory: The directory.
        variants: The registry.
        control: Loads and unloads variants.
        interval_s: Between two scans, in seconds.
        timeout_s: Time limit of a scan, in seconds.
    """

    def __init__(
        self,
        directory: VariantsDirectory,
        variants: VariantRegistry,
        control: VariantControl,
        interval_s: float,
        timeout_s: float = ALL_FILES_S,
    ) -> None:
        self._directory = directory
        self._disk = Disk(str(directory), timeout_s)
        self._variants = variants
        self._control = control
        self._interval_s = interval_s
        # Fingerprints by name: of the last scan, and of the state whose outcome is final until the
        # files change, which includes loads by an administrator.
        self._last: dict[str, Fingerprint] = {}
        self._applied = control.applied
        self._retries = LoadRetries(interval_s)
        self._logged: dict[str, str] = {}
        self._skipped: set[str] = set()
        self._problem = ""

    async def start(self) -> None:
        """Make the first scan, before the server loads the variants of its settings."""
        specs = self._variants.specs

        def scan() -> tuple[dict[str, Fingerprint], set[str]]:
            contained = {spec.name for spec in specs if self._directory.contains(spec)}
            return self._directory.fingerprints(), contained

        try:
            self._last, contained = await self._disk.run(scan)
        except (OSError, DiskTimeout):
            return  # logged by the scans that follow
        self._applied.update({name: one for name, one in self._last.items() if name in contained})

    async def run(self) -> None:
        """Scan until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.scan()
            except Exception as error:
                # Logged once, not at each scan, for instance while the directory is not mounted.
                expected = isinstance(error, (OSError, DiskTimeout))
                problem = str(error) if expected else repr(error)
                if problem != self._problem:
                    log.warning(
                        "variants_dir cannot be scanned, retrying: %s",
                        problem,
                        exc_info=not expected,
                    )
                self._problem = problem
            else:
                self._problem = ""

    async def scan(self) -> None:
        """Scan once, and apply what has not changed since the last scan."""
        found = await self._disk.run(self._directory.fingerprints)
        last, self._last = self._last, found
        self._retries.keep(found)
        for name in sorted(found.keys() | self._applied.keys()):
            fingerprint = found.get(name)
            if self._directory.is_official(name):
                self._skip_reserved(name)
                continue
            await self._control.wait_idle()  # an administrator may be loading it
            if fingerprint == self._applied.get(name) or fingerprint != last.get(name):
                continue
            try:
                if fingerprint is None:
                    await self._unload(name)
                    del self._applied[name]
                elif self._retries.is_due(name, fingerprint):
                    await self._load(name, fingerprint)
            except ServingError as error:
                # The unload of the default, for instance, is attempted at each scan.
                if self._logged.get(name) != str(error):
                    self._logged[name] = str(error)
                    log.warning("variants_dir: %s: %s", name, error)
            else:
                self._logged.pop(name, None)

    async def _load(self, name: str, fingerprint: Fingerprint) -> None:
        """Load a directory; a failure is final until its files change, or is retried.

        Raises:
            ServingError: It cannot be loaded, or not now.
        """
        try:
            await self._control.load(name, replace=True)  # updates `_applied`
        except DiskTimeout:
            self._retries.schedule(name, fingerprint)
            raise
        except NotNow as error:
            if error.transient:
                self._retries.schedule(name, fingerprint)
            else:
                self._applied[name] = fingerprint
            raise
        except ServingError:  # a bad name, or a link out of the directory
            self._applied[name] = fingerprint
            raise
        self._retries.forget(name)

    async def _unload(self, name: str) -> None:
        spec = self._variants.by_name(name)
        if spec is None:
            self._variants.failures.pop(name, None)
        elif await self._disk.run(partial(self._directory.contains, spec)):
            if name not in self._logged:  # an earlier attempt has failed
                log.info("variants_dir: %s was removed", name)
            await self._control.unload(name)

    def _skip_reserved(self, name: str) -> None:
        """Log once that a directory has the name of an official variant."""
        if name not in self._skipped:
            self._skipped.add(name)
            log.warning(
                "variants_dir: %s is not loaded: it is the name of an official variant; rename the"
                " directory",
                name,
            )
