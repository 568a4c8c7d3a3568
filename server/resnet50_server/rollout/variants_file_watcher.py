"""Watches the variants file, and changes the server's variants and splits to those it declares."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from resnet50_server.errors import NotNow, ServingError, UnusableSetting, WeightsError
from resnet50_server.lifecycle.control import VariantControl
from resnet50_server.lifecycle.load_retries import LoadRetries
from resnet50_server.lifecycle.registry import VariantRegistry
from resnet50_server.runtime.file_changes import FileChangeDetector
from resnet50_server.variants.disk import FEW_FILES_S, Disk
from resnet50_server.variants.spec import VariantSpec

from .router import TrafficRouter
from .variants_file import (
    DeclaredVariants,
    parse_variants_file,
    read_variants_file,
    revision_of,
)

log = logging.getLogger(__name__)

# Between two checks of the file, in seconds: one `stat` in a thread.
CHECK_INTERVAL_S = 1.0


@dataclass
class FileChanges:
    """Outcomes of changes of the file.

    Attributes:
        applied: Changes that were applied, without the first content.
        refused: Contents that were refused, each once.
        problem: Why the content of now is not applied; empty if it is.
    """

    applied: int = 0
    refused: int = 0
    problem: str = ""


class VariantsFileWatcher:
    """Keeps a server's variants as the file declares them; event loop only.

    A change is applied once two checks in a row have read the same content, as a whole or not at
    all. Changes by administrators remain until the next change of the file; they are logged.

    Args:
        path: The file.
        declared: The variants that the file declared when the server was built.
        variants: The registry.
        control: Loads and unloads variants.
        traffic: The traffic splits.
        interval_s: Between two checks, in seconds.
        timeout_s: Time limit for reading the file and the descriptions of variants, in seconds.

    Attributes:
        changes: Outcomes of changes of the file.
        differences: Differences between the server and the active revision.
    """

    def __init__(
        self,
        path: Path,
        declared: DeclaredVariants,
        variants: VariantRegistry,
        control: VariantControl,
        traffic: TrafficRouter,
        interval_s: float = CHECK_INTERVAL_S,
        timeout_s: float = FEW_FILES_S,
    ) -> None:
        self.changes = FileChanges()
        self.differences: list[str] = []
        self._path = path
        self._declared = declared
        self._variants = variants
        self._control = control
        self._traffic = traffic
        self._interval_s = interval_s
        self._disk = Disk(f"variants_file: {path}", timeout_s)
        self._detector = FileChangeDetector(path)
        self._content: bytes | None = None  # of the last check
        self._retries = LoadRetries(interval_s)
        self._refused: str | None = None  # revision of the last refused content; "" if unreadable
        self._wrong = False  # whether the file itself was the reason

    @property
    def revision(self) -> str:
        """The revision that is active: the SHA-256 of that content, 64 hex digits."""
        return self._declared.revision

    def set_splits(self) -> None:
        """Set the splits of the first content, once its variants are loaded.

        Raises:
            NotNow: A candidate is out of service.
        """
        for split in self._declared.splits:
            self._traffic.set(split)
        self._log_active("")

    async def run(self) -> None:
        """Check the file until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.check()
            except Exception as error:
                self._refuse("", error)

    async def check(self) -> None:
        """Check the file once, and apply its content if that has not changed since the last check.

        Raises:
            UnusableSetting: The file cannot be read.
            DiskTimeout: Its disk hangs.
        """
        try:
            content = await self._disk.run(self._read)
        except Exception:
            self._content = None  # to read it again, even if it looks the same
            raise
        settled, self._content = content == self._content, content
        revision = revision_of(content)
        if revision == self.revision:
            if self.changes.problem:
                log.info("variants_file: %s: is as the active revision again", self._path)
            self._refused, self.changes.problem = None, ""
        elif settled and self._is_due(revision):
            try:
                await self._apply(content)
            except Exception as error:
                self._refuse(revision, error)
        self._compare()

    def _read(self) -> bytes:
        """Return the content of the file, of the last check if it has not changed. Blocks."""
        if not self._detector.changed() and self._content is not None:
            return self._content
        return read_variants_file(self._path)

    def _refuse(self, revision: str, error: Exception) -> None:
        """Log and count an error once; schedule another attempt unless the file itself is wrong."""
        expected = isinstance(error, (ServingError, UnusableSetting, WeightsError))
        self.changes.refused += revision != self._refused
        self._refused = revision
        self._wrong = isinstance(error, UnusableSetting)
        if not self._wrong:
            self._retries.schedule(str(self._path), (revision,))
        problem = str(error) if expected else repr(error)
        problem = problem.removeprefix("variants_file: ").removeprefix(f"{self._path}: ")
        if problem != self.changes.problem:
            log.error(
                "variants_file: %s: %s; revision %s stays active%s",
                self._path,
                problem,
                self.revision[:12],
                "" if self._wrong else "; retrying",
                exc_info=None if expected else error,
            )
        self.changes.problem = problem

    def _is_due(self, revision: str) -> bool:
        """Return whether to apply a content now, for the first time or again."""
        if revision == self._refused and self._wrong:
            return False
        return self._retries.is_due(str(self._path), (revision,))

    async def _apply(self, content: bytes) -> None:
        """Change the server's variants and splits to those of a content.

        Raises:
            UnusableSetting: The content is wrong.
            WeightsError: A variant's directory is missing, or its description is wrong.
            ServingError: A variant cannot be loaded, or be the default or a candidate now.
        """
        declared = await self._disk.run(partial(parse_variants_file, self._path, content))
        await self._control.wait_idle()  # an administrator may be loading one
        changed = self._differences(declared)
        loads = [spec for spec in declared.specs if not self._serves(spec)]
        names = {spec.name for spec in declared.specs}

        def switch(serve: Callable[[], None]) -> None:
            self._switch(declared, {spec.name for spec in loads}, serve)
            if self._control.source is not None:
                self._control.source.declare(declared.specs)
            self._declared, self._refused = declared, None
            self._retries.forget(str(self._path))
            self.changes.applied += 1
            self.changes.problem = ""
            self._log_active("; ".join(changed))

        await self._control.apply(loads, names, switch)

    def _serves(self, spec: VariantSpec) -> bool:
        """Return whether the variant that a spec declares is loaded."""
        loaded = self._variants.loaded_variant(spec)
        return (
            loaded is not None
            and loaded.spec.argument == spec.argument
            and (loaded.spec.digest == spec.digest or loaded.built.digest.startswith(spec.digest))
        )

    def _switch(
        self, declared: DeclaredVariants, loads: set[str], serve: Callable[[], None]
    ) -> None:
        """Let loaded variants serve, and change the default and the splits, all at once.

        Raises:
            NotNow: The new default, or a new candidate, is out of service; nothing has changed.
        """
        assert declared.default is not None  # of a file
        kept = {
            active.split
            for active in self._traffic.splits
            if active.split in declared.splits
            and not loads & {active.split.variant, active.split.candidate}
        }
        new = [split for split in declared.splits if split not in kept]
        needed = {"default": declared.default}
        if declared.default == self._variants.default.name:
            needed = {}
        needed |= {f"split of {split.variant}": split.candidate for split in new}
        for use, name in needed.items():
            if name not in loads:
                self._require_health(use, name)
        for active in self._traffic.splits:
            if active.split not in kept:
                self._traffic.delete(active.split.variant)
        serve()
        if declared.default != self._variants.default.name:
            self._control.set_default(declared.default)
        for split in new:
            self._traffic.set(split)

    def _require_health(self, use: str, name: str) -> None:
        problem = self._variants.find(name).queue.health.problem
        if problem is not None:
            raise NotNow(f"{use}: {name} is out of service: {problem}")

    def _compare(self) -> None:
        """Log once how the server differs from the active revision, for instance by admin calls."""
        found = self._differences(self._declared)
        if found and found != self.differences:
            log.warning(
                "variants_file: the server differs from the active revision: %s; the next change of"
                " the file, or a restart, undoes that",
                "; ".join(found),
            )
        self.differences = found

    def _differences(self, declared: DeclaredVariants) -> list[str]:
        """Return how the server differs from what is declared, each difference in a few words."""
        variants = self._variants
        names = {spec.name for spec in declared.specs}
        found = []
        for spec in declared.specs:
            loaded = variants.loaded_variant(spec)
            if loaded is None:
                found.append(f"{spec.name} is not loaded")
            elif not self._serves(spec):
                found.append(f"{spec.name} has other weights: {loaded.spec.argument}")
        found += [
            f"{one.name} is loaded as well"
            for one in variants.specs
            if one.name not in names and variants.loaded_variant(one) is not None
        ]
        if variants.default.name != declared.default:
            found.append(f"the default is {variants.default.name}, not {declared.default}")
        active = {one.split: one for one in self._traffic.splits}
        for split in declared.splits:
            if split not in active:
                found.append(f"the split of {split.variant} is not set")
            elif active[split].ended:
                found.append(f"the split of {split.variant} has ended")
        found += [
            f"{split.variant} has another split" for split in active if split not in declared.splits
        ]
        return found

    def _log_active(self, changed: str) -> None:
        splits = ", ".join(f"{one.variant} → {one.candidate}" for one in self._declared.splits)
        log.info(
            "variants_file: %s: revision %s is active: variants %s; default %s; splits %s%s",
            self._path,
            self.revision[:12],
            ", ".join(spec.name for spec in self._declared.specs),
            self._declared.default,
            splits or "none",
            f"; before: {changed}" if changed else "",
        )
