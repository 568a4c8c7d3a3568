"""The watcher of the variants file; engines are fakes, everything else is real."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import pytest

from resnet50_server.errors import UnusableSetting
from resnet50_server.rollout.router import TrafficRouter
from resnet50_server.rollout.variants_file import parse_variants_file
from resnet50_server.rollout.variants_file_watcher import VariantsFileWatcher
from tests.support.administering import describe
from tests.support.fake_variants import EACH, Engines, Served, serve
from tests.support.serving import until


def variants(*names: str, default: str = "") -> str:
    """Return a file with variants of these names, in directories or, in upper case, official."""
    text = f'default = "{default}"\n' if default else ""
    for name in names:
        text += f'[[variant]]\nname = "{name}"\n'
        text += "" if name.isupper() else f'directory = "{name}"\n'
    return text


def split(variant: str, candidate: str, shadow: float = 10.0) -> str:
    return (
        f'[[split]]\nvariant = "{variant}"\ncandidate = "{candidate}"\nshadow_percent = {shadow}\n'
    )


class Watched:
    """A variants file with a server that watches it; `check` checks it twice, as it needs."""

    def __init__(self, folder: Path, text: str, **options) -> None:
        for name in "abcd":
            describe(folder / name)
        self.path = folder / "variants.toml"
        self.write(text)
        declared = parse_variants_file(self.path, self.path.read_bytes())
        arguments = [spec.argument for spec in declared.specs]
        self.server: Served = serve(folder, *arguments, engines=Engines(), **options)
        self.variants, self.control = self.server.variants, self.server.control
        self.engines = self.server.engines
        self.traffic = TrafficRouter(self.variants, no_compute)
        self.watcher = VariantsFileWatcher(
            self.path, declared, self.variants, self.control, self.traffic, interval_s=0.001
        )

    @classmethod
    async def of(cls, folder: Path, text: str, **options) -> Watched:
        watched = cls(folder, text, **options)
        await watched.control.load_initial()
        watched.watcher.set_splits()
        return watched

    def write(self, text: str) -> None:
        """Replace the file at once, as editors and ConfigMaps do."""
        beside = self.path.with_suffix(".new")
        beside.write_text(text)
        beside.replace(self.path)

    async def check(self) -> None:
        for _ in range(2):
            await self.watcher.check()

    async def change(self, text: str) -> None:
        self.write(text)
        await self.check()

    @property
    def names(self) -> list[str]:
        """Names of the variants, the default first."""
        return [spec.name for spec in self.variants.specs]

    @property
    def splits(self) -> list[tuple[str, str, float]]:
        return [
            (one.split.variant, one.split.candidate, one.split.shadow_percent)
            for one in self.traffic.splits
        ]


async def no_compute(*_: object) -> None:
    raise AssertionError("no image is computed here")


async def test_change_loads_switches_and_unloads(tmp_path):
    watched = await Watched.of(tmp_path, variants("a", "b") + split("a", "b"))
    first = watched.watcher.revision
    assert (watched.names, watched.splits) == (["a", "b"], [("a", "b", 10.0)])
    await watched.change(variants("b", "c", default="c") + split("c", "b", 20.0))
    assert (watched.names, watched.splits) == (["c", "b"], [("c", "b", 20.0)])
    assert watched.engines.loads == ["a", "b", "c"]  # b is served already
    assert watched.watcher.revision != first
    changes = watched.watcher.changes
    assert (changes.applied, changes.refused, changes.problem) == (1, 0, "")
    assert watched.watcher.differences == []


async def test_file_that_is_being_written_is_not_applied(tmp_path):
    watched = await Watched.of(tmp_path, variants("a", "b"))
    for text in (variants("a"), variants("a", "c")):
        watched.write(text)
        await watched.watcher.check()
        assert watched.names == ["a", "b"]
    await watched.watcher.check()
    assert watched.names == ["a", "c"]


async def test_other_directory_or_digest_replaces_the_weights(tmp_path):
    watched = await Watched.of(tmp_path, variants("a"))
    before = watched.variants.find("a")
    await watched.change(variants("a").replace('directory = "a"', 'directory = "b"'))
    moved = watched.variants.find("a")
    assert moved is not before
    assert moved.spec.directory == tmp_path / "b"
    # The weights that are served have this digest already.
    await watched.change(watched.path.read_text() + f'digest = "{"0" * 12}"\n')
    assert watched.variants.find("a") is moved
    await watched.change(watched.path.read_text().replace("0" * 12, "1" * 12))
    assert watched.variants.find("a") is not moved
    assert watched.watcher.changes.applied == 3


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("default = ", "is not TOML: Invalid value"),
        (
            variants("a", "b").replace("directory", "folder"),
            "line 3: variant 1: folder: is unk",
        ),
        (variants("a", "gone"), "line 6: variant 2: directory: gone="),
        (variants("a", "c", "d"), "d cannot be loaded: RuntimeError('no memory')"),
    ],
)
async def test_bad_change_is_logged_once_and_changes_nothing(tmp_path, caplog, text, problem):
    watched = await Watched.of(tmp_path, variants("a", "b") + split("a", "b"))
    watched.engines.errors["d"] = RuntimeError("no memory")
    loaded, revision = watched.variants.loaded, watched.watcher.revision
    await watched.change(text)
    await watched.check()
    await until(lambda: not watched.variants.draining)  # c was loaded already
    assert watched.variants.loaded == loaded
    assert watched.splits == [("a", "b", 10.0)]
    changes = watched.watcher.changes
    assert (changes.applied, changes.refused) == (0, 1)
    assert problem in changes.problem
    assert caplog.text.count(problem) - caplog.text.count("was not loaded") <= 1
    assert f"revision {revision[:12]} stays active" in caplog.text
    assert watched.watcher.revision == revision
    # The next good content is applied.
    watched.engines.errors.clear()
    await watched.change(variants("c"))
    assert (watched.names, watched.watcher.changes.problem) == (["c"], "")


async def test_load_that_failed_is_retried_with_pauses(tmp_path):
    watched = await Watched.of(tmp_path, variants("a"))
    watched.engines.errors["b"] = RuntimeError("no memory")
    await watched.change(variants("b"))
    attempts = len(watched.engines.loads)
    await until_retried(watched, lambda: len(watched.engines.loads) > attempts)
    watched.engines.errors.clear()
    await until_retried(watched, lambda: watched.names == ["b"])
    changes = watched.watcher.changes
    assert (changes.applied, changes.refused, changes.problem) == (1, 1, "")


async def until_retried(watched: Watched, condition) -> None:
    while not condition():
        await watched.watcher.check()


async def test_missing_directory_is_loaded_once_it_appears(tmp_path):
    watched = await Watched.of(tmp_path, variants("a"))
    await watched.change(variants("a", "late"))
    assert watched.names == ["a"]
    describe(tmp_path / "late")
    await until_retried(watched, lambda: watched.names == ["a", "late"])


async def test_file_that_disappears_changes_nothing(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    watched = await Watched.of(tmp_path, variants("a", "b"))
    text = watched.path.read_text()
    watched.path.unlink()
    watching = asyncio.create_task(watched.watcher.run())
    await until(lambda: watched.watcher.changes.problem)
    for _ in range(3):
        with pytest.raises(UnusableSetting, match="cannot be read"):
            await watched.watcher.check()
    assert watched.names == ["a", "b"]
    watched.write(text)
    await until(lambda: not watched.watcher.changes.problem)
    watching.cancel()
    assert watched.watcher.changes.refused == 1
    assert caplog.text.count("cannot be read: No such file or directory") == 1
    assert "is as the active revision again" in caplog.text


async def test_swap_of_a_configmaps_link_is_a_change(tmp_path):
    """The kubelet writes a directory beside, and moves the link `..data` to it."""
    mount = tmp_path / "mount"
    mount.mkdir()

    def publish(number: int, text: str) -> None:
        (folder := mount / f"..{number}").mkdir()
        (folder / "variants.toml").write_text(text)
        (mount / "..data_tmp").symlink_to(folder.name)
        os.rename(mount / "..data_tmp", mount / "..data")

    publish(1, variants("a"))
    watched = Watched(tmp_path, variants("a"))
    (mount / "variants.toml").symlink_to("..data/variants.toml")
    for name in "ab":
        describe(mount / name)
    declared = parse_variants_file(
        mount / "variants.toml", (mount / "..data/variants.toml").read_bytes()
    )
    await watched.control.load_initial()
    watcher = VariantsFileWatcher(
        mount / "variants.toml", declared, watched.variants, watched.control, watched.traffic
    )
    await watcher.check()
    publish(2, variants("a", "b"))
    (mount / "..1" / "variants.toml").unlink()
    for _ in range(2):
        await watcher.check()
    assert watched.names == ["a", "b"]
    # Relative directories are beside the link, not in the directory that it points to.
    assert watched.variants.find("b").spec.directory == mount / "b"


async def test_admin_changes_are_logged_and_undone_by_the_next_change(tmp_path, caplog):
    text = variants("a", "b") + split("a", "b")
    watched = await Watched.of(tmp_path, text)
    watched.control.set_default("b")
    watched.traffic.delete("a")
    await watched.control.load("c")
    await watched.check()
    found = watched.watcher.differences
    assert found == [
        "c is loaded as well",
        "the default is b, not a",
        "the split of a is not set",
    ]
    assert caplog.text.count("; ".join(found)) == 1
    assert "the next change of the file, or a restart, undoes that" in caplog.text
    await watched.change(text + "# as before\n")
    assert (watched.names, watched.splits) == (["a", "b"], [("a", "b", 10.0)])
    assert watched.watcher.differences == []


async def test_change_waits_for_an_administrators_load(tmp_path):
    watched = await Watched.of(tmp_path, variants("a"))
    opened = asyncio.Event()
    watched.engines.wait = opened.wait
    loading = asyncio.create_task(watched.control.load("c"))
    await until(lambda: "c" in watched.engines.loads)
    watched.write(variants("a", "b"))
    await watched.watcher.check()
    applying = asyncio.create_task(watched.watcher.check())
    opened.set()
    await loading
    await applying
    assert watched.names == ["a", "b"]


async def test_ended_split_stays_ended_until_its_entry_changes(tmp_path):
    text = variants("a", "b") + split("a", "b")
    watched = await Watched.of(tmp_path, text)
    (active,) = watched.traffic.splits
    active.end("for a test")
    await watched.change(text + "# a comment\n")
    assert watched.traffic.splits == [active]
    assert watched.watcher.differences == ["the split of a has ended"]
    await watched.change(variants("a", "b") + split("a", "b", 20.0))
    assert watched.splits == [("a", "b", 20.0)]
    assert not watched.traffic.splits[0].ended


async def test_unchanged_split_keeps_its_counts(tmp_path):
    watched = await Watched.of(tmp_path, variants("a", "b") + split("a", "b"))
    (active,) = watched.traffic.splits
    await watched.change(variants("a", "b", "c") + split("a", "b"))
    assert watched.traffic.splits == [active]


async def test_both_sides_of_a_split_change_their_categories_at_once(tmp_path, caplog):
    text = variants("a", "b") + split("a", "b").replace("shadow", "canary")
    watched = await Watched.of(tmp_path, text)
    for name in ("new-a", "new-b"):
        describe(tmp_path / name, ["x", "y", "z"])
    await watched.change(text.replace('directory = "', 'directory = "new-'))
    (active,) = watched.traffic.splits
    assert not active.ended
    assert "has ended" not in caplog.text
    assert len(watched.variants.find("b").spec.categories) == 3


@pytest.mark.parametrize(
    ("evict", "names"), [(True, ["b", "c"]), (False, ["a", "b", "x"])], ids=["evict", "refuse"]
)
async def test_memory_is_freed_of_undeclared_variants_only(tmp_path, evict, names):
    describe(tmp_path / "x")
    watched = await Watched.of(tmp_path, variants("a", "b"), max_bytes=3 * EACH, evict=evict)
    await watched.control.load("x")
    for name in ("x", "a", "b"):
        watched.variants.find(name).acquire()
        watched.variants.find(name).release()
    await watched.change(variants("b", "c"))
    assert sorted(watched.names) == sorted(names)
    assert ("max_variants_bytes" in watched.watcher.changes.problem) is not evict


async def test_unhealthy_variant_does_not_become_default_or_candidate(tmp_path):
    watched = await Watched.of(tmp_path, variants("a", "b"))
    health = watched.variants.find("b").queue.health
    health.fail("broken", "by a test")
    for text in (variants("a", "b", default="b"), variants("a", "b") + split("a", "b")):
        await watched.change(text)
        assert "b is out of service" in watched.watcher.changes.problem
        assert (watched.names, watched.splits) == (["a", "b"], [])


async def test_pipe_in_place_of_the_file_is_refused_at_once(tmp_path):
    watched = await Watched.of(tmp_path, variants("a"))
    watched.path.unlink()
    os.mkfifo(watched.path)
    with pytest.raises(UnusableSetting, match="cannot be read: is not a regular file"):
        await watched.watcher.check()
    assert watched.names == ["a"]
