"""Readiness of the server and of each variant."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from resnet50_server.runtime.fatal import FatalError
from resnet50_server.variants.spec import VariantSpec

from .registry import VariantRegistry


class Readiness:
    """Readiness of the server and its variants, with the reason where images are rejected.

    Args:
        variants: The registry.
        draining: Returns whether the server drains.
        failed: Set when the server cannot recover from an error.

    Attributes:
        started: Whether all variants of the settings are loaded.
        fault: The error that the server cannot recover from; None if there is none.
    """

    def __init__(
        self, variants: VariantRegistry, draining: Callable[[], bool], failed: asyncio.Event
    ) -> None:
        self._variants = variants
        self._draining = draining
        self.started = False
        self.fault: FatalError | None = None
        self._failed = failed

    def fail(self, fault: FatalError) -> None:
        """Record an error that the server cannot recover from; the first one is kept."""
        self.fault = self.fault or fault
        self._failed.set()

    def fault_text(self) -> str | None:
        """Return why the server has failed; None if it has not."""
        return None if self.fault is None else str(self.fault)

    def server_problem(self) -> str | None:
        """Return why the server accepts no images; None if it does."""
        if (stopped := self._stopped()) is not None:
            return stopped
        if not self.started:
            return "the variants are being loaded"
        default = self._variants.default
        problem = self._problem(default)
        return None if problem is None else f"variant {default.name}, the default: {problem}"

    def variant_problems(self) -> dict[str, str | None]:
        """Return the same of each variant, by its name."""
        stopped = self._stopped()
        return {spec.name: stopped or self._problem(spec) for spec in self._variants.specs}

    def _stopped(self) -> str | None:
        return "the server is shutting down" if self._draining() else self.fault_text()

    def _problem(self, spec: VariantSpec) -> str | None:
        variant = self._variants.loaded_variant(spec)
        return "it is being loaded" if variant is None else variant.queue.health.problem
