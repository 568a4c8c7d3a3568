"""The watcher of the variants directory; engines are fakes, everything else is real."""

from __future__ import annotations

import asyncio
import shutil
import threading
from pathlib import Path

import pytest

from resnet50_server.errors import DiskTimeout, NotNow, WeightsError
from resnet50_server.lifecycle.spec_source import SpecSource
from resnet50_server.lifecycle.watcher import DirectoryWatcher
from resnet50_server.variants.directory import VariantsDirectory
from resnet50_server.variants.spec import VariantSpec, parse_variant
from tests.support.administering import describe
from tests.support.fake_variants import EACH, Served, described, served
from tests.support.serving import until


@pytest.fixture
def folder(tmp_path) -> Path:
    return described(tmp_path / "variants")


class Watched:
    """A server's directory; `look` scans it twice, as the watcher needs."""

    def __init__(self, folder: Path, server: Served, interval_s: float = 0.001) -> None:
        self.directory = VariantsDirectory(folder)
        self.watch = DirectoryWatcher(self.directory, server.variants, server.control, interval_s)

    @classmethod
    async def of(cls, folder: Path, server: Served, interval_s: float = 0.001) -> Watched:
        watched = cls(folder, server, interval_s)
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
    looks, stamps = 0, watched.directory.fingerprints

    def count() -> object:
        nonlocal looks
        looks += 1
        return stamps()

    watched.directory.fingerprints = count
    await until(lambda: looks >= 4)
    assert server.names == ["x", "y"]
    assert caplog.text.count("is not a directory") == 1
    assert "Traceback" not in caplog.text
    # Once it is there again, changes are seen.
    (folder.parent / "unmounted").rename(folder)
    shutil.rmtree(folder / "y")
    await until(lambda: server.names == ["x"])
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
    watched = await Watched.of(folder, server, 8.0)
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
    watched = await Watched.of(folder, server, 600.0)
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


class Hanging(VariantsDirectory):
    """A folder on a disk that hangs until it is released."""

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
    await until(lambda: threading.active_count() <= before)
    assert (await server.control.load("x")).variant.spec.name == "x"


async def test_watcher_reports_a_hung_disk_and_recovers(folder, caplog):
    server = await served(folder, "a=random:0")
    directory = Hanging(folder)
    watch = DirectoryWatcher(directory, server.variants, server.control, 0.001, timeout_s=0.05)
    directory.hangs = True
    await watch.start()
    watching = asyncio.create_task(watch.run())
    await until(lambda: "cannot be scanned" in caplog.text)
    assert "did not answer within 0.05 s" in caplog.text
    assert "Traceback" not in caplog.text
    directory.hangs = False
    directory.answers.set()
    await until(lambda: server.names == ["a", "x", "y"])
    watching.cancel()
