"""The registry: which variants are loaded, loading or draining, and lookup by name or alias."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from resnet50_server.errors import NotNow, VariantLoading, VariantNotFound, WeightsError
from resnet50_server.runtime.texts import shortened
from resnet50_server.variants.spec import VariantSpec, strip_enum_prefix

from .loaded_variant import LoadedVariant, LoadProgress

# Names for which the reason of the last failed load is kept; the most recent ones.
MAX_FAILURES = 64


@dataclass
class _Entry:
    """The state of one name.

    Attributes:
        spec: Of the loaded variant; while there is none, of the one that is loading.
        loaded: Serves requests; None before the first load.
        progress: Of a load in progress; None if there is none.
        staged: Is loaded, and does not serve yet; None if there is none.
    """

    spec: VariantSpec
    loaded: LoadedVariant | None = None
    progress: LoadProgress | None = None
    staged: LoadedVariant | None = None


class VariantRegistry:
    """All variants of a server by name. Event loop only.

    Args:
        specs: The variants of the settings, in their order.
        default: Name or alias of the default variant; None for the first.

    Attributes:
        draining: Variants that lookup no longer returns and whose memory is not free yet.
        failures: By name, why the last load failed; names whose last load succeeded are absent.

    Raises:
        WeightsError: Two have the same name, or the default is not one of them.
    """

    def __init__(self, specs: list[VariantSpec], default: str | None) -> None:
        self.draining: list[LoadedVariant] = []
        self.failures: dict[str, str] = {}
        self._loaded_listeners: list[Callable[[str], object]] = []
        self._retired_listeners: list[Callable[[LoadedVariant], object]] = []
        self._removed_listeners: list[Callable[[str], object]] = []
        self._health_listeners: list[Callable[[LoadedVariant], object]] = []
        self._entries: dict[str, _Entry] = {}
        self._names: dict[str, str] = {}  # names and aliases to names
        for spec in specs:
            if taken := self._taken_name(spec):
                raise WeightsError(f"variants: {taken} is given twice")
            self._register(spec)
        self._default = specs[0].name
        if default is not None:
            if strip_enum_prefix(default) not in self._names:
                raise WeightsError(
                    f"default_variant: {default!r} is not one of --variants:"
                    f" {', '.join(sorted(self._names))}"
                )
            self._default = self._names[strip_enum_prefix(default)]

    @property
    def default(self) -> VariantSpec:
        """The variant for requests that name none."""
        return self._entries[self._default].spec

    @property
    def specs(self) -> list[VariantSpec]:
        """All variants that are loaded or loading, the default first."""
        others = [entry.spec for name, entry in self._entries.items() if name != self._default]
        return [self.default, *others]

    @property
    def loaded(self) -> list[LoadedVariant]:
        """All variants that use memory: those that serve, are staged or drain."""
        found = [one for entry in self._entries.values() for one in (entry.loaded, entry.staged)]
        return [*(one for one in found if one is not None), *self.draining]

    def on_loaded(self, listener: Callable[[str], object]) -> None:
        """Call a function with the name of each variant just before it starts to serve."""
        self._loaded_listeners.append(listener)

    def on_retired(self, listener: Callable[[LoadedVariant], object]) -> None:
        """Call a function with each variant when lookup stops returning it.

        The variant may still complete the requests that it has accepted.
        """
        self._retired_listeners.append(listener)

    def on_removed(self, listener: Callable[[str], object]) -> None:
        """Call a function with each name of which no variant is left in memory."""
        self._removed_listeners.append(listener)

    def on_health_change(self, listener: Callable[[LoadedVariant], object]) -> None:
        """Call a function with each variant that goes out of service or returns to it."""
        self._health_listeners.append(listener)

    def begin_load(self, spec: VariantSpec, *, replace: bool = False) -> LoadProgress:
        """Register a load; `commit` or `rollback` must follow.

        Args:
            spec: The variant to load.
            replace: Whether it may replace the variant of its name.

        Raises:
            NotNow: The name is taken, and may not be replaced.
        """
        entry = self._entries.get(spec.name)
        if entry is None:
            if taken := self._taken_name(spec):
                raise NotNow(f"name: {taken} is another name of {self._names[taken]}")
            entry = self._register(spec)
        elif entry.loaded is None:
            raise NotNow(f"name: {spec.name} is being loaded")
        elif not replace:
            raise NotNow(
                f"name: {spec.name} is served already; set replace to load it again in its place"
            )
        entry.progress = LoadProgress()
        return entry.progress

    def stage(self, variant: LoadedVariant) -> None:
        """Keep a loaded variant that does not serve yet; `commit` or `rollback` must follow."""
        self._entries[variant.spec.name].staged = variant

    def commit(self, variant: LoadedVariant) -> LoadedVariant | None:
        """Start to serve a variant: lookup returns it from now on.

        Returns:
            The variant that it replaces, which is now in `draining`; None if there is none.
        """
        name = variant.spec.name
        for listener in self._loaded_listeners:
            listener(name)
        entry = self._entries[name]
        replaced = entry.loaded
        entry.spec, entry.loaded, entry.progress = variant.spec, variant, None
        entry.staged = None
        variant.queue.health.on_change(partial(self._on_health, variant))
        self.failures.pop(name, None)
        if replaced is not None:
            replaced.replaced_by = variant
            self._retire(replaced)
        return replaced

    def rollback(self, name: str, reason: str) -> LoadedVariant | None:
        """End a load that failed; a variant already loaded under the name continues to serve.

        Returns:
            The staged variant, which is now in `draining`; None if there was none.
        """
        self.record_failure(name, reason)
        entry = self._entries[name]
        entry.progress = None
        staged, entry.staged = entry.staged, None
        if entry.loaded is None:
            self._unregister(name)
        if staged is not None:
            staged.retired = True
            self.draining.append(staged)
        return staged

    def record_failure(self, name: str, reason: str) -> None:
        """Record why the last load under a name failed."""
        self.failures.pop(name, None)
        self.failures[name] = shortened(reason)  # ListVariants returns them all
        while len(self.failures) > MAX_FAILURES:
            del self.failures[next(iter(self.failures))]

    def unpublish(self, variant: LoadedVariant) -> None:
        """Stop returning a variant from lookup, and add it to `draining`."""
        self.failures.pop(variant.spec.name, None)
        self._unregister(variant.spec.name)
        self._retire(variant)

    def remove(self, variant: LoadedVariant) -> None:
        """Remove a variant from `draining` once its memory is free."""
        self.draining.remove(variant)
        name = variant.spec.name
        if name not in self._entries and all(one.spec.name != name for one in self.draining):
            for listener in self._removed_listeners:
                listener(name)

    def loaded_variant(self, spec: VariantSpec) -> LoadedVariant | None:
        """Return the variant that serves under a spec's name; None if there is none."""
        entry = self._entries.get(spec.name)
        return None if entry is None else entry.loaded

    def load_progress(self, spec: VariantSpec) -> LoadProgress | None:
        """Return the progress of a load under a spec's name; None if there is none."""
        entry = self._entries.get(spec.name)
        return None if entry is None else entry.progress

    def by_name(self, name: str) -> VariantSpec | None:
        """Return the spec of exactly that name, loaded or loading; None if there is none."""
        entry = self._entries.get(name)
        return None if entry is None else entry.spec

    def resolve(self, name: str, field: str) -> VariantSpec:
        """Return the spec for a name or alias, loaded or loading; the default one for "".

        Args:
            name: The name in the request.
            field: Path of the field that contains it, for errors.

        Raises:
            VariantNotFound: There is none.
        """
        return self._entry(name, field).spec

    def find(self, name: str, field: str = "options.variant") -> LoadedVariant:
        """Return the loaded variant for a name or alias; arguments as for `resolve`.

        Raises:
            VariantNotFound: There is none.
            VariantLoading: It is not loaded yet.
        """
        entry = self._entry(name, field)
        if entry.loaded is None:
            raise VariantLoading(
                f"variant {entry.spec.name} is still being loaded; wait until ListVariants shows it"
                " as ready (at the start: until the server's health is SERVING), or call another"
                " server"
            )
        return entry.loaded

    def set_default(self, variant: LoadedVariant) -> None:
        """Make a variant the one for requests that name none."""
        self._default = variant.spec.name

    def _entry(self, name: str, field: str) -> _Entry:
        if not name:
            return self._entries[self._default]
        found = self._names.get(strip_enum_prefix(name))
        if found is None:
            raise VariantNotFound(field, name, sorted(self._names))
        return self._entries[found]

    def _taken_name(self, spec: VariantSpec) -> str | None:
        """Return a name or alias of a variant that is in use already; None if all are free."""
        names = (spec.name, *spec.aliases)
        return next((name for name in names if name in self._names), None)

    def _register(self, spec: VariantSpec) -> _Entry:
        for name in (spec.name, *spec.aliases):
            self._names[name] = spec.name
        entry = self._entries[spec.name] = _Entry(spec, progress=LoadProgress())
        return entry

    def _unregister(self, name: str) -> None:
        spec = self._entries.pop(name).spec
        for one in (name, *spec.aliases):
            del self._names[one]

    def _on_health(self, variant: LoadedVariant) -> None:
        if variant.queue.health.problem is not None:
            variant.stop_streams(variant.queue.unhealthy_error())
        for listener in self._health_listeners:
            listener(variant)

    def _retire(self, variant: LoadedVariant) -> None:
        variant.retired = True
        self.draining.append(variant)
        for listener in self._retired_listeners:
            listener(variant)
