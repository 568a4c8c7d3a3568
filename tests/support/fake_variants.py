"""Variants whose engines are fakes, and their control."""

from __future__ import annotations

import weakref
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from resnet50_server.batching.batch import BatchPolicy
from resnet50_server.batching.scheduler import Scheduler
from resnet50_server.lifecycle.control import VariantControl
from resnet50_server.lifecycle.engine_builder import BuiltEngine
from resnet50_server.lifecycle.loaded_variant import LoadedVariant
from resnet50_server.lifecycle.memory_budget import MemoryBudget
from resnet50_server.lifecycle.registry import VariantRegistry
from resnet50_server.lifecycle.spec_source import SpecSource
from resnet50_server.variants.directory import VariantsDirectory
from resnet50_server.variants.spec import parse_variant
from tests.support.administering import describe
from tests.support.virtual_device import FakeEngine, VirtualThreads

EACH = 2**20


class Weights:
    """Weights that a load has read."""


class EngineError(Exception):
    """Like onnxruntime's, not a RuntimeError."""


@dataclass
class Engines:
    """Loads fake variants of `EACH` bytes.

    Attributes:
        errors: Errors of loads, by name.
        bytes: Memory by name, where it is not `EACH`.
        loads: Names in the order of their loads, failed ones included.
        wait: Awaited by each load.
        weights: Weights of each load.
    """

    errors: dict[str, BaseException] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    loads: list[str] = field(default_factory=list)
    wait: Callable[[], Awaitable[object]] | None = None
    weights: list[weakref.ref[Weights]] = field(default_factory=list)

    async def load(self, spec, progress, reserve) -> LoadedVariant:
        takes = self.bytes.get(spec.name, EACH)
        self.loads.append(spec.name)
        await reserve(takes)
        if self.wait is not None:
            await self.wait()
        weights = Weights()
        self.weights.append(weakref.ref(weights))
        if spec.name in self.errors:
            raise self.errors[spec.name]
        engine, threads = FakeEngine(0.0), VirtualThreads()
        scheduler = Scheduler(BatchPolicy(), threads)
        queue = scheduler.add(spec.name, engine)
        opened = BuiltEngine(
            engine, "torch", "0" * 64, 0, "cpu", "fp32", trained=False, memory_bytes=takes
        )
        return LoadedVariant(spec, opened, queue, scheduler, threads)


@dataclass
class Served:
    """A server's variants and their control."""

    variants: VariantRegistry
    control: VariantControl
    engines: Engines

    @property
    def names(self) -> list[str]:
        return [one.spec.name for one in self.variants.loaded]


def described(folder: Path) -> Path:
    """Return a directory with the variants x and y."""
    for name in ("x", "y"):
        describe(folder / name)
    return folder


def serve(
    folder: Path,
    *arguments: str,
    engines: Engines | None = None,
    splits: Sequence[str] = (),
    **budget,
) -> Served:
    """Return variants that are not loaded yet; `splits` are those whose splits use any of them."""
    engines = engines or Engines()
    variants = VariantRegistry([parse_variant(argument) for argument in arguments], None)
    source = SpecSource(VariantsDirectory(folder), variants.specs)
    control = VariantControl(
        variants, engines.load, MemoryBudget(variants, **budget), 1.0, source, lambda _: [*splits]
    )
    return Served(variants, control, engines)


async def served(folder: Path, *arguments: str, **options) -> Served:
    """Return variants that are loaded."""
    found = serve(folder, *arguments, **options)
    await found.control.load_initial()
    return found
