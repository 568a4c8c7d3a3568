"""`resnet50 embed`: real processes, killed and stopped, against servers here.

The server runs in the test's own process, so that a test can hold its engine at a given image and
count what it computed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resnet50_bulk.checkpoint import Checkpoint
from resnet50_bulk.source import fingerprint_of
from resnet50_client import DeadlineExceededError
from resnet50_client.testing import FakeServer
from resnet50_client.testing.fake_server import DEFAULT_CATEGORIES
from resnet50_client.testing.script import Script
from tests.support.command_runs import Command, resnet50
from tests.support.counted_engine import counted_engine
from tests.support.embeddings import embedded
from tests.support.outputs import read_output
from tests.support.pausable_server import PausableServer
from tests.support.serving import serving, until

IMAGES = 600
# So few that the engine can be held with a commit behind it and images before it.
FEW = ("--concurrency", 16)
VARIANTS = ["one=random:1", "two=random:2"]


@pytest.fixture
def engine(monkeypatch):
    yield from counted_engine(monkeypatch)


def colour(number: int) -> tuple[float, ...]:
    return (number % 25 * 10.0, number // 25 * 10.0, 77.0)


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """600 pictures of one colour each, no two alike."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(IMAGES):
        Image.new("RGB", (8, 8), tuple(map(int, colour(number)))).save(folder / f"{number:04}.png")
    return folder


def saved(partial: Path) -> list[str]:
    """Return the names of the images whose vectors a checkpoint has."""
    if not partial.exists():
        return []
    with closing(sqlite3.connect(f"{partial.as_uri()}?mode=ro", uri=True, timeout=60)) as database:
        query = "SELECT path FROM images JOIN vectors USING (id) WHERE error IS NULL"
        try:
            return [os.fsdecode(path) for (path,) in database.execute(query)]
        except sqlite3.OperationalError as error:  # its tables are not there yet
            assert "no such table" in str(error)
            return []


async def until_saved(partial: Path) -> None:
    """Return after the first commit: of enough images, or on a slow machine of some."""
    await until(lambda: saved(partial))


def assert_whole(out: Path, folder: Path) -> None:
    """Make sure that a file has all images in order, each with its own vector."""
    found = read_output(out)
    assert found.paths == sorted(map(str, folder.glob("*.png")))
    assert (found.vectors.shape, found.vectors.dtype) == ((IMAGES, 2048), np.float32)
    colours = [colour(number) for number in range(IMAGES)]
    np.testing.assert_allclose(found.vectors[:, :3], colours, atol=1)
    assert [file.name for file in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".lance"])
async def test_embed_writes_all_images_and_nothing_else(suffix, engine, many, tmp_path):
    out = tmp_path / f"all{suffix}"
    async with serving() as server:
        status, _, said = await resnet50("embed", many, "--out", out, server=server)
    assert (status, "600 images embedded" in said) == (0, True), said
    assert_whole(out, many)
    assert engine.total == IMAGES


async def test_killed_embed_resumes_from_the_checkpoint(engine, many, tmp_path):
    out = tmp_path / "all.npz"
    partial = tmp_path / "all.npz.partial"
    engine.hold_at = 300
    async with serving() as server:
        command = await Command.start("embed", many, "--out", out, *FEW, server=server)
        await until_saved(partial)
        command.process.kill()
        await command.end()
        kept = [int(Path(name).stem) for name in saved(partial)]
        assert not out.exists()
        engine.go.set()
        status, _, said = await resnet50("embed", many, "--out", out, server=server)
    assert status == 0, said
    assert_whole(out, many)
    assert {engine.computed[colour(number)] for number in kept} == {1}
    # Others were computed again if the server had computed them when the command was killed.
    assert set(engine.computed.values()) <= {1, 2}


async def test_interrupted_embed_loses_and_repeats_nothing(engine, many, tmp_path):
    out = tmp_path / "all.npz"
    partial = tmp_path / "all.npz.partial"
    engine.hold_at = 300
    async with serving() as server:
        command = await Command.start(*("embed", many, "--out", out, "--json", *FEW), server=server)
        await until_saved(partial)
        command.process.send_signal(signal.SIGINT)
        await command.says("stopping")
        engine.go.set()
        status, stdout, _ = await command.end()
        assert status == 130
        kept = engine.total
        assert json.loads(stdout) == {
            "embedded": kept,
            "failed": 0,
            "out": None,
            "checkpoint": str(partial),
        }
        assert len(saved(partial)) == kept < IMAGES
        status, _, said = await resnet50("embed", many, "--out", out, server=server)
    assert status == 0, said
    assert_whole(out, many)
    assert set(engine.computed.values()) == {1}


async def test_second_embed_is_refused_but_not_after_a_kill(engine, many, tmp_path):
    out = tmp_path / "all.npz"
    partial = tmp_path / "all.npz.partial"
    engine.hold_at = 300
    async with serving() as server:
        first = await Command.start("embed", many, "--out", out, *FEW, server=server)
        await until_saved(partial)
        status, _, said = await resnet50("embed", many, "--out", out, "--restart", server=server)
        assert (status, "another run is writing" in said) == (1, True), said
        assert saved(partial)
        first.process.kill()
        await first.end()
        engine.go.set()
        status, _, said = await resnet50("embed", many, "--out", out, server=server)
    assert status == 0, said
    assert_whole(out, many)


async def test_lost_server_exits_3_and_keeps_finished_work(many, tmp_path):
    out, partial = tmp_path / "all.npz", tmp_path / "all.npz.partial"
    with PausableServer() as server:
        server.pause_after(300)
        command = await Command.start(
            *("embed", many, "--out", out, "--timeout-s", 0.5, *FEW), server=server.address
        )
        await until_saved(partial)
        server.stop()
        status, _, said = await command.end()
    kept = len(saved(partial))
    assert (status, f"{kept} images embedded, saved" in said) == (3, True), said
    assert 0 < kept < IMAGES
    assert not out.exists()


async def test_loss_of_one_of_two_servers_costs_no_image(many, tmp_path):
    out = tmp_path / "all.npz"
    with PausableServer() as first, FakeServer() as second:
        first.pause_after(20)
        servers = ("--server", first.address, "--server", second.address)
        command = await Command.start("embed", many, "--out", out, *servers, server=first.address)
        await until(lambda: len(first.received) >= 20)
        first.stop()
        status, _, said = await command.end()
    assert status == 0, said
    found = read_output(out)
    assert found.paths == sorted(map(str, many.glob("*.png")))
    assert not found.errors


async def test_unanswered_images_are_sent_again_by_the_next_run(tmp_path):
    out, folder = tmp_path / "all.npz", write(tmp_path / "d", "a.jpg", "b.jpg", "c.jpg")
    embed = ("embed", folder, "--out", out, "--json")
    with FakeServer() as server:
        refusal = DeadlineExceededError("the server is too slow")
        server.answer = refusing(server.answer, b"b.jpg", refusal)
        status, stdout, said = await resnet50(*embed, server=server.address)
        report = {"embedded": 2, "failed": 0, "out": None, "checkpoint": f"{out}.partial"}
        assert (status, json.loads(stdout)) == (3, report), said
        assert "the server is too slow" in said
    with FakeServer() as server:
        status, stdout, said = await resnet50(*embed, server=server.address)
        assert [one.image for one in server.received] == [b"b.jpg"]
    assert (status, json.loads(stdout)["embedded"]) == (0, 3), said
    assert read_output(out).paths == [str(folder / f"{name}.jpg") for name in "abc"]


def refusing(answer: Callable[..., Any], image: bytes, error: Exception) -> Callable[..., Any]:
    """Return a server's `answer` that refuses an image."""

    def refuse(method: str, options: Any, received: Any, context: Any) -> Any:
        if received.encoded == image:
            raise error
        return answer(method, options, received, context)

    return refuse


async def test_addresses_fail_without_their_secrets(fake, tmp_path):
    out, folder = tmp_path / "all.npz", write(tmp_path / "d", "a.jpg")
    address = "https://user:secret@host/a.jpg?token=secret"
    status, _, said = await resnet50("embed", folder, address, "--out", out, server=fake.address)
    assert (status, "host/a.jpg" in said, "secret" in said) == (1, True, False), said
    (failed,) = read_output(out).errors
    assert "host/a.jpg" in failed
    assert b"secret" not in out.read_bytes()


async def test_other_weights_or_options_do_not_mix_with_a_checkpoint(engine, many, tmp_path):
    out = tmp_path / "all.npz"
    engine.hold_at = 300
    async with serving(variants=VARIANTS) as server:
        embed = ("embed", many, "--out", out)
        command = await Command.start(*embed, "--variant", "one", *FEW, server=server)
        await until_saved(tmp_path / "all.npz.partial")
        command.process.kill()
        await command.end()
        engine.go.set()
        for name, options in (
            ("variant", ("--variant", "two")),
            ("l2_normalized", ("--variant", "one", "--l2-normalize")),
            ("background", ("--variant", "one", "--background", "white")),
        ):
            status, _, said = await resnet50(*embed, *options, server=server)
            assert (status, "--restart" in said, f"{name} is " in said) == (2, True, True), said
        status, _, said = await resnet50(*embed, "--variant", "two", "--restart", server=server)
        assert status == 0, said
    assert_whole(out, many)
    assert str(np.load(out)["variant"]) == "two"


async def test_changed_and_failed_images_are_recomputed(engine, tmp_path):
    folder, out = tmp_path / "images", tmp_path / "all.npz"
    folder.mkdir()
    for number in range(IMAGES):
        Image.new("RGB", (8, 8), (number % 250, number // 250, 0)).save(folder / f"{number:04}.png")
    (folder / "0007.png").write_bytes(b"no image")
    engine.hold_at = 300
    async with serving() as server:
        command = await Command.start("embed", folder, "--out", out, *FEW, server=server)
        await until_saved(tmp_path / "all.npz.partial")
        command.process.kill()
        await command.end()
        engine.go.set()
        assert str(folder / "0003.png") in saved(tmp_path / "all.npz.partial")
        for name, red in (("0007.png", 7), ("0003.png", 201)):
            Image.new("RGB", (9, 9), (red, 255, 255)).save(folder / name)
        status, _, said = await resnet50("embed", folder, "--out", out, server=server)
    assert status == 0, said
    found = read_output(out)
    assert found.paths == sorted(map(str, folder.glob("*.png")))
    np.testing.assert_allclose(found.vectors[3, :3], (201, 255, 255), atol=1)
    np.testing.assert_allclose(found.vectors[7, :3], (7, 255, 255), atol=1)
    np.testing.assert_allclose(found.vectors[8, :3], (8, 0, 0), atol=1)


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    """Answer any bytes with a vector that depends on nothing else."""
    with FakeServer() as server:
        yield server


def write(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text(name)
    return folder


async def test_embed_killed_three_times_has_every_file_once(tmp_path):
    folder, out = tmp_path / "d", tmp_path / "all.npz"
    folder.mkdir()
    contents = {str(folder / f"{n:04}.jpg"): f"image {n}".encode() for n in range(2000)}
    for name, content in contents.items():
        Path(name).write_bytes(content)
    embed, draw = ("embed", folder, "--out", out), random.Random(17)
    with PausableServer() as server:
        for _ in range(3):
            reached = server.pause_after(draw.randint(1, 600))
            command = await Command.start(*embed, server=server.address)
            await until(lambda reached=reached: len(server.received) >= reached)
            command.process.kill()
            await command.end()
            server.resume()
        status, _, said = await resnet50(*embed, server=server.address)
    assert status == 0, said
    found, expected = read_output(out), Script(DEFAULT_CATEGORIES, 2048)
    assert found.paths == sorted(contents)
    for name, vector in zip(found.paths, found.vectors, strict=True):
        np.testing.assert_array_equal(vector, expected.next(contents[name])[1])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["all.npz", "d"]


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".lance"])
async def test_append_adds_the_images_that_are_not_there(suffix, fake, tmp_path):
    out, folder = tmp_path / f"all{suffix}", write(tmp_path / "d", "b.jpg", "c.jpg")
    embed = ("embed", folder, "--out", out, "--append", "--json")
    status, stdout, said = await resnet50(*embed, server=fake.address)
    assert (status, json.loads(stdout)) == (0, {"embedded": 2, "failed": 0, "out": str(out)}), said
    before = read_output(out)
    write(folder, "a.jpg", "d.jpg")
    status, stdout, said = await resnet50(*embed, server=fake.address)
    report = {"embedded": 2, "failed": 0, "out": str(out), "skipped": 2}
    assert (status, json.loads(stdout)) == (0, report), said
    found = read_output(out)
    assert found.paths == [str(folder / f"{name}.jpg") for name in "bcad"]
    np.testing.assert_array_equal(found.vectors[:2], before.vectors)
    assert sorted(one.image for one in fake.received) == [b"a.jpg", b"b.jpg", b"c.jpg", b"d.jpg"]
    status, stdout, said = await resnet50(*embed, server=fake.address)
    report = {"embedded": 0, "failed": 0, "out": str(out), "skipped": 4}
    assert (status, json.loads(stdout)) == (0, report), said
    assert read_output(out).paths == found.paths
    assert sorted(file.name for file in tmp_path.iterdir()) == [out.name, "d"]


@pytest.mark.parametrize("suffix", [".npz", ".lance"])
async def test_append_interrupted_after_its_write_adds_no_row_twice(suffix, fake, tmp_path):
    out, folder = tmp_path / f"all{suffix}", write(tmp_path / "d", "a.jpg", "b.jpg")
    embed = ("embed", folder, "--out", out, "--append")
    status, _, said = await resnet50(*embed, server=fake.address)
    assert status == 0, said
    before = read_output(out)
    with Checkpoint(tmp_path / f"{out.name}.partial") as checkpoint:  # which was not deleted yet
        for path, vector in zip(before.paths, before.vectors, strict=True):
            one = embedded(0, variant="IMAGENET1K_V2", digest=before.provenance["digest"])
            checkpoint.add(path, fingerprint_of(path), dataclasses.replace(one, vector=vector))
        checkpoint.flush()
    write(folder, "c.jpg")
    status, _, said = await resnet50(*embed, server=fake.address)
    assert (status, "omitted" in said) == (0, False), said
    found = read_output(out)
    assert found.paths == [*before.paths, str(folder / "c.jpg")]
    assert len(fake.received) == 3
    assert sorted(file.name for file in tmp_path.iterdir()) == [out.name, "d"]


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".lance"])
async def test_append_from_another_embedding_space_is_refused(suffix, fake, tmp_path):
    out, folder = tmp_path / f"all{suffix}", write(tmp_path / "d", "a.jpg")
    embed = ("embed", folder, "--out", out)
    status, _, said = await resnet50(*embed, server=fake.address)
    assert status == 0, said
    before = read_output(out)
    write(folder, "b.jpg")
    status, _, said = await resnet50(*embed, "--append", "--l2-normalize", server=fake.address)
    assert (status, "l2_normalized is False there, True now" in said) == (2, True), said
    with FakeServer(variant="other") as other:
        status, _, said = await resnet50(*embed, "--append", server=other.address)
        assert (status, "variant is 'IMAGENET1K_V2' there" in said) == (2, True), said
        assert not other.received
    found = read_output(out)
    assert (found.paths, found.vectors.tolist()) == (before.paths, before.vectors.tolist())
    assert sorted(file.name for file in tmp_path.iterdir()) == [out.name, "d"]


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".lance"])
async def test_output_is_replaced_without_append(suffix, fake, tmp_path):
    out, folder = tmp_path / f"all{suffix}", write(tmp_path / "d", "a.jpg")
    status, _, said = await resnet50("embed", folder, "--out", out, server=fake.address)
    assert status == 0, said
    (folder / "a.jpg").rename(folder / "b.jpg")
    status, _, said = await resnet50(
        "embed", folder, "--out", out, "--l2-normalize", server=fake.address
    )
    assert status == 0, said
    found = read_output(out)
    assert (found.paths, found.provenance["l2_normalized"]) == ([str(folder / "b.jpg")], True)


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".lance"])
async def test_failed_images_have_their_error_in_the_output(suffix, tmp_path):
    out, folder = tmp_path / f"all{suffix}", tmp_path / "d"
    folder.mkdir()
    for name in ("a.png", "c.png"):
        Image.new("RGB", (8, 8)).save(folder / name)
    (folder / "b.png").write_text("no image")
    (folder / "d.png").symlink_to("d.png")
    names = [folder / f"{name}.png" for name in "abcd"]
    embed = ("embed", *names, "--out", out, "--append", "--json")
    async with serving() as server:
        status, stdout, said = await resnet50(*embed, server=server)
        assert (status, json.loads(stdout)["failed"]) == (1, 2), said
        found = read_output(out)
        assert found.paths == [str(folder / "a.png"), str(folder / "c.png")]
        assert list(found.errors) == [str(folder / "b.png"), str(folder / "d.png")]
        assert "image.encoded" in found.errors[str(folder / "b.png")]
        # The next run with --append sends them again, and replaces their rows.
        Image.new("RGB", (8, 8)).save(folder / "b.png")
        status, stdout, said = await resnet50(*embed, server=server)
        assert (status, json.loads(stdout)["embedded"]) == (1, 1), said
    found = read_output(out)
    assert found.paths == [str(folder / f"{name}.png") for name in "acb"]
    assert list(found.errors) == [str(folder / "d.png")]


async def test_file_named_twice_is_embedded_once(fake, tmp_path):
    out, folder = tmp_path / "all.npz", write(tmp_path / "d", "a.jpg", "b.jpg")
    names = (folder / "b.jpg", folder, folder / "a.jpg")
    status, _, said = await resnet50("embed", *names, "--out", out, server=fake.address)
    assert status == 0, said
    assert read_output(out).paths == [str(folder / "b.jpg"), str(folder / "a.jpg")]
    assert len(fake.received) == 2


async def test_run_without_results_leaves_no_checkpoint(tmp_path):
    folder = write(tmp_path / "d", "a.jpg")
    out = tmp_path / "all.npz"
    embed = ("embed", folder, "--out", out, "--timeout-s", 0.5)
    status, _, said = await resnet50(*embed, server="127.0.0.1:1")
    assert status == 3, said
    assert [file.name for file in tmp_path.iterdir()] == ["d"]


@pytest.mark.parametrize("content", ["no database", None], ids=["text", "folder"])
async def test_partial_file_that_is_no_checkpoint_is_refused(content, fake, tmp_path):
    out, folder = tmp_path / "all.npz", write(tmp_path / "d", "a.jpg")
    partial = tmp_path / "all.npz.partial"
    if content is None:
        partial.mkdir()
    else:
        partial.write_text(content)
    embed = ("embed", folder, "--out", out)
    status, _, said = await resnet50(*embed, server=fake.address)
    assert (status, str(partial) in said, out.exists()) == (2, True, False), said
    assert not fake.received
    if content is not None:
        assert "--restart" in said
        status, _, said = await resnet50(*embed, "--restart", server=fake.address)
        assert status == 0, said


@pytest.mark.parametrize(
    ("suffix", "module", "extra"),
    [(".parquet", "pyarrow", "parquet"), (".lance", "lance", "lance")],
)
def test_missing_package_of_an_output_is_named(suffix, module, extra, tmp_path):
    (tmp_path / f"{module}.py").write_text("raise ImportError")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "resnet50_cli", "embed", tmp_path),
            *("--out", tmp_path / f"x{suffix}", "--server", "127.0.0.1:1"),
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        timeout=120,
    )
    assert done.returncode == 2
    assert f"[{extra}]" in done.stderr
