"""The memory limit of loaded variants, and which of them a new one may evict."""

from __future__ import annotations

from collections.abc import Callable, Collection

from resnet50_server.errors import NotNow
from resnet50_server.variants.spec import VariantSpec

from .loaded_variant import LoadedVariant
from .registry import VariantRegistry

MIB = 2**20


class MemoryBudget:
    """Bounds the estimated memory of all variants together.

    Args:
        variants: The registry.
        max_bytes: The limit, in bytes; 0 for none.
        evict: Whether a load may evict the least recently used variants.
        splits_using: Returns the variants whose traffic splits use the given one.
    """

    def __init__(
        self,
        variants: VariantRegistry,
        max_bytes: int = 0,
        *,
        evict: bool = False,
        splits_using: Callable[[str], list[str]] = lambda _: [],
    ) -> None:
        self._variants = variants
        self._max_bytes = max_bytes
        self._evict = evict
        self._splits_using = splits_using

    def fits(self, needed_bytes: int) -> bool:
        """Return whether so many bytes are free now."""
        used = sum(one.built.memory_bytes for one in self._variants.loaded)
        return not self._max_bytes or used + needed_bytes <= self._max_bytes

    def evictions(
        self,
        spec: VariantSpec,
        needed_bytes: int,
        *,
        startup: bool,
        keep: Collection[str] = (),
    ) -> list[LoadedVariant]:
        """Choose the variants to evict, assuming that all draining ones will be freed.

        The least recently used ones; never the default, the variant that is replaced, or one used
        by a traffic split.

        Args:
            spec: The variant to load.
            needed_bytes: The memory that it needs.
            startup: Whether the settings name it; such a variant evicts none.
            keep: Names of variants that are not evicted.

        Raises:
            NotNow: There is too little memory, even with evictions.
        """
        if not self._max_bytes:
            return []
        kept = [one for one in self._variants.loaded if not one.retired or one.leaked]
        missing = sum(one.built.memory_bytes for one in kept) + needed_bytes - self._max_bytes
        chosen: list[LoadedVariant] = []
        if self._evict and not startup:
            for one in sorted(self._evictable({spec.name, *keep}), key=lambda one: one.last_used):
                if missing <= 0:
                    break
                chosen.append(one)
                missing -= one.built.memory_bytes
        if missing > 0:
            raise self.exceeded(spec, needed_bytes)
        return chosen

    def exceeded(self, spec: VariantSpec, needed_bytes: int) -> NotNow:
        """Return the error for a variant that needs more memory than is free."""
        loaded = ", ".join(
            f"{one.spec.name} {one.built.memory_bytes // MIB}" for one in self._variants.loaded
        )
        advice = "unload a variant, or raise the limit"
        if not self._evict:
            advice += ", or allow evictions of the least recently used ones (--evict-variants)"
        return NotNow(
            f"max_variants_bytes: {spec.name} takes about {needed_bytes // MIB} MiB in addition to"
            f" the loaded variants ({loaded or 'none'}), and {self._max_bytes // MIB} MiB are"
            f" allowed; {advice}"
        )

    def _evictable(self, keep: Collection[str]) -> list[LoadedVariant]:
        needed = {self._variants.default.name, *keep}
        return [
            one
            for one in self._variants.loaded
            if not one.retired
            and one.spec.name not in needed
            and not self._splits_using(one.spec.name)
        ]
