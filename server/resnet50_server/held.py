"""The variants that the server holds: loaded, ready to answer, found by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from .batcher import Scheduler
from .call import Call
from .errors import NotNow, VariantLoading, VariantNotFound, WeightsError
from .opening import OpenEngine
from .threads import Threads
from .variant_queue import VariantQueue
from .variants.definition import Definition, plain


@dataclass(frozen=True)
class HeldVariant:
    """One variant that answers requests.

    Attributes:
        definition: What it is.
        opened: Its engine.
        queue: Where its images wait.
        scheduler: What feeds its device.
        threads: Where its engine runs.
        calls: Those that use it.
    """

    definition: Definition
    opened: OpenEngine
    queue: VariantQueue
    scheduler: Scheduler
    threads: Threads
    calls: set[Call] = field(default_factory=set)

    def enter(self, call: Call) -> None:
        """Count a call until it ends."""
        call.variant = self.definition.name
        call.leave = partial(self.calls.discard, call)
        self.calls.add(call)

    @property
    def space(self) -> str:
        """The vector space of its embeddings; see `Embedding.space` in the contract."""
        # Vectors of int8 made here lie close to those of the weights, but not where they lie.
        made = "-int8" if self.opened.quantization else ""
        return f"{self.definition.name}@{self.opened.digest[:12]}{made}"


class HeldVariants:
    """All variants that a server was told to serve; those that are loaded answer.

    Args:
        definitions: In the order of the settings.
        default: Name or alias of the default; None for the first.

    Raises:
        WeightsError: Two have one name, or the default is not among them.
    """

    def __init__(self, definitions: list[Definition], default: str | None) -> None:
        self._held: dict[str, HeldVariant] = {}
        self._watchers: list[Callable[[str], object]] = []
        self._by_name: dict[str, Definition] = {}
        for definition in definitions:
            for name in (definition.name, *definition.aliases):
                if name in self._by_name:
                    raise WeightsError(f"variants: {name} is given twice")
                self._by_name[name] = definition
        self.default = definitions[0]
        if default is not None:
            if plain(default) not in self._by_name:
                raise WeightsError(
                    f"default_variant: {default!r} is not among --variants:"
                    f" {', '.join(sorted(self._by_name))}"
                )
            self.default = self._by_name[plain(default)]
        others = [definition for definition in definitions if definition is not self.default]
        self.definitions = [self.default, *others]

    def announce(self, definition: Definition) -> None:
        """Say that a variant is about to be loaded.

        Raises:
            NotNow: There is one of that name.
        """
        if definition.name in self._by_name:
            raise NotNow(f"name: {definition.name} is served already, or is being loaded")
        self._by_name[definition.name] = definition
        self.definitions.append(definition)

    def add(self, variant: HeldVariant) -> None:
        """Let a loaded variant answer."""
        for see in self._watchers:
            see(variant.definition.name)
        self._held[variant.definition.name] = variant

    def watch(self, see: Callable[[str], object]) -> None:
        """Have a function called with the name of each variant that is loaded from now on.

        Args:
            see: Called before the variant answers.
        """
        self._watchers.append(see)

    def withdraw(self, definition: Definition) -> None:
        """Forget a variant: no new request finds it."""
        self._held.pop(definition.name, None)
        self.definitions.remove(definition)
        for name in (definition.name, *definition.aliases):
            del self._by_name[name]

    def loaded(self, definition: Definition) -> HeldVariant | None:
        """Return a variant if it is loaded."""
        return self._held.get(definition.name)

    def define(self, name: str, field: str) -> Definition:
        """Return the definition of that name or alias, loaded or not; the default one for "".

        Args:
            name: What the request says.
            field: Where it says so.

        Raises:
            VariantNotFound: There is none.
        """
        definition = self._by_name.get(plain(name)) if name else self.default
        if definition is None:
            raise VariantNotFound(field, name, sorted(self._by_name))
        return definition

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
                f"variant {definition.name} is still being loaded; wait until the server's health"
                " is SERVING, or call another one"
            )
        return held
