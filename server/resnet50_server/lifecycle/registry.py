"""The variants that the server holds: loaded, ready to answer, found by name."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from resnet50_server.batching.queue import VariantQueue
from resnet50_server.batching.scheduler import Scheduler
from resnet50_server.context import RequestContext
from resnet50_server.errors import NotNow, VariantLoading, VariantNotFound, WeightsError
from resnet50_server.runtime.texts import shortened
from resnet50_server.runtime.worker_threads import Threads
from resnet50_server.variants.spec import Definition, plain

from .loader import OpenEngine
from .stages import Loading

if TYPE_CHECKING:
    from .self_test import Reference

# Loads that failed are remembered for so many names, the latest ones.
MAX_FAILURES = 64


@dataclass(eq=False)
class HeldVariant:
    """One variant that answers requests.

    Attributes:
        definition: What it is.
        opened: Its engine.
        queue: Where its images wait.
        scheduler: What feeds its device.
        threads: Where its engine runs.
        reference: What it answers to a fixed image, if that is known.
        calls: Those whose one image it computes.
        uploads: Those whose one image still arrives, for it or for its successor.
        streams: Those whose next frame it computes.
        frames: How many frames it computes.
        retired: Whether no new request finds it.
        stuck: Whether its engine did not return, or could not be closed, when it was let go: its
            memory stays taken.
        successor: What answers under its name instead; None while it does, or if nothing does.
        used: When a request or a frame came last, on the clock of `time.monotonic`.
    """

    definition: Definition
    opened: OpenEngine
    queue: VariantQueue
    scheduler: Scheduler
    threads: Threads
    reference: Reference | None = None
    calls: set[RequestContext] = field(default_factory=set)
    uploads: set[RequestContext] = field(default_factory=set)
    streams: set[RequestContext] = field(default_factory=set)
    frames: int = 0
    retired: bool = False
    stuck: bool = False
    successor: HeldVariant | None = None
    used: float = field(default_factory=time.monotonic)

    def enter(self, call: RequestContext) -> None:
        """Count a call with one image until it ends."""
        self._enter(call, self.calls)
        self.used = time.monotonic()

    def enter_upload(self, call: RequestContext) -> None:
        """Count a call whose image still arrives until it enters, here or elsewhere, or ends."""
        self._enter(call, self.uploads)
        self.used = time.monotonic()

    def enter_stream(self, call: RequestContext) -> None:
        """Count a stream until it ends or follows to a successor."""
        self._enter(call, self.streams)

    def enter_frame(self) -> None:
        """Count a frame until `leave_frame`."""
        self.frames += 1
        self.used = time.monotonic()

    def leave_frame(self) -> None:
        """Count a frame no longer."""
        self.frames -= 1

    def _enter(self, call: RequestContext, those: set[RequestContext]) -> None:
        if call.leave is not None:
            call.leave()
        call.variant = self.definition.name
        call.leave = partial(those.discard, call)
        those.add(call)

    def require_health(self) -> None:
        """Refuse a request while the variant is out of service.

        Raises:
            VariantUnhealthy: It is.
        """
        if self.queue.health.problem is not None:
            raise self.queue.unhealthy()

    def latest(self) -> HeldVariant:
        """Return what answers under its name now: itself, unless it has been replaced."""
        variant = self
        while variant.successor is not None:
            variant = variant.successor
        return variant

    @property
    def requests(self) -> int:
        """How many images it computes or has waiting."""
        return len(self.calls) + self.frames

    @property
    def needed(self) -> bool:
        """Whether it has images, or some arrive that nothing else will compute."""
        return bool(self.requests or (self.uploads and self.successor is None))

    @property
    def space(self) -> str:
        """The vector space of its embeddings; see `Embedding.space` in the contract."""
        # Vectors of int8 made here lie close to those of the weights, but not where they lie.
        made = "-int8" if self.opened.quantization else ""
        return f"{self.definition.name}@{self.opened.digest[:12]}{made}"


@dataclass
class _Entry:
    """What there is under one name.

    Attributes:
        definition: Of what answers, or else of what is being loaded.
        held: What answers.
        loading: What is being loaded, in its place if it answers.
    """

    definition: Definition
    held: HeldVariant | None = None
    loading: Loading | None = None


class HeldVariants:
    """All variants that a server was told to serve; those that are loaded answer.

    Args:
        definitions: In the order of the settings.
        default: Name or alias of the default; None for the first.

    Attributes:
        leaving: Those that no new request finds, until they are freed.
        failures: Why the last load under a name failed; without those that did not.

    Raises:
        WeightsError: Two have one name, or the default is not among them.
    """

    def __init__(self, definitions: list[Definition], default: str | None) -> None:
        self.leaving: list[HeldVariant] = []
        self.failures: dict[str, str] = {}
        self._watchers: list[Callable[[str], object]] = []
        self._mourners: list[Callable[[HeldVariant], object]] = []
        self._gone_watchers: list[Callable[[str], object]] = []
        self._health_watchers: list[Callable[[HeldVariant], object]] = []
        self._entries: dict[str, _Entry] = {}
        self._names: dict[str, str] = {}  # and aliases, to names
        for definition in definitions:
            if taken := self._taken(definition):
                raise WeightsError(f"variants: {taken} is given twice")
            self._enlist(definition)
        self._default = definitions[0].name
        if default is not None:
            if plain(default) not in self._names:
                raise WeightsError(
                    f"default_variant: {default!r} is not among --variants:"
                    f" {', '.join(sorted(self._names))}"
                )
            self._default = self._names[plain(default)]

    @property
    def default(self) -> Definition:
        """What answers requests that name no variant."""
        return self._entries[self._default].definition

    @property
    def definitions(self) -> list[Definition]:
        """All that answer or are being loaded, the default first."""
        others = [one.definition for name, one in self._entries.items() if name != self._default]
        return [self.default, *others]

    @property
    def held(self) -> list[HeldVariant]:
        """All that take memory: those that answer, and those that leave."""
        answering = [one.held for one in self._entries.values() if one.held is not None]
        return [*answering, *self.leaving]

    def watch(self, see: Callable[[str], object]) -> None:
        """Have a function called with the name of each variant that is loaded from now on.

        Args:
            see: Called before the variant answers.
        """
        self._watchers.append(see)

    def watch_retired(self, see: Callable[[HeldVariant], object]) -> None:
        """Have a function called with each variant that no new request finds from now on.

        Args:
            see: What the variant has taken, it may still answer afterwards.
        """
        self._mourners.append(see)

    def watch_gone(self, see: Callable[[str], object]) -> None:
        """Have a function called with each name of which nothing is held any more."""
        self._gone_watchers.append(see)

    def watch_health(self, see: Callable[[HeldVariant], object]) -> None:
        """Have a function called with each variant that goes out of service, or comes back."""
        self._health_watchers.append(see)

    def announce(self, definition: Definition, *, replace: bool = False) -> Loading:
        """Say that a variant is about to be loaded; `add` or `abandon` follows.

        Args:
            definition: Which one.
            replace: Whether what answers under its name is to give way.

        Raises:
            NotNow: There is one of that name which does not give way.
        """
        entry = self._entries.get(definition.name)
        if entry is None:
            if taken := self._taken(definition):
                raise NotNow(f"name: {taken} is another name of {self._names[taken]}")
            entry = self._enlist(definition)
        elif entry.held is None:
            raise NotNow(f"name: {definition.name} is being loaded")
        elif not replace:
            raise NotNow(
                f"name: {definition.name} is served already; ask with replace to load it again in"
                " its own place"
            )
        entry.loading = Loading()
        return entry.loading

    def add(self, variant: HeldVariant) -> HeldVariant | None:
        """Let a loaded variant answer: every request that is looked up from now on finds it.

        Returns:
            What it has taken the place of, and `leaving` holds; None if nothing.
        """
        name = variant.definition.name
        for see in self._watchers:
            see(name)
        entry = self._entries[name]
        replaced = entry.held
        entry.definition, entry.held, entry.loading = variant.definition, variant, None
        variant.queue.health.watch(partial(self._on_health, variant))
        self.failures.pop(name, None)
        if replaced is not None:
            replaced.successor = variant
            self._retire(replaced)
        return replaced

    def abandon(self, name: str, reason: str) -> None:
        """Forget what was about to be loaded; what answers under its name goes on."""
        self.fail(name, reason)
        entry = self._entries[name]
        entry.loading = None
        if entry.held is None:
            self._delist(name)

    def fail(self, name: str, reason: str) -> None:
        """Remember why something could not be loaded under a name."""
        self.failures.pop(name, None)
        self.failures[name] = shortened(reason)  # ListVariants shows them all
        while len(self.failures) > MAX_FAILURES:
            del self.failures[next(iter(self.failures))]

    def withdraw(self, variant: HeldVariant) -> None:
        """Let no new request find a variant, which `leaving` holds from now on."""
        self.failures.pop(variant.definition.name, None)
        self._delist(variant.definition.name)
        self._retire(variant)

    def free(self, variant: HeldVariant) -> None:
        """Forget a variant of `leaving`, whose memory is free."""
        self.leaving.remove(variant)
        name = variant.definition.name
        if name not in self._entries and all(one.definition.name != name for one in self.leaving):
            for see in self._gone_watchers:
                see(name)

    def loaded(self, definition: Definition) -> HeldVariant | None:
        """Return a variant if it answers."""
        entry = self._entries.get(definition.name)
        return None if entry is None else entry.held

    def loading(self, definition: Definition) -> Loading | None:
        """Return what is being loaded under a variant's name."""
        entry = self._entries.get(definition.name)
        return None if entry is None else entry.loading

    def by_name(self, name: str) -> Definition | None:
        """Return the definition of exactly that name, loaded or not."""
        entry = self._entries.get(name)
        return None if entry is None else entry.definition

    def define(self, name: str, field: str) -> Definition:
        """Return the definition of that name or alias, loaded or not; the default one for "".

        Args:
            name: What the request says.
            field: Where it says so.

        Raises:
            VariantNotFound: There is none.
        """
        if not name:
            return self.default
        found = self._names.get(plain(name))
        if found is None:
            raise VariantNotFound(field, name, sorted(self._names))
        return self._entries[found].definition

    def find(self, name: str, field: str = "options.variant") -> HeldVariant:
        """Return the variant of that name or alias, ready to answer; as `define` otherwise.

        Raises:
            VariantNotFound: There is none.
            VariantLoading: It is not loaded yet.
        """
        definition = self.define(name, field)
        held = self.loaded(definition)
        if held is None:
            raise VariantLoading(
                f"variant {definition.name} is still being loaded; wait until ListVariants shows it"
                " as ready (at the start: until the server's health is SERVING), or call another"
                " server"
            )
        return held

    def set_default(self, variant: HeldVariant) -> None:
        """Let a variant answer requests that name none."""
        self._default = variant.definition.name

    def _taken(self, definition: Definition) -> str | None:
        """Return a name of a variant that is another's already."""
        names = (definition.name, *definition.aliases)
        return next((name for name in names if name in self._names), None)

    def _enlist(self, definition: Definition) -> _Entry:
        for name in (definition.name, *definition.aliases):
            self._names[name] = definition.name
        entry = self._entries[definition.name] = _Entry(definition, loading=Loading())
        return entry

    def _delist(self, name: str) -> None:
        definition = self._entries.pop(name).definition
        for one in (name, *definition.aliases):
            del self._names[one]

    def _on_health(self, variant: HeldVariant) -> None:
        if variant.queue.health.problem is not None:
            for call in variant.streams:
                if call.stop is not None:
                    call.stop(variant.queue.unhealthy())
        for see in self._health_watchers:
            see(variant)

    def _retire(self, variant: HeldVariant) -> None:
        variant.retired = True
        self.leaving.append(variant)
        for see in self._mourners:
            see(variant)
