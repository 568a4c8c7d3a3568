"""How the variants of a server change, where it goes wrong: engines are fakes, the rest is real."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from administering import describe
from virtual_device import FakeEngine, VirtualThreads

from resnet50_server.batcher import BatchPolicy, Scheduler
from resnet50_server.changes import Budget, Changes
from resnet50_server.errors import NotNow, VariantNotFound
from resnet50_server.held import HeldVariant, HeldVariants
from resnet50_server.opening import OpenEngine
from resnet50_server.variants.definition import define
from resnet50_server.variants.directory import VariantsDirectory

EACH = 2**20


class AtOnce(VirtualThreads):
    """Runs what is no batch within the turn."""

    async def run(self, call: Callable[[], object]) -> object:
        return call()


@dataclass
class Engines:
    """Stands for what loads variants: each takes `EACH` bytes.

    Attributes:
        errors: What becomes of the loads of a name.
        bytes: What takes more or less.
        loads: Names, in the order in which they were loaded or could not be.
        wait: Is awaited by each load.
    """

    errors: dict[str, BaseException] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    loads: list[str] = field(default_factory=list)
    wait: Callable[[], object] | None = None

    async def hold(self, definition, loading, make_room) -> HeldVariant:
        takes = self.bytes.get(definition.name, EACH)
        self.loads.append(definition.name)
        await make_room(takes)
        if self.wait is not None:
            await self.wait()
        if definition.name in self.errors:
            raise self.errors[definition.name]
        engine, threads = FakeEngine(0.0), AtOnce()
        scheduler = Scheduler(BatchPolicy(), threads)
        queue = scheduler.add(definition.name, engine)
        opened = OpenEngine(
            engine, "torch", "0" * 64, 0, "cpu", "fp32", trained=False, memory_bytes=takes
        )
        return HeldVariant(definition, opened, queue, scheduler, threads)


@dataclass
class Served:
    """A server's variants, and what changes them."""

    variants: HeldVariants
    changes: Changes
    engines: Engines

    @property
    def names(self) -> list[str]:
        return [one.definition.name for one in self.variants.held]


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder of variants."""
    for name in ("x", "y"):
        describe(tmp_path / "variants" / name)
    return tmp_path / "variants"


def serve(folder: Path, *specs: str, engines: Engines | None = None, **budget) -> Served:
    """Return variants that are not loaded yet."""
    engines = engines or Engines()
    variants = HeldVariants([define(spec) for spec in specs], None)
    directory = VariantsDirectory(folder)
    changes = Changes(variants, engines.hold, Budget(**budget), 1.0, directory)
    return Served(variants, changes, engines)


async def served(folder: Path, *specs: str, engines: Engines | None = None, **budget) -> Served:
    """Return variants that are loaded."""
    found = serve(folder, *specs, engines=engines, **budget)
    await found.changes.begin()
    return found


# One change at a time


async def test_variant_that_became_the_default_as_its_unloading_began_stays(folder):
    server = await served(folder, "a=random:0", "b=random:1")
    unloading = asyncio.ensure_future(server.changes.unload("b"))
    asyncio.get_running_loop().call_soon(server.changes.set_default, "b")
    with pytest.raises(NotNow, match="b answers requests that name no variant"):
        await unloading
    assert server.variants.find("").definition.name == "b"
    assert [one.name for one in server.variants.definitions] == ["b", "a"]


async def test_variant_that_a_split_named_as_its_unloading_began_stays(folder):
    server, splits = await served(folder, "a=random:0", "b=random:1"), []
    server.changes._naming = lambda name: splits
    unloading = asyncio.ensure_future(server.changes.unload("b"))
    asyncio.get_running_loop().call_soon(splits.append, "a")
    with pytest.raises(NotNow, match="named by the traffic split of a"):
        await unloading
    assert server.names == ["a", "b"]
