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
from resnet50_server.runtime.worker_threads import WorkerThreads
from resnet50_server.variants.spec import VariantSpec, plain

from .loader import BuiltEngine
from .stages import Loading

if TYPE_CHECKING:
    from .self_test import Reference

# Loads that failed are remembered for so many names, the latest ones.
MAX_FAILURES = 64


@dataclass(eq=False)
class LoadedVariant:
    """One variant that answers requests.

    Attributes:
        spec: What it is.
        built: Its engine.
        queue: Where its images wait.
        scheduler: What feeds its device.
        threads: Where its engine runs.
        reference: What it answers to a fixed image, if that is known.
        calls: Those whose one image it computes.
        uploads: Those whose one image still arrives, for it or for its replaced_by.
        streams: Those whose next frame it computes.
        frames: How many frames it computes.
        retired: Whether no new request finds it.
        leaked: Whether its engine did not return, or could not be closed, when it was let go: its
            memory stays taken.
        replaced_by: What answers under its name instead; None while it does, or if nothing does.
        last_used: When a request or a frame came last, on the clock of `time.monotonic`.
    """

    spec: VariantSpec
    built: BuiltEngine
    queue: VariantQueue
    scheduler: Scheduler
    threads: WorkerThreads
    reference: Reference | None = None
    calls: set[RequestContext] = field(default_factory=set)
    uploads: set[RequestContext] = field(default_factory=set)
    streams: set[RequestContext] = field(default_factory=set)
    frames: int = 0
    retired: bool = False
    leaked: bool = False
    replaced_by: LoadedVariant | None = None
    last_used: float = field(default_factory=time.monotonic)

    def enter(self, call: RequestContext) -> None:
        """Count a call with one image until it ends."""
        self._enter(call, self.calls)
        self.last_used = time.monotonic()

    def enter_upload(self, call: RequestContext) -> None:
        """Count a call whose image still arrives until it enters, here or elsewhere, or ends."""
        self._enter(call, self.uploads)
        self.last_used = time.monotonic()

    def enter_stream(self, call: RequestContext) -> None:
        """Count a stream until it ends or follows to a replaced_by."""
        self._enter(call, self.streams)

    def enter_frame(self) -> None:
        """Count a frame until `leave_frame`."""
        self.frames += 1
        self.last_used = time.monotonic()

    def leave_frame(self) -> None:
        """Count a frame no longer."""
        self.frames -= 1

    def _enter(self, call: RequestContext, those: set[RequestContext]) -> None:
        if call.leave is not None:
            call.leave()
        call.variant = self.spec.name
        call.leave = partial(those.discard, call)
        those.add(call)

    def require_health(self) -> None:
        """Refuse a request while the variant is out of service.

        Raises:
            VariantUnhealthy: It is.
        """
        if self.queue.health.problem is not None:
            raise self.queue.unhealthy()

    def latest(self) -> LoadedVariant:
        """Return what answers under its name now: itself, unless it has been replaced."""
        variant = self
        while variant.replaced_by is not None:
            variant = variant.replaced_by
        return variant

    @property
    def requests(self) -> int:
        """How many images it computes or has waiting."""
        return len(self.calls) + self.frames

    @property
    def busy(self) -> bool:
        """Whether it has images, or some arrive that nothing else will compute."""
        return bool(self.requests or (self.uploads and self.replaced_by is None))

    @property
    def space(self) -> str:
        """The vector space of its embeddings; see `Embedding.space` in the contract."""
        # Vectors of int8 made here lie close to those of the weights, but not where they lie.
        made = "-int8" if self.built.quantization else ""
        return f"{self.spec.name}@{self.built.digest[:12]}{made}"


@dataclass
class _Entry:
    """What there is under one name.

    Attributes:
        spec: Of what answers, or else of what is being loaded.
        held: What answers.
        loading: What is being loaded, in its place if it answers.
    """

    spec: VariantSpec
    held: LoadedVariant | None = None
    loading: Loading | None = None


class VariantRegistry:
    """All variants that a server was told to serve; those that are loaded answer.

    Args:
        specs: In the order of the settings.
        default: Name or alias of the default; None for the first.

    Attributes:
        draining: Those that no new request finds, until they are freed.
        failures: Why the last load under a name failed; without those that did not.

    Raises:
        WeightsError: Two have one name, or the default is not among them.
    """

    def __init__(self, specs: list[VariantSpec], default: str | None) -> None:
        self.draining: list[LoadedVariant] = []
        self.failures: dict[str, str] = {}
        self._loaded_listeners: list[Callable[[str], object]] = []
        self._retired_listeners: list[Callable[[LoadedVariant], object]] = []
        self._removed_listeners: list[Callable[[str], object]] = []
        self._health_listeners: list[Callable[[LoadedVariant], object]] = []
        self._entries: dict[str, _Entry] = {}
        self._names: dict[str, str] = {}  # and aliases, to names
        for spec in specs:
            if taken := self._taken_name(spec):
                raise WeightsError(f"variants: {taken} is given twice")
            self._register(spec)
        self._default = specs[0].name
        if default is not None:
            if plain(default) not in self._names:
                raise WeightsError(
                    f"default_variant: {default!r} is not among --variants:"
                    f" {', '.join(sorted(self._names))}"
                )
            self._default = self._names[plain(default)]

    @property
    def default(self) -> VariantSpec:
        """What answers requests that name no variant."""
        return self._entries[self._default].spec

    @property
    def specs(self) -> list[VariantSpec]:
        """All that answer or are being loaded, the default first."""
        others = [one.spec for name, one in self._entries.items() if name != self._default]
        return [self.default, *others]

    @property
    def loaded(self) -> list[LoadedVariant]:
        """All that take memory: those that answer, and those that leave."""
        answering = [one.held for one in self._entries.values() if one.held is not None]
        return [*answering, *self.draining]

    def on_loaded(self, see: Callable[[str], object]) -> None:
        """Have a function called with the name of each variant that is loaded from now on.

        Args:
            see: Called before the variant answers.
        """
        self._loaded_listeners.append(see)

    def on_retired(self, see: Callable[[LoadedVariant], object]) -> None:
        """Have a function called with each variant that no new request finds from now on.

        Args:
            see: What the variant has taken, it may still answer afterwards.
        """
        self._retired_listeners.append(see)

    def on_removed(self, see: Callable[[str], object]) -> None:
        """Have a function called with each name of which nothing is held any more."""
        self._removed_listeners.append(see)

    def on_health_change(self, see: Callable[[LoadedVariant], object]) -> None:
        """Have a function called with each variant that goes out of service, or comes back."""
        self._health_listeners.append(see)

    def begin_load(self, spec: VariantSpec, *, replace: bool = False) -> Loading:
        """Say that a variant is about to be loaded; `commit` or `rollback` follows.

        Args:
            spec: Which one.
            replace: Whether what answers under its name is to give way.

        Raises:
            NotNow: There is one of that name which does not give way.
        """
        entry = self._entries.get(spec.name)
        if entry is None:
            if taken := self._taken_name(spec):
                raise NotNow(f"name: {taken} is another name of {self._names[taken]}")
            entry = self._register(spec)
        elif entry.held is None:
            raise NotNow(f"name: {spec.name} is being loaded")
        elif not replace:
            raise NotNow(
                f"name: {spec.name} is served already; ask with replace to load it again in"
                " its own place"
            )
        entry.loading = Loading()
        return entry.loading

    def commit(self, variant: LoadedVariant) -> LoadedVariant | None:
        """Let a loaded variant answer: every request that is looked up from now on finds it.

        Returns:
            What it has taken the place of, and `draining` holds; None if nothing.
        """
        name = variant.spec.name
        for see in self._loaded_listeners:
            see(name)
        entry = self._entries[name]
        replaced = entry.held
        entry.spec, entry.held, entry.loading = variant.spec, variant, None
        variant.queue.health.watch(partial(self._on_health, variant))
        self.failures.pop(name, None)
        if replaced is not None:
            replaced.replaced_by = variant
            self._retire(replaced)
        return replaced

    def rollback(self, name: str, reason: str) -> None:
        """Forget what was about to be loaded; what answers under its name goes on."""
        self.record_failure(name, reason)
        entry = self._entries[name]
        entry.loading = None
        if entry.held is None:
            self._unregister(name)

    def record_failure(self, name: str, reason: str) -> None:
        """Remember why something could not be loaded under a name."""
        self.failures.pop(name, None)
        self.failures[name] = shortened(reason)  # ListVariants shows them all
        while len(self.failures) > MAX_FAILURES:
            del self.failures[next(iter(self.failures))]

    def unpublish(self, variant: LoadedVariant) -> None:
        """Let no new request find a variant, which `draining` holds from now on."""
        self.failures.pop(variant.spec.name, None)
        self._unregister(variant.spec.name)
        self._retire(variant)

    def remove(self, variant: LoadedVariant) -> None:
        """Forget a variant of `draining`, whose memory is free."""
        self.draining.remove(variant)
        name = variant.spec.name
        if name not in self._entries and all(one.spec.name != name for one in self.draining):
            for see in self._removed_listeners:
                see(name)

    def loaded_variant(self, spec: VariantSpec) -> LoadedVariant | None:
        """Return a variant if it answers."""
        entry = self._entries.get(spec.name)
        return None if entry is None else entry.held

    def load_progress(self, spec: VariantSpec) -> Loading | None:
        """Return what is being loaded under a variant's name."""
        entry = self._entries.get(spec.name)
        return None if entry is None else entry.loading

    def by_name(self, name: str) -> VariantSpec | None:
        """Return the spec of exactly that name, loaded or not."""
        entry = self._entries.get(name)
        return None if entry is None else entry.spec

    def resolve(self, name: str, field: str) -> VariantSpec:
        """Return the spec of that name or alias, loaded or not; the default one for "".

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
        return self._entries[found].spec

    def find(self, name: str, field: str = "options.variant") -> LoadedVariant:
        """Return the variant of that name or alias, ready to answer; as `resolve` otherwise.

        Raises:
            VariantNotFound: There is none.
            VariantLoading: It is not loaded yet.
        """
        spec = self.resolve(name, field)
        held = self.loaded_variant(spec)
        if held is None:
            raise VariantLoading(
                f"variant {spec.name} is still being loaded; wait until ListVariants shows it"
                " as ready (at the start: until the server's health is SERVING), or call another"
                " server"
            )
        return held

    def set_default(self, variant: LoadedVariant) -> None:
        """Let a variant answer requests that name none."""
        self._default = variant.spec.name

    def _taken_name(self, spec: VariantSpec) -> str | None:
        """Return a name of a variant that is another's already."""
        names = (spec.name, *spec.aliases)
        return next((name for name in names if name in self._names), None)

    def _register(self, spec: VariantSpec) -> _Entry:
        for name in (spec.name, *spec.aliases):
            self._names[name] = spec.name
        entry = self._entries[spec.name] = _Entry(spec, loading=Loading())
        return entry

    def _unregister(self, name: str) -> None:
        spec = self._entries.pop(name).spec
        for one in (name, *spec.aliases):
            del self._names[one]

    def _on_health(self, variant: LoadedVariant) -> None:
        if variant.queue.health.problem is not None:
            for call in variant.streams:
                if call.stop is not None:
                    call.stop(variant.queue.unhealthy())
        for see in self._health_listeners:
            see(variant)

    def _retire(self, variant: LoadedVariant) -> None:
        variant.retired = True
        self.draining.append(variant)
        for see in self._retired_listeners:
            see(variant)
