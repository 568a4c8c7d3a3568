"""Changes of variants and their failures; engines are fakes, everything else is real."""

from __future__ import annotations

import asyncio
import gc
import shutil
import threading
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from resnet50_server.batching.batch import BatchPolicy
from resnet50_server.batching.scheduler import Scheduler
from resnet50_server.errors import DiskTimeout, NotNow, VariantNotFound, WeightsError
from resnet50_server.lifecycle.control import VariantControl
from resnet50_server.lifecycle.engine_builder import BuiltEngine
from resnet50_server.lifecycle.loaded_variant import LoadedVariant
from resnet50_server.lifecycle.memory_budget import MemoryBudget
from resnet50_server.lifecycle.registry import VariantRegistry
from resnet50_server.lifecycle.spec_source import SpecSource
from resnet50_server.lifecycle.watcher import DirectoryWatcher
from resnet50_server.variants.directory import VariantsDirectory
from resnet50_server.variants.spec import VariantSpec, parse_variant
from tests.support.administering import describe
from tests.support.serving import until
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


@pytest.fixture
def folder(tmp_path) -> Path:
    """A directory of variants."""
    for name in ("x", "y"):
        describe(tmp_path / "variants" / name)
    return tmp_path / "variants"


def serve(folder: Path, *arguments: str, engines: Engines | None = None, **budget) -> Served:
    """Return variants that are not loaded yet."""
    engines = engines or Engines()
    variants = VariantRegistry([parse_variant(argument) for argument in arguments], None)
    source = SpecSource(VariantsDirectory(folder), variants.specs)
    control = VariantControl(variants, engines.load, MemoryBudget(variants, **budget), 1.0, source)
    return Served(variants, control, engines)


async def served(folder: Path, *arguments: str, engines: Engines | None = None, **budget) -> Served:
    """Return variants that are loaded."""
    found = serve(folder, *arguments, engines=engines, **budget)
    await found.control.load_initial()
    return found


# One change at a time


async def test_variant_made_default_during_unload_stays(folder):
    server = await served(folder, "a=random:0", "b=random:1")
    unloading = asyncio.ensure_future(server.control.unload("b"))
    asyncio.get_running_loop().call_soon(server.control.set_default, "b")
    with pytest.raises(NotNow, match="b is the default, for requests that name no variant"):
        await unloading
    assert server.variants.find("").spec.name == "b"
    assert [one.name for one in server.variants.specs] == ["b", "a"]


async def test_variant_of_a_new_traffic_split_is_not_unloaded(folder):
    server, splits = await served(folder, "a=random:0", "b=random:1"), []
    server.control._splits_using = lambda name: splits
    unloading = asyncio.ensure_future(server.control.unload("b"))
    asyncio.get_running_loop().call_soon(splits.append, "a")
    with pytest.raises(NotNow, match="used by the traffic split of a"):
        await unloading
    assert server.names == ["a", "b"]


async def test_startup_and_admin_loads_run_one_at_a_time(folder):
    at_once, most = 0, 0

    async def count() -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0)
        at_once -= 1

    server = serve(folder, "a=random:0", "b=random:1", engines=Engines(wait=count))
    starting = asyncio.create_task(server.control.load_initial())
    await asyncio.sleep(0)
    with pytest.raises(NotNow, match="another variant is being loaded"):
        await server.control.load("x")
    await starting
    assert (server.names, most) == (["a", "b"], 1)


async def test_startup_waits_for_a_load_in_progress(folder):
    server = serve(folder, "a=random:0")
    loading = asyncio.create_task(server.control.load("x"))
    await asyncio.sleep(0)
    await server.control.load_initial()
    assert loading.done()
    assert server.engines.loads == ["x", "a"]


async def test_cancelled_startup_loads_nothing_more(folder):
    entered, never = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        entered.set()
        await never.wait()

    server = serve(folder, "a=random:0", engines=Engines(wait=wait))
    starting = asyncio.create_task(server.control.load_initial())
    await entered.wait()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await asyncio.wait_for(server.control.wait_idle(), 30)
    assert server.names == []


# Memory


async def test_eviction_for_a_failed_load_is_not_undone(folder):
    server = await served(folder, "a=random:0", "b=random:1", max_bytes=2 * EACH, evict=True)
    server.engines.errors["x"] = WeightsError("broken")
    text = "broken; evicted for it, and not loaded again: b"
    with pytest.raises(NotNow, match=f"^name: x cannot be loaded: {text}$"):
        await server.control.load("x")
    assert server.names == ["a"]  # the default stays
    assert server.engines.loads == ["a", "b", "x"]
    assert server.variants.failures == {"x": text}
    await server.control.load("b")  # by hand
    assert server.names == ["a", "b"]


async def test_variant_of_a_traffic_split_is_not_evicted(folder):
    server = await served(
        folder,
        "a=random:0",
        "b=random:1",
        "c=random:2",
        max_bytes=3 * EACH,
        evict=True,
        splits_using=lambda name: ["a"] if name == "b" else [],
    )
    assert (await server.control.load("x")).evicted == ["c"]
    with pytest.raises(NotNow, match="max_variants_bytes: y takes about 2 MiB"):
        server.engines.bytes["y"] = 2 * EACH
        await server.control.load("y")
    assert server.names == ["a", "b", "x"]


async def test_variant_is_not_evicted_for_its_own_replacement(folder):
    server = await served(folder, "a=random:0", max_bytes=2 * EACH, evict=True)
    await server.control.load("x")
    with pytest.raises(NotNow, match="max_variants_bytes: x takes about 1 MiB"):
        await server.control.load("x", replace=True)
    assert server.names == ["a", "x"]


async def test_variant_too_large_even_after_drains_is_rejected(folder):
    engines = Engines(bytes={"y": 3 * EACH})
    server = await served(folder, "a=random:0", engines=engines, max_bytes=3 * EACH)
    await server.control.load("x")
    old = server.variants.find("x")
    old.acquire()
    await server.control.load("x", replace=True)
    assert server.variants.draining == [old]
    with pytest.raises(NotNow, match="max_variants_bytes: y takes about 3 MiB"):
        await server.control.load("y")
    assert server.variants.draining == [old]
    old.release()


async def test_load_waits_for_drains_before_it_evicts(folder):
    engines, stages = Engines(bytes={"y": 2 * EACH}), []
    server = await served(folder, "a=random:0", engines=engines, max_bytes=4 * EACH, evict=True)
    await server.control.load("x")
    old = server.variants.find("x")
    old.acquire()
    await server.control.load("x", replace=True)

    async def poll() -> None:
        loading = server.variants.load_progress(server.variants.resolve("y", "name"))
        stages.append(loading.stage)

    engines.wait = poll
    loading = asyncio.create_task(server.control.load("y"))
    while (found := server.variants.by_name("y")) is None:
        await asyncio.sleep(0)
    while server.variants.load_progress(found).stage != "evicting":
        await asyncio.sleep(0)
    old.release()
    assert (await loading).evicted == []
    assert server.names == ["a", "x", "y"]
    assert stages == ["evicting"]


async def test_nothing_is_evicted_if_memory_suffices(folder):
    server, stages = await served(folder, "a=random:0", max_bytes=2 * EACH, evict=True), []

    async def poll() -> None:
        stages.append(server.variants.load_progress(server.variants.resolve("x", "name")).stage)

    server.engines.wait = poll
    await server.control.load("x")
    assert stages == ["waiting"]  # as the fake says nothing else


async def test_memory_of_a_hung_engine_stays_in_use(folder):
    server = await served(folder, "a=random:0", "b=random:1", max_bytes=2 * EACH)
    loaded = server.variants.find("b")

    async def remove(*_) -> bool:
        return False

    loaded.scheduler.remove = remove
    with pytest.raises(NotNow, match=r"b is unloaded .* its memory stays in use"):
        await server.control.unload("b")
    assert server.variants.by_name("b") is None
    assert server.variants.draining == [loaded]
    with pytest.raises(NotNow, match=r"max_variants_bytes: x takes about 1 MiB .*a 1, b 1"):
        await server.control.load("x")


async def test_load_is_refused_if_an_evicted_engine_hangs(folder):
    server = await served(folder, "a=random:0", "b=random:1", max_bytes=2 * EACH, evict=True)

    async def remove(*_) -> bool:
        return False

    server.variants.find("b").scheduler.remove = remove
    with pytest.raises(NotNow, match=r"max_variants_bytes: x takes .* evicted for it, .*: b$"):
        await server.control.load("x")
    assert [one.name for one in server.variants.specs] == ["a"]


async def test_unload_reports_an_engine_that_could_not_be_closed(folder, caplog):
    server = await served(folder, "a=random:0", "b=random:1")
    loaded = server.variants.find("b")

    def close() -> None:
        raise EngineError("still in use")

    loaded.built.engine.close = close
    with pytest.raises(NotNow, match=r"b is unloaded .* could not be closed"):
        await server.control.unload("b")
    assert server.variants.by_name("b") is None
    assert server.variants.draining == [loaded]
    assert "EngineError: still in use" in caplog.text


# Failures


@pytest.mark.parametrize("error", [EngineError("bad allocation"), MemoryError(), KeyError("x")])
async def test_any_engine_error_is_the_load_error(folder, error, caplog):
    server = await served(folder, "a=random:0")
    server.engines.errors["x"] = error
    with pytest.raises(NotNow) as refused:
        await server.control.load("x")
    assert str(refused.value) == f"name: x cannot be loaded: {error!r}"
    assert server.variants.failures == {"x": repr(error)}
    (warning,) = [one for one in caplog.records if "was not loaded" in one.getMessage()]
    assert bool(warning.exc_info) is not isinstance(error, MemoryError)


async def test_weights_of_a_failed_load_are_freed(folder):
    server = await served(folder, "a=random:0")

    async def load() -> None:
        with pytest.raises(NotNow):
            await server.control.load("x")

    server.engines.errors["x"] = WeightsError("broken")
    # Errors hold each other in circles.
    gc.disable()
    try:
        await load()
        await asyncio.sleep(0)
        server.engines.errors.clear()
        assert server.engines.weights[-1]() is None
    finally:
        gc.enable()


async def test_rejected_loads_are_not_recorded_as_failures(folder):
    server = await served(folder, "IMAGENET1K_V2")
    for name in ("DEFAULT", "IMAGENET1K_V2", "ResNet50_Weights.IMAGENET1K_V2"):
        with pytest.raises(NotNow, match="IMAGENET1K_V2 is served already"):
            await server.control.load(name)
    assert server.variants.failures == {}


async def test_failed_load_of_an_alias_is_recorded_by_name(folder):
    server = await served(folder, "IMAGENET1K_V2")
    server.engines.errors["IMAGENET1K_V2"] = WeightsError("broken")
    with pytest.raises(NotNow, match="broken"):
        await server.control.load("DEFAULT", replace=True)
    assert server.variants.failures == {"IMAGENET1K_V2": "broken"}
    server.engines.errors.clear()
    await server.control.load("DEFAULT", replace=True)
    assert server.variants.failures == {}


# Loading


@pytest.mark.parametrize("source", ["elsewhere", "random:1"])
async def test_startup_variant_can_be_loaded_again_after_unload(folder, tmp_path, source):
    if source == "elsewhere":
        describe(tmp_path / source)
        source = str(tmp_path / source)
    server = await served(folder, "a=random:0", f"m={source}")
    await server.control.unload("m")
    await server.control.load("m")
    assert server.names == ["a", "m"]


async def test_unknown_name_lists_what_can_be_loaded(folder):
    server = await served(folder, "a=random:0")
    with pytest.raises(VariantNotFound) as unknown:
        await server.control.load("cats")
    text = str(unknown.value)
    assert text.startswith("name: no variant 'cats' can be loaded here; there are: IMAGENET1K_")
    assert text.endswith(", a, x, y")


# The folder


class Watched:
    """A server's directory; `look` scans it twice, as the watcher needs."""

    def __init__(self, folder: Path, server: Served) -> None:
        self.directory = VariantsDirectory(folder)
        self.watch = DirectoryWatcher(self.directory, server.variants, server.control, 0.001)

    @classmethod
    async def of(cls, folder: Path, server: Served) -> Watched:
        watched = cls(folder, server)
        await watched.watch.start()
        return watched

    async def poll(self) -> None:
        for _ in range(2):
            await self.watch.scan()


async def test_directory_that_is_being_written_is_not_loaded(folder):
    server = await served(folder, "a=random:0", f"x={folder}/x", f"y={folder}/y")
    watched = await Watched.of(folder, server)
    loaded = list(server.engines.loads)
    for number in range(3):
        describe(folder / "x", ["longer"] * (number + 1))  # other sizes, whatever clocks say
        await watched.watch.scan()
        assert server.engines.loads == loaded
    await watched.watch.scan()
    assert server.engines.loads == [*loaded, "x"]


async def test_watcher_does_not_reload_an_admins_variant(folder):
    shutil.rmtree(folder / "y")
    server = await served(folder, "a=random:0")
    watched = await Watched.of(folder, server)
    await server.control.load("x")
    await watched.poll()
    assert server.engines.loads == ["a", "x"]
    # Later changes are applied, and later removals.
    describe(folder / "x", ["other"])
    await watched.poll()
    assert server.engines.loads == ["a", "x", "x"]
    shutil.rmtree(folder / "x")
    await watched.poll()
    assert "x" not in [one.name for one in server.variants.specs]


async def test_variant_changed_during_a_load_is_reloaded(folder):
    shutil.rmtree(folder / "y")
    server = await served(folder, "a=random:0")
    watched = await Watched.of(folder, server)

    async def change() -> None:
        describe(folder / "x", ["other"])

    server.engines.wait = change
    await server.control.load("x")
    server.engines.wait = None
    await watched.poll()
    assert server.engines.loads == ["a", "x", "x"]


async def test_variant_changed_while_its_spec_is_read_is_reloaded(folder, monkeypatch):
    shutil.rmtree(folder / "y")
    server = await served(folder, "a=random:0")
    watched = await Watched.of(folder, server)

    def parse(argument: str) -> VariantSpec:
        spec = parse_variant(argument)
        describe(folder / "x", ["other"])
        return spec

    with monkeypatch.context() as changing:
        changing.setattr("resnet50_server.lifecycle.spec_source.parse_variant", parse)
        await server.control.load("x")
    await watched.poll()
    assert server.engines.loads == ["a", "x", "x"]


async def test_missing_variants_dir_unloads_nothing(folder, caplog):
    server = await served(folder, f"x={folder / 'x'}", f"y={folder / 'y'}")
    watched = await Watched.of(folder, server)
    folder.rename(folder.parent / "unmounted")
    watching = asyncio.create_task(watched.watch.run())
    looks, stamps = 0, watched.watch._directory.fingerprints

    def count() -> object:
        nonlocal looks
        looks += 1
        return stamps()

    watched.watch._directory.fingerprints = count
    while looks < 4:
        await asyncio.sleep(0.001)
    assert server.names == ["x", "y"]
    assert caplog.text.count("is not a directory") == 1
    assert "Traceback" not in caplog.text
    # Once it is there again, changes are seen.
    (folder.parent / "unmounted").rename(folder)
    shutil.rmtree(folder / "y")
    while server.names != ["x"]:
        await asyncio.sleep(0.001)
    watching.cancel()


async def test_watcher_loads_from_a_directory_created_later(tmp_path):
    folder = tmp_path / "later"
    server = await served(folder, "a=random:0")
    watched = await Watched.of(folder, server)
    describe(folder / "x")
    await watched.poll()
    assert server.names == ["a", "x"]


@pytest.mark.parametrize("name", ["IMAGENET1K_V1", "DEFAULT", "ResNet50_Weights.IMAGENET1K_V1"])
async def test_directory_named_like_an_official_variant_is_skipped(tmp_path, caplog, name):
    folder = tmp_path / "variants"
    folder.mkdir()
    server = await served(folder, "a=random:0")
    watched = await Watched.of(folder, server)
    describe(folder / name)
    await watched.poll()
    await watched.poll()
    assert server.names == ["a"]
    assert caplog.text.count(f"{name} is not loaded: it is the name of an official variant") == 1


async def test_removed_directory_of_a_used_variant_is_logged_once(folder, caplog):
    caplog.set_level("INFO")
    server = await served(folder, f"x={folder / 'x'}", f"y={folder / 'y'}")
    watched = await Watched.of(folder, server)
    shutil.rmtree(folder / "x")  # the default
    for _ in range(3):
        await watched.poll()
    assert server.names == ["x", "y"]
    assert caplog.text.count("variants_dir: x was removed") == 1
    assert caplog.text.count("x is the default, for requests that name no variant") == 1


PASSING = [
    MemoryError(),
    RuntimeError("CUDA out of memory"),
    OSError(5, "Input/output error"),
    NotNow("max_variants_bytes: takes about 1 MiB"),
]


@pytest.mark.parametrize("error", PASSING, ids=lambda error: type(error).__name__)
async def test_transient_load_failure_is_retried(folder, error, monkeypatch):
    shutil.rmtree(folder / "y")
    server = await served(folder, "a=random:0")
    watched = await Watched.of(folder, server)
    watched.watch._interval_s = 8.0
    now = [0.0]
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "time", lambda: now[0], raising=False)
    server.engines.errors["x"] = error
    tries = []
    for now[0] in range(60):
        before = len(server.engines.loads)
        await watched.watch.scan()
        tries += [now[0]] * (len(server.engines.loads) - before)
    assert tries == [0, 8, 24, 56]
    # Once the reason has passed, it is loaded at its next turn; and then never again.
    del server.engines.errors["x"]
    now[0] = 119.0
    await watched.poll()
    assert server.names == ["a"]
    now[0] = 120.0
    await watched.poll()
    await watched.poll()
    assert server.names == ["a", "x"]
    assert server.engines.loads == ["a", *["x"] * 5]


async def test_changed_directory_is_retried_at_once(folder):
    shutil.rmtree(folder / "y")
    server = await served(folder, "a=random:0")
    watched = await Watched.of(folder, server)
    watched.watch._interval_s = 600.0
    server.engines.errors["x"] = MemoryError()
    await watched.poll()
    await watched.poll()
    assert server.engines.loads == ["a", "x"]
    del server.engines.errors["x"]
    describe(folder / "x", ["other"])
    await watched.poll()
    assert server.names == ["a", "x"]


async def test_invalid_directory_is_retried_when_its_files_change(folder):
    shutil.rmtree(folder / "y")
    server = await served(folder, "a=random:0")
    watched = await Watched.of(folder, server)
    server.engines.errors["x"] = WeightsError("x: weights.pth is not a state dict")
    (folder / "z").mkdir()
    (folder / "z" / "variant.json").write_text("{}")
    for _ in range(4):
        await watched.poll()
    assert server.engines.loads == ["a", "x"]
    assert list(server.variants.failures) == ["x", "z"]
    del server.engines.errors["x"]
    for name in ("x", "z"):
        describe(folder / name, ["other"])
    await watched.poll()
    assert server.names == ["a", "x", "z"]


async def test_directory_is_loaded_once_memory_is_freed(folder):
    server = await served(folder, "a=random:0", max_bytes=2 * EACH)
    watched = await Watched.of(folder, server)
    await watched.poll()
    assert server.names == ["a", "x"]
    assert "max_variants_bytes" in server.variants.failures["y"]
    shutil.rmtree(folder / "x")
    while server.names != ["a", "y"]:
        await watched.poll()
    assert server.variants.failures == {}


# A disk that hangs


class Hanging(VariantsDirectory):
    """A folder on a disk that hangs until it is told to answer."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.hangs = False
        self.asked = threading.Event()
        self.answers = threading.Event()

    def _wait(self) -> None:
        if self.hangs:
            self.asked.set()
            self.answers.wait(60)

    def find(self, name: str) -> Path:
        self._wait()
        return super().find(name)

    def fingerprints(self) -> dict[str, object]:
        self._wait()
        return super().fingerprints()


async def test_hung_disk_is_reported_and_blocks_one_thread_only(folder, monkeypatch):
    server = await served(folder, "a=random:0")
    directory = Hanging(folder)
    server.control.source = SpecSource(directory, [], timeout_s=0.3)
    directory.hangs = True
    before = threading.active_count()
    try:
        for _ in range(5):
            with pytest.raises(DiskTimeout, match=r"variants_dir: .* within 0\.3 s"):
                await server.control.load("x")
        assert threading.active_count() == before + 1
        # Changes that need no files proceed meanwhile.
        assert server.control.set_default("a")[1] == "a"
    finally:
        directory.answers.set()
    directory.hangs = False
    while threading.active_count() > before:
        await asyncio.sleep(0.01)
    assert (await server.control.load("x")).variant.spec.name == "x"


async def test_watcher_reports_a_hung_disk_and_recovers(folder, caplog):
    server = await served(folder, "a=random:0")
    directory = Hanging(folder)
    watch = DirectoryWatcher(directory, server.variants, server.control, 0.001, timeout_s=0.05)
    directory.hangs = True
    await watch.start()
    watching = asyncio.create_task(watch.run())
    while "cannot be scanned" not in caplog.text:
        await asyncio.sleep(0.001)
    assert "did not answer within 0.05 s" in caplog.text
    assert "Traceback" not in caplog.text
    directory.hangs = False
    directory.answers.set()
    while server.names != ["a", "x", "y"]:
        await asyncio.sleep(0.001)
    watching.cancel()


async def test_replaced_variant_is_not_referenced_once_freed(folder):
    served = serve(folder, f"x={folder}/x")
    await served.control.load_initial()
    old = weakref.ref(served.variants.loaded[0])
    await served.control.load("x", replace=True)

    async def gone() -> None:
        while old() is not None:
            await asyncio.sleep(0.01)
            gc.collect()

    await asyncio.wait_for(gone(), 10)


async def test_name_is_removed_with_its_last_variant_in_memory(folder):
    server, removed = await served(folder, "a=random:0"), []
    server.variants.on_removed(removed.append)
    await server.control.load("x")
    old = server.variants.find("x")
    old.acquire()
    await server.control.load("x", replace=True)
    await server.control.unload("x")
    assert (server.variants.draining, removed) == ([old], [])
    old.release()
    await until(lambda: not server.variants.draining)
    assert removed == ["x"]
