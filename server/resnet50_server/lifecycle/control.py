"""Administration of variants: load, replace and unload while the others serve."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, TypeVar

from resnet50_server.errors import DiskTimeout, NotNow, WeightsError
from resnet50_server.runtime.memory import return_memory
from resnet50_server.runtime.tracebacks import clear_tracebacks
from resnet50_server.variants.directory import Fingerprint
from resnet50_server.variants.spec import VariantSpec, strip_enum_prefix

from .load_errors import client_error, error_text, log_failure
from .loaded_variant import LoadedVariant, LoadProgress
from .loader import unload_variant
from .memory_budget import MemoryBudget
from .registry import VariantRegistry
from .spec_source import SpecSource

log = logging.getLogger(__name__)

Result = TypeVar("Result")
LoadVariant: TypeAlias = Callable[
    [VariantSpec, LoadProgress, Callable[[int], Awaitable[None]]], Awaitable[LoadedVariant]
]

# Time limit for the requests of a replaced variant. It gets no new ones, and deadlines usually end
# the old ones earlier.
REPLACED_DRAIN_S = 600.0


@dataclass(frozen=True)
class Loaded:
    """The result of a load.

    Attributes:
        variant: The variant that serves now.
        replaced: The variant that it replaced; None if there was none.
        evicted: Names of the variants that were unloaded to free memory for it.
    """

    variant: LoadedVariant
    replaced: LoadedVariant | None
    evicted: list[str]


class VariantControl:
    """Loads and unloads variants, one change at a time. Event loop only.

    Args:
        variants: The registry.
        load_variant: Loads one; see `loader.load_variant`.
        budget: Their memory limit.
        drain_timeout_s: How long the requests of an unloaded variant may take, in seconds.
        source: Where new variants are loaded from; None disables changes while serving.
        splits_using: Returns the variants whose traffic splits use the given one, which is then
            not unloaded.

    Attributes:
        applied: Fingerprints of the directories that are loaded as they are now, by name.
    """

    def __init__(
        self,
        variants: VariantRegistry,
        load_variant: LoadVariant,
        budget: MemoryBudget,
        drain_timeout_s: float,
        source: SpecSource | None = None,
        splits_using: Callable[[str], list[str]] = lambda _: [],
    ) -> None:
        self.source = source
        self.applied: dict[str, Fingerprint] = {}
        self._splits_using = splits_using
        self._variants = variants
        self._load_variant = load_variant
        self._budget = budget
        self._drain_timeout_s = drain_timeout_s
        self._change: asyncio.Task[Any] | None = None
        self._unloads: set[asyncio.Task[None]] = set()

    async def load_initial(self) -> None:
        """Load the variants of the settings, one after the other.

        Raises:
            WeightsError: One cannot be served.
        """
        # A client's LoadVariant may have begun before.
        await self.wait_idle()
        await self._begin(self._load_initial())

    async def load(self, name: str, *, replace: bool = False) -> Loaded:
        """Load a variant; it replaces the one of its name, if any.

        Args:
            name: Of a directory in `variants_dir`, an official variant, or one of the settings.
            replace: Whether it may replace the variant of its name.

        Raises:
            InvalidRequest: The name is malformed.
            VariantNotFound: There is no such variant.
            NotNow: It cannot be loaded; says why, and which variants were evicted for it.
            DiskTimeout: Its directory cannot be read.
        """
        return await self._exclusive(self._load(name, replace))

    async def unload(self, name: str) -> LoadedVariant:
        """Unload a variant; returns once its memory is free.

        Raises:
            VariantNotFound: There is none.
            NotNow: It is in use as default or by a split, or its memory cannot be freed.
        """
        return await self._exclusive(self._unload(name))

    async def apply(
        self,
        specs: Sequence[VariantSpec],
        keep: Collection[str],
        switch: Callable[[Callable[[], None]], None],
    ) -> None:
        """Load several variants, serve all of them at once, and unload others; or change nothing.

        Returns once the memory of the unloaded ones is free.

        Args:
            specs: To load; they replace those of their names.
            keep: Names of all variants that are to be loaded afterwards. With `evict_variants`,
                others may be evicted for them.
            switch: Called once all are loaded, with a function that lets them serve; makes others
                the default and changes the traffic splits, so that no variant that is not kept is
                in use. If it raises before it calls that function, nothing has changed.

        Raises:
            NotNow: A variant cannot be loaded; says why, and which ones were evicted for it.
            Exception: The error of `switch`.
        """
        await self._exclusive(self._apply(specs, keep, switch))

    def set_default(self, name: str) -> tuple[LoadedVariant, str]:
        """Make a variant the default; return it and the name of the previous default.

        Raises:
            VariantNotFound: There is none.
            NotNow: It is not loaded yet, or out of service.
        """
        variant = self._require_loaded(self._variants.resolve(name, field="name"))
        if (problem := variant.queue.health.problem) is not None:
            raise NotNow(f"name: {variant.spec.name} is out of service: {problem}")
        previous = self._variants.default.name
        self._variants.set_default(variant)
        log.info("variant %s is the default now; it was %s", variant.spec.name, previous)
        return variant, previous

    async def wait_idle(self) -> None:
        """Wait until no change is in progress."""
        while self._change is not None and not self._change.done():
            await asyncio.wait([self._change])

    def close(self) -> None:
        """Cancel what is in progress, without waiting for its threads."""
        for task in (self._change, *self._unloads):
            if task is not None:
                task.cancel()

    async def _exclusive(self, change: Coroutine[None, None, Result]) -> Result:
        """Run a change unless another one runs; it completes even if its client cancels."""
        if self._change is not None and not self._change.done():
            change.close()
            raise NotNow("another variant is being loaded or unloaded; retry when that is done")
        return await asyncio.shield(self._begin(change))

    def _begin(self, change: Coroutine[None, None, Result]) -> asyncio.Task[Result]:
        self._change = task = asyncio.create_task(change, name="change variants")
        # A failed task refers to its frames, and those to weights.
        task.add_done_callback(self._end)
        return task

    def _end(self, task: asyncio.Task[Any]) -> None:
        if self._change is task:
            self._change = None

    async def _load_initial(self) -> None:
        for spec in self._variants.specs:
            progress = self._variants.load_progress(spec)
            if progress is None:
                continue  # loaded already, by LoadVariant
            try:
                await self._activate(spec, progress)
            except NotNow as error:
                raise WeightsError(str(error)) from error

    async def _load(self, name: str, replace: bool) -> Loaded:
        assert self.source is not None  # changes are enabled
        argument = await self.source.argument(name)
        name = strip_enum_prefix(name)
        try:
            spec, fingerprint = await self.source.read(name, argument)
        except Exception as error:
            text = error_text(error)
            log_failure(name, text, error)
            self._variants.record_failure(name, text)
            if isinstance(error, DiskTimeout):
                raise
            raise client_error(name, text, error) from error
        # An error from here is not recorded as a failed load: nothing was tried.
        progress = self._variants.begin_load(spec, replace=replace)
        evicted: list[str] = []
        try:
            loaded = await self._activate(spec, progress, evicted)
        except Exception as error:
            text = error_text(error)
            if evicted:
                text += f"; evicted for it, and not loaded again: {', '.join(evicted)}"
            self._variants.rollback(spec.name, text)
            log_failure(spec.name, text, error)
            clear_tracebacks(error)  # its frames refer to weights
            raise client_error(spec.name, text, error) from error
        except BaseException:
            self._variants.rollback(spec.name, "the load was cancelled")
            raise
        if fingerprint is not None:
            self.applied[spec.name] = fingerprint
        return loaded

    async def _apply(
        self,
        specs: Sequence[VariantSpec],
        keep: Collection[str],
        switch: Callable[[Callable[[], None]], None],
    ) -> None:
        staged: list[LoadedVariant] = []
        begun: list[str] = []
        evicted: list[str] = []
        try:
            for spec in specs:
                progress = self._variants.begin_load(spec, replace=True)
                begun.append(spec.name)
                reserve = partial(self._reserve, spec, progress, evicted, keep=keep)
                staged.append(await self._load_variant(spec, progress, reserve))
                self._variants.stage(staged[-1])
            switch(partial(self._serve, staged))
        except Exception as error:
            text = error_text(error)
            if evicted:
                text += f"; evicted for it, and not loaded again: {', '.join(evicted)}"
            name = begun[-1] if begun else ""
            self._roll_back(begun, text)
            clear_tracebacks(error)  # its frames refer to weights
            raise client_error(name, text, error) from error
        except BaseException:
            for name in begun:
                self._variants.rollback(name, "the load was cancelled")
            raise
        others = [spec for spec in self._variants.specs if spec.name not in keep]
        unloads = []
        for spec in others:
            if (variant := self._variants.loaded_variant(spec)) is not None:
                self._variants.unpublish(variant)
                unloads.append(self._start_unload(variant, self._drain_timeout_s))
        await asyncio.gather(*unloads)

    def _serve(self, staged: Sequence[LoadedVariant]) -> None:
        for variant in staged:
            if (replaced := self._variants.commit(variant)) is not None:
                self._start_unload(replaced, REPLACED_DRAIN_S)

    def _roll_back(self, begun: Sequence[str], text: str) -> None:
        """End loads of which one has failed, and free those that are loaded already."""
        for name in begun:
            failed = name == begun[-1]
            reason = text if failed else f"{begun[-1]} could not be loaded together with it"
            if (staged := self._variants.rollback(name, reason)) is not None:
                self._start_unload(staged, self._drain_timeout_s)

    async def _activate(
        self, spec: VariantSpec, progress: LoadProgress, evicted: list[str] | None = None
    ) -> Loaded:
        """Load a variant and start to serve it. Evictions are not undone on errors.

        `evicted` receives the names of evicted variants; None forbids evictions.
        """
        reserve = partial(self._reserve, spec, progress, evicted)
        variant = await self._load_variant(spec, progress, reserve)
        replaced = self._variants.commit(variant)
        if replaced is not None:
            self._start_unload(replaced, REPLACED_DRAIN_S)
        return Loaded(variant, replaced, evicted or [])

    async def _reserve(
        self,
        spec: VariantSpec,
        progress: LoadProgress,
        evicted: list[str] | None,
        needed_bytes: int,
        *,
        keep: Collection[str] = (),
    ) -> None:
        """Wait until there is memory for a variant, evicting others if that is allowed.

        Raises:
            NotNow: There is too little. Nothing was evicted, unless its memory cannot be freed.
        """
        choose = partial(
            self._budget.evictions, spec, needed_bytes, startup=evicted is None, keep=keep
        )
        # Rejected at once if even evictions and draining variants would not free enough.
        choose()
        while self._unloads and not self._budget.fits(needed_bytes):
            progress.stage = "evicting"
            await asyncio.wait(self._unloads, return_when=asyncio.FIRST_COMPLETED)
        chosen = choose()
        if evicted is None or not chosen:
            return
        progress.stage = "evicting"
        for variant in chosen:
            log.info("variant %s is evicted for %s", variant.spec.name, spec.name)
            self._variants.unpublish(variant)
            evicted.append(variant.spec.name)
        await asyncio.gather(*(self._start_unload(one, self._drain_timeout_s) for one in chosen))
        if not self._budget.fits(needed_bytes):
            raise self._budget.exceeded(spec, needed_bytes)

    async def _unload(self, name: str) -> LoadedVariant:
        # Without an await before `unpublish`: the default and the splits could change meanwhile.
        spec = self._variants.resolve(name, field="name")
        if spec is self._variants.default:
            raise NotNow(
                f"name: {spec.name} is the default, for requests that name no variant; make another"
                " one the default first (SetDefaultVariant)"
            )
        if splits := self._splits_using(spec.name):
            raise NotNow(
                f"name: {spec.name} is used by the traffic split of {', '.join(splits)}; end that"
                " first (DeleteTrafficSplit)"
            )
        variant = self._require_loaded(spec)
        self._variants.unpublish(variant)
        await self._start_unload(variant, self._drain_timeout_s)
        if variant.leaked:
            raise NotNow(
                f"name: {spec.name} is unloaded and no longer served, but its memory stays in use:"
                " its engine has not returned from a batch, or could not be closed (see the"
                " server's log); restart the server to free it"
            )
        return variant

    def _require_loaded(self, spec: VariantSpec) -> LoadedVariant:
        loaded = self._variants.loaded_variant(spec)
        if loaded is None:
            raise NotNow(f"name: {spec.name} is not loaded yet")
        return loaded

    def _start_unload(self, variant: LoadedVariant, timeout_s: float) -> asyncio.Task[None]:
        """Free a retired variant in a task of its own."""
        name = f"unload {variant.spec.name}"
        task = asyncio.create_task(self._free(variant, timeout_s), name=name)
        self._unloads.add(task)
        task.add_done_callback(self._unloads.discard)
        return task

    async def _free(self, variant: LoadedVariant, timeout_s: float) -> None:
        freed = False
        try:
            freed = await unload_variant(variant, timeout_s)
        except Exception:
            # The task of a replaced variant is not awaited.
            log.exception("variant %s could not be freed", variant.spec.name)
        if freed:
            self._variants.remove(variant)
        else:
            variant.leaked = True
        await asyncio.to_thread(return_memory)
