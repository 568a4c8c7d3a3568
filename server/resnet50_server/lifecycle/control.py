"""Administration of variants: load, replace and unload while the others serve."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, TypeVar

from resnet50_server.errors import (
    DiskTimeout,
    NotNow,
    ServingError,
    VariantNotFound,
    WeightsError,
    clear_tracebacks,
)
from resnet50_server.runtime.memory import return_memory
from resnet50_server.runtime.texts import shortened
from resnet50_server.variants.directory import Stamp, VariantsDirectory
from resnet50_server.variants.disk import FEW_FILES_S, Disk
from resnet50_server.variants.spec import (
    VariantSpec,
    official_specs,
    parse_variant,
    strip_enum_prefix,
)

from .loader import EXPECTED_ERRORS, unload_variant
from .registry import LoadedVariant, LoadProgress, VariantRegistry

log = logging.getLogger(__name__)

Result = TypeVar("Result")
LoadVariant: TypeAlias = Callable[
    [VariantSpec, LoadProgress, Callable[[int], Awaitable[None]]], Awaitable[LoadedVariant]
]

# What a replaced variant has taken it may answer for so long: nobody is told to call again, and no
# new work comes. Callers' deadlines end it earlier, as a rule.
REPLACED_S = 600.0


@dataclass(frozen=True)
class Budget:
    """How much memory variants may take.

    Attributes:
        max_bytes: Of all together, those that are about to go included; 0: any.
        evict: Whether the least recently used ones give way to a new one.
    """

    max_bytes: int = 0
    evict: bool = False


@dataclass(frozen=True)
class Loaded:
    """What has come of loading a variant.

    Attributes:
        variant: That answers now.
        replaced: That it has taken the place of.
        evicted: Names of those that were unloaded for it.
    """

    variant: LoadedVariant
    replaced: LoadedVariant | None
    evicted: list[str]


class VariantControl:
    """VariantControl the variants that a server holds, one change at a time; event loop only.

    Args:
        variants: Those that it holds.
        load_variant: Loads one, ready to answer; see `loading.load_variant`.
        budget: How much memory they may take.
        patience_s: How long the requests of a variant that is unloaded may take, in seconds.
        directory: Where new ones come from; None if nothing is changed while serving.
        naming: Returns the variants whose traffic splits name one: none of those goes.

    Attributes:
        directory: The same.
        stamps: What its folders were like that have been done by, by name: noted here just before
            one is read that answers then, and by `folder_watch`.
    """

    def __init__(
        self,
        variants: VariantRegistry,
        load_variant: LoadVariant,
        budget: Budget,
        patience_s: float,
        directory: VariantsDirectory | None = None,
        naming: Callable[[str], list[str]] = lambda _: [],
    ) -> None:
        self.directory = directory
        self._disk = Disk(str(directory), FEW_FILES_S)
        self.stamps: dict[str, Stamp] = {}
        # What the server was started with may come back after it was unloaded.
        self._given = {one.name: one.argument for one in variants.specs}
        self._naming = naming
        self._variants = variants
        self._load_variant = load_variant
        self._budget = budget
        self._patience_s = patience_s
        self._changing: asyncio.Task[Any] | None = None
        self._leaving: set[asyncio.Task[None]] = set()

    async def begin(self) -> None:
        """Load what the server was started with, one after the other.

        Raises:
            WeightsError: One cannot be served.
        """
        # Callers who need not wait for that may have begun with a change.
        await self.settle()
        await self._start(self._begin())

    async def _begin(self) -> None:
        for spec in self._variants.specs:
            loading = self._variants.load_progress(spec)
            if loading is None:
                continue  # by such a caller
            try:
                await self._put(spec, loading, None)
            except NotNow as error:
                raise WeightsError(str(error)) from error

    async def load(self, name: str, *, replace: bool = False) -> Loaded:
        """Load a variant, in the place of the one of its name if there is one.

        Args:
            name: A folder's, or one of torchvision's, or of a variant that was given at the start.
            replace: Whether one that answers gives way.

        Raises:
            InvalidRequest: It is not a name.
            VariantNotFound: There is nothing of that name.
            NotNow: It cannot be loaded; says why, and what was unloaded for it and is not back.
            DiskTimeout: Its folder cannot be read.
        """
        return await self._change(self._load(name, replace))

    async def unload(self, name: str) -> LoadedVariant:
        """Unload a variant; returns once it is freed.

        Raises:
            VariantNotFound: There is none.
            NotNow: It cannot be done without, or it answers no more but its memory is not freed.
        """
        return await self._change(self._unload(name))

    def set_default(self, name: str) -> tuple[LoadedVariant, str]:
        """Let a variant answer requests that name none; return it, and the name of the last one.

        Raises:
            VariantNotFound: There is none.
            NotNow: It is not loaded yet, or out of service.
        """
        variant = self._answering(self._variants.resolve(name, field="name"))
        if (problem := variant.queue.health.problem) is not None:
            raise NotNow(f"name: {variant.spec.name} is out of service: {problem}")
        previous = self._variants.default.name
        self._variants.set_default(variant)
        log.info("variant %s is the default now; it was %s", variant.spec.name, previous)
        return variant, previous

    async def settle(self) -> None:
        """Wait until no change goes on."""
        while self._changing is not None and not self._changing.done():
            await asyncio.wait([self._changing])

    def close(self) -> None:
        """Give up what goes on; what its thread does is not waited for."""
        for task in (self._changing, *self._leaving):
            if task is not None:
                task.cancel()

    def _answering(self, spec: VariantSpec) -> LoadedVariant:
        held = self._variants.loaded_variant(spec)
        if held is None:
            raise NotNow(f"name: {spec.name} is not loaded yet")
        return held

    async def _source(self, name: str) -> str:
        """Return what `parse_variant` takes for a name: never a path that a caller has chosen."""
        assert self.directory is not None  # changes are enabled
        if self.directory.is_official(name):
            return strip_enum_prefix(name)
        try:
            return f"{name}={await self._disk.run(partial(self.directory.find, name))}"
        except VariantNotFound as error:
            if name in self._given:
                return self._given[name]
            there = {*error.served, *self._given, *official_specs()}
            raise VariantNotFound("name", name, sorted(there), "can be loaded") from None

    async def _change(self, change: Coroutine[None, None, Result]) -> Result:
        """Make one change at a time. One that was begun is finished, though its caller gives up."""
        if self._changing is not None and not self._changing.done():
            change.close()
            raise NotNow("another variant is being loaded or unloaded; ask again when that is done")
        return await asyncio.shield(self._start(change))

    def _start(self, change: Coroutine[None, None, Result]) -> asyncio.Task[Result]:
        self._changing = task = asyncio.create_task(change, name="change variants")
        # An error holds the frames that it went through, and weights in them.
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        if self._changing is task:
            self._changing = None

    async def _load(self, name: str, replace: bool) -> Loaded:
        argument = await self._source(name)
        name = strip_enum_prefix(name)
        try:
            spec, stamp = await self._disk.run(partial(self._read, name, argument))
        except DiskTimeout as error:
            _warn(name, str(error), error)
            self._variants.record_failure(name, str(error))
            raise
        except Exception as error:
            text = _text(error)
            _warn(name, text, error)
            self._variants.record_failure(name, text)
            raise _refusal(name, text, error) from error
        # Of a plain refusal nothing is remembered: nothing was tried.
        loading = self._variants.begin_load(spec, replace=replace)
        gone: list[VariantSpec] = []
        try:
            loaded = await self._put(spec, loading, gone if self._budget.evict else None)
        except Exception as error:
            text = _text(error)
            self._variants.rollback(spec.name, text)
            _warn(spec.name, text, error)
            # Its frames reference weights, whose memory is needed.
            clear_tracebacks(error)
            if gone:
                text += f"; {await self._restore(gone)}"
                self._variants.record_failure(spec.name, text)
            raise _refusal(spec.name, text, error) from error
        except BaseException:
            self._variants.rollback(spec.name, "the load was given up")
            raise
        if stamp is not None:
            self.stamps[spec.name] = stamp
        return loaded

    def _read(self, name: str, argument: str) -> tuple[VariantSpec, Stamp | None]:
        """Return what is to be loaded, and what its folder was like before; blocks."""
        assert self.directory is not None  # changes are enabled
        stamp = self.directory.stamp(name)
        return parse_variant(argument), stamp

    async def _restore(self, gone: list[VariantSpec]) -> str:
        """Load again what gave way in vain; return what became of it, in words."""
        back, lost = [], []
        for spec in gone:
            loading = self._variants.begin_load(spec)
            try:
                await self._put(spec, loading, None)
            except Exception as error:
                text = _text(error)
                log.error("variant %s, which gave way, is not back: %s", spec.name, text)
                self._variants.rollback(spec.name, text)
                clear_tracebacks(error)
                lost.append(spec.name)
            else:
                back.append(spec.name)
        told = [f"{', '.join(back)} gave way to it and answers again"] if back else []
        if lost:
            told.append(f"{', '.join(lost)} gave way to it and cannot be loaded again")
        return ", ".join(told)

    async def _put(
        self, spec: VariantSpec, loading: LoadProgress, gone: list[VariantSpec] | None
    ) -> Loaded:
        """Load a variant and let it answer.

        Args:
            spec: Which one.
            loading: Is told how far it is.
            gone: Gets those that gave way to it; None if none does.

        Raises:
            NotNow: There is no room for it.
            Exception: It cannot be loaded. What gave way is gone all the same.
        """

        async def make_room(needed_bytes: int) -> None:
            await self._make_room(spec, loading, needed_bytes, gone)

        variant = await self._load_variant(spec, loading, make_room)
        replaced = self._variants.commit(variant)
        if replaced is not None:
            self._go(replaced, REPLACED_S)
        return Loaded(variant, replaced, [one.name for one in gone or ()])

    async def _make_room(
        self,
        spec: VariantSpec,
        loading: LoadProgress,
        needed_bytes: int,
        gone: list[VariantSpec] | None,
    ) -> None:
        """Wait until there is memory for a variant.

        Args:
            spec: What is to be loaded.
            loading: Is told if that takes time.
            needed_bytes: What it takes.
            gone: Gets those that give way; None if none does.

        Raises:
            NotNow: There is not enough. Nothing was unloaded then, unless it does not come back.
        """
        limit = self._budget.max_bytes
        if not limit:
            return
        # What would not fit though all were gone that can go is not waited for.
        self._victims(spec, needed_bytes, gone is not None)
        # What goes anyway frees its memory soon.
        while self._leaving and self._taken() + needed_bytes > limit:
            loading.stage = "evicting"
            await asyncio.wait(self._leaving, return_when=asyncio.FIRST_COMPLETED)
        victims = self._victims(spec, needed_bytes, gone is not None)
        if not victims:
            return
        assert gone is not None  # there are victims
        loading.stage = "evicting"
        for victim in victims:
            log.info("variant %s gives way to %s", victim.spec.name, spec.name)
            self._variants.unpublish(victim)
            gone.append(victim.spec)
        await asyncio.gather(*(self._go(victim, self._patience_s) for victim in victims))
        if self._taken() + needed_bytes > limit:
            raise NotNow(self._too_much(spec, needed_bytes, evict=True))

    def _victims(self, spec: VariantSpec, needed_bytes: int, evict: bool) -> list[LoadedVariant]:
        """Return what has to give way to a variant beside those that leave anyway.

        Raises:
            NotNow: That would not be enough.
        """
        soon = sum(one.built.memory_bytes for one in self._variants.draining if not one.leaked)
        missing = self._taken() - soon + needed_bytes - self._budget.max_bytes
        victims: list[LoadedVariant] = []
        if evict:
            for one in sorted(self._spare(spec), key=lambda one: one.last_used):
                if missing <= 0:
                    break
                victims.append(one)
                missing -= one.built.memory_bytes
        if missing > 0:
            raise NotNow(self._too_much(spec, needed_bytes, evict))
        return victims

    def _spare(self, spec: VariantSpec) -> list[LoadedVariant]:
        """Return those that could give way: not the default, nor what is replaced or compared."""
        needed = (self._variants.default.name, spec.name)
        return [
            one
            for one in self._variants.loaded
            if not one.retired and one.spec.name not in needed and not self._naming(one.spec.name)
        ]

    def _taken(self) -> int:
        return sum(one.built.memory_bytes for one in self._variants.loaded)

    def _too_much(self, spec: VariantSpec, needed_bytes: int, evict: bool) -> str:
        held = ", ".join(
            f"{one.spec.name} {one.built.memory_bytes // 2**20}" for one in self._variants.loaded
        )
        what = "unload what can be done without, or allow more"
        if not evict:
            what += ", or let the least recently used give way (--evict-variants)"
        return (
            f"max_variants_bytes: {spec.name} takes about {needed_bytes // 2**20} MiB beside"
            f" those that are held ({held or 'none'}), and {self._budget.max_bytes // 2**20} MiB"
            f" are allowed; {what}"
        )

    async def _unload(self, name: str) -> LoadedVariant:
        # Within one turn of the loop: the default and the splits may be others at the next one.
        spec = self._variants.resolve(name, field="name")
        if spec is self._variants.default:
            raise NotNow(
                f"name: {spec.name} answers requests that name no variant; let another one"
                " do that first (SetDefaultVariant)"
            )
        if splits := self._naming(spec.name):
            raise NotNow(
                f"name: {spec.name} is named by the traffic split of {', '.join(splits)}; end"
                " that first (DeleteTrafficSplit)"
            )
        variant = self._answering(spec)
        self._variants.unpublish(variant)
        await self._go(variant, self._patience_s)
        if variant.leaked:
            raise NotNow(
                f"name: {spec.name} is unloaded and answers no more, but its memory stays"
                " taken: its engine has not returned from a batch, or could not be closed (the"
                " server's log says which); restart the server to have it back"
            )
        return variant

    def _go(self, variant: LoadedVariant, patience_s: float) -> asyncio.Task[None]:
        """Free a variant that no new request finds; goes on by itself."""
        name = f"unload {variant.spec.name}"
        task = asyncio.create_task(self._free(variant, patience_s), name=name)
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        return task

    async def _free(self, variant: LoadedVariant, patience_s: float) -> None:
        freed = False
        try:
            freed = await unload_variant(variant, patience_s)
        except Exception:
            # Nobody waits for a variant that was replaced.
            log.exception("variant %s could not be freed", variant.spec.name)
        if freed:
            self._variants.remove(variant)
        else:
            variant.leaked = True
        await asyncio.to_thread(return_memory)


def _text(error: Exception) -> str:
    """Return why a variant was not loaded."""
    ours = isinstance(error, (ServingError, WeightsError))
    return shortened(str(error) if ours else repr(error))


def _warn(name: str, text: str, error: Exception) -> None:
    unforeseen = None if isinstance(error, EXPECTED_ERRORS) else error
    log.warning("variant %s was not loaded: %s", name, text, exc_info=unforeseen)


def _refusal(name: str, text: str, error: Exception) -> NotNow:
    """Return what the caller who asked for a variant is told."""
    if isinstance(error, NotNow):
        return NotNow(text, passing=error.passing)
    # Of files that are wrong. Other errors are of memory, of a disk, of a device.
    passing = not isinstance(error, WeightsError) or _is_of_a_disk(error.__cause__)
    return NotNow(f"name: {name} cannot be loaded: {text}", passing=passing)


def _is_of_a_disk(error: BaseException | None) -> bool:
    """Return whether a file could not be read though it is there, and may be read."""
    lasting = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
    return isinstance(error, OSError) and not isinstance(error, lasting) and bool(error.errno)
