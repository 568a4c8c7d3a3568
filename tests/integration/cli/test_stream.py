"""`resnet50 embed` and `resnet50 stream`: real processes, killed and stopped, against servers here.

The server runs in the test's own process, so that a test can hold its engine at a given image and
count what it computed.
"""

from __future__ import annotations

import asyncio
import collections
import csv
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from resnet50_server.engines.reference_check import fixed_image
from resnet50_server.engines.stub_engines import NullEngine
from tests.support.pictures import photo_like
from tests.support.processes import ForkedProcess, start
from tests.support.serving import serving, until

IMAGES = 600
SHARD = 256
VARIANTS = ["one=random:1", "two=random:2"]


@dataclass
class Engine:
    """Counts of the patched engine, and its stop.

    Attributes:
        computed: How often each image was computed, by its mean.
        hold_at: It computes nothing after so many images until `go` is set.
    """

    computed: collections.Counter
    hold_at: int
    go: threading.Event

    @property
    def total(self) -> int:
        return sum(self.computed.values())


@pytest.fixture
def engine(monkeypatch):
    """Let each vector tell its image: its means of red, green and blue."""
    known = Engine(collections.Counter(), sys.maxsize, threading.Event())
    run, check = NullEngine.run, fixed_image((224, 224))

    def counted(self, images, top_k, with_embeddings):
        # The load's own: the warm-up's grey, and the image of its self-tests.
        if all((image == 128).all() or (image == check).all() for image in images):
            return run(self, images, top_k, with_embeddings)
        if known.total + len(images) > known.hold_at:
            assert known.go.wait(60)
        output = run(self, images, top_k, with_embeddings)
        means = np.array([image.mean(axis=(0, 1)) for image in images], dtype=np.float32)
        known.computed.update(map(tuple, means.round(1).tolist()))
        if with_embeddings:
            output.embeddings[:, :3] = means
        return output

    monkeypatch.setattr(NullEngine, "run", counted)
    yield known
    known.go.set()


def colour(number: int) -> tuple[float, ...]:
    return (number % 25 * 10.0, number // 25 * 10.0, 77.0)


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """600 pictures of one colour each, no two alike."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(IMAGES):
        Image.new("RGB", (8, 8), tuple(map(int, colour(number)))).save(folder / f"{number:04}.png")
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=20)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for number in range(40):
            frame = av.VideoFrame.from_image(photo_like(160, 120, number % 3))
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


class Command:
    """A run of `resnet50`."""

    def __init__(self, process: ForkedProcess) -> None:
        self.process = process

    @classmethod
    async def start(cls, *arguments: object, server: Any) -> Command:
        environment = {key: value for key, value in os.environ.items() if "RESNET50" not in key}
        address = server if isinstance(server, str) else server.addresses[0]
        environment["RESNET50_SERVER"] = address
        return cls(await asyncio.to_thread(start, "resnet50", *arguments, environment=environment))

    async def end(self) -> tuple[int, str, str]:
        """Return exit status, stdout and stderr."""
        stdout, stderr = await asyncio.to_thread(self.process.communicate, timeout=60)
        return self.process.returncode, stdout, stderr

    async def says(self, words: str) -> None:
        """Return when a line of stderr holds these words."""
        while words not in (line := await asyncio.to_thread(self.process.stderr.readline)):
            assert line, f"ended without saying {words!r}"


async def resnet50(*arguments: object, server: object) -> tuple[int, str, str]:
    return await (await Command.start(*arguments, server=server)).end()


def on_disk(partial: Path) -> int:
    count = 0
    for shard in partial.glob("*.npz"):
        with np.load(shard) as data:
            count += len(data["paths"])
    return count


def assert_whole(out: Path, folder: Path) -> None:
    """Make sure that a file has all images in order, each with its own vector."""
    with np.load(out) as found:
        assert sorted(found.files) == ["digest", "paths", "space", "variant", "vectors"]
        paths, vectors = found["paths"].tolist(), found["vectors"]
    assert paths == sorted(map(str, folder.glob("*.png")))
    assert (vectors.shape, vectors.dtype) == ((IMAGES, 2048), np.float32)
    colours = [colour(number) for number in range(IMAGES)]
    np.testing.assert_allclose(vectors[:, :3], colours, atol=1)
    assert [file.name for file in out.parent.iterdir()] == [out.name]


async def test_embed_rides_one_stream_and_leaves_the_file_only(engine, many, tmp_path):
    out = tmp_path / "all.npz"
    async with serving() as server:
        status, _, said = await resnet50("embed", many, "--out", out, server=server)
    assert (status, "600 images embedded" in said) == (0, True), said
    assert_whole(out, many)
    assert engine.total == IMAGES


async def test_killed_embed_goes_on_from_what_is_on_disk(engine, many, tmp_path):
    out = tmp_path / "all.npz"
    partial = tmp_path / "all.npz.partial"
    engine.hold_at = SHARD + 100
    async with serving() as server:
        command = await Command.start("embed", many, "--out", out, server=server)
        await until(lambda: (partial / "000000.npz").exists())
        command.process.kill()
        await command.end()
        kept = on_disk(partial)
        assert kept >= SHARD
        assert not out.exists()
        engine.go.set()
        status, _, said = await resnet50("embed", many, "--out", out, server=server)
    assert status == 0, said
    assert_whole(out, many)
    assert [engine.computed[colour(number)] for number in range(kept)] == [1] * kept
    again = [engine.computed[colour(number)] - 1 for number in range(kept, IMAGES)]
    # Computed or pending in the server when the command died, and in no shard.
    assert set(again) <= {0, 1}
    assert sum(again) <= engine.hold_at - kept + 16


async def test_interrupted_embed_loses_and_repeats_nothing(engine, many, tmp_path):
    out = tmp_path / "all.npz"
    partial = tmp_path / "all.npz.partial"
    engine.hold_at = 300
    async with serving() as server:
        command = await Command.start("embed", many, "--out", out, "--json", server=server)
        await until(lambda: (partial / "000000.npz").exists())
        command.process.send_signal(signal.SIGINT)
        await command.says("stopping")
        engine.go.set()
        status, stdout, _ = await command.end()
        assert status == 130
        kept = engine.total
        assert json.loads(stdout) == {"embedded": kept, "out": None, "checkpoint": str(partial)}
        assert SHARD <= on_disk(partial) == kept < IMAGES
        status, _, said = await resnet50("embed", many, "--out", out, server=server)
    assert status == 0, said
    assert_whole(out, many)
    assert engine.total == IMAGES
    assert set(engine.computed.values()) == {1}


async def test_second_embed_is_refused_but_not_after_a_kill(engine, many, tmp_path):
    out = tmp_path / "all.npz"
    engine.hold_at = 300
    async with serving() as server:
        first = await Command.start("embed", many, "--out", out, server=server)
        await until(lambda: (tmp_path / "all.npz.partial" / "000000.npz").exists())
        status, _, said = await resnet50("embed", many, "--out", out, "--restart", server=server)
        assert (status, "another run is writing" in said) == (1, True), said
        assert on_disk(tmp_path / "all.npz.partial") == SHARD
        first.process.kill()
        await first.end()
        engine.go.set()
        status, _, said = await resnet50("embed", many, "--out", out, server=server)
    assert status == 0, said
    assert_whole(out, many)


async def test_lost_server_exits_3_and_keeps_finished_work(engine, many, tmp_path):
    out, endless = tmp_path / "all.npz", tmp_path / "endless.png"
    os.mkfifo(endless)  # without a writer: the command waits for its last image
    async with serving() as server:
        command = await Command.start(
            "embed", many, endless, "--out", out, "--timeout-s", 0.5, server=server
        )
        await until(lambda: engine.total == IMAGES)
        await server.stop()
        status, _, said = await command.end()
    kept = on_disk(tmp_path / "all.npz.partial")
    assert (status, f"{kept} images embedded, saved" in said) == (3, True), said
    assert kept >= IMAGES - 16
    assert not out.exists()


async def test_other_weights_or_options_do_not_mix_with_what_is_there(engine, many, tmp_path):
    out = tmp_path / "all.npz"
    engine.hold_at = 300
    async with serving(variants=VARIANTS) as server:
        embed = ("embed", many, "--out", out)
        command = await Command.start(*embed, "--variant", "one", server=server)
        await until(lambda: (tmp_path / "all.npz.partial" / "000000.npz").exists())
        command.process.kill()
        await command.end()
        engine.go.set()
        others = ("--variant", "two"), ("--variant", "one", "--l2-normalize")
        for options in (*others, ("--variant", "one", "--background", "white")):
            status, _, said = await resnet50(*embed, *options, server=server)
            assert (status, "--restart" in said, "one@" in said) == (2, True, True), said
        status, _, said = await resnet50(*embed, "--variant", "two", "--restart", server=server)
        assert status == 0, said
    assert_whole(out, many)
    assert str(np.load(out)["variant"]) == "two"


async def test_changed_and_failed_images_are_recomputed(engine, tmp_path):
    folder, out = tmp_path / "images", tmp_path / "all.npz"
    folder.mkdir()
    for number in range(300):
        Image.new("RGB", (8, 8), (number % 250, 0, 0)).save(folder / f"{number:04}.png")
    (folder / "0007.png").write_bytes(b"no image")
    engine.hold_at = 290
    async with serving() as server:
        command = await Command.start("embed", folder, "--out", out, server=server)
        await until(lambda: (tmp_path / "all.npz.partial" / "000000.npz").exists())
        command.process.kill()
        await command.end()
        engine.go.set()
        for name, red in (("0007.png", 7), ("0003.png", 201)):
            Image.new("RGB", (9, 9), (red, 255, 255)).save(folder / name)
        status, _, said = await resnet50("embed", folder, "--out", out, server=server)
    assert status == 0, said
    with np.load(out) as found:
        assert found["paths"].tolist() == sorted(map(str, folder.glob("*.png")))
        vectors = found["vectors"]
    np.testing.assert_allclose(vectors[3, :3], (201, 255, 255), atol=1)
    np.testing.assert_allclose(vectors[7, :3], (7, 255, 255), atol=1)
    np.testing.assert_allclose(vectors[8, :3], (8, 0, 0), atol=1)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path):
    (tmp_path / "pyarrow.py").write_text("raise ImportError")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "resnet50_cli", "embed", tmp_path),
            *("--out", tmp_path / "x.parquet", "--server", "127.0.0.1:1"),
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        timeout=120,
    )
    assert done.returncode == 2
    assert "[parquet]" in done.stderr


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def shapes(path: Path) -> list[tuple[int, int]]:
    with av.open(str(path)) as file:
        return [(frame.width, frame.height) for frame in file.decode(video=0)]


async def test_clip_is_classified_written_and_annotated(clip, tmp_path):
    table, video = tmp_path / "out.csv", tmp_path / "out.mp4"
    outputs = ("--csv", table, "--annotate", video)
    async with serving() as server:
        status, summary, said = await resnet50("stream", clip, *outputs, server=server)
        jpeg = await resnet50(
            "stream", clip, "--encoding", "jpeg", "--fps", 5, "--json", server=server
        )
    assert status == 0, said
    assert summary.startswith("40 frames sent, 40 answered, 0 dropped, 0 failed; latency p50")
    assert "labels: tench 40" in summary
    found = rows(table)
    assert [row["frame"] for row in found] == [str(number) for number in range(40)]
    assert found[1]["time_s"] == "0.05"
    assert {(row["outcome"], row["label"], row["replaced_by"]) for row in found} == {
        ("answered", "tench", "")
    }
    assert all(float(row["latency_ms"]) > 0 for row in found)
    assert 0 < float(found[0]["probability"]) <= 1
    assert shapes(video) == [(160, 120)] * 40

    status, lines, said = jpeg
    objects = [json.loads(line) for line in lines.splitlines()]
    numbers = [one["frame"] for one in objects]
    assert (status, f"{len(numbers)} frames sent" in said) == (0, True), said
    assert numbers == sorted(set(numbers))
    assert 9 <= len(numbers) <= 11  # 2 s at 5 a second; the end may count


async def test_annotation_draws_the_label_and_nothing_else(clip, tmp_path):
    video = tmp_path / "out.mp4"
    async with serving() as server:
        await resnet50("stream", clip, "--annotate", video, server=server)
    with av.open(str(clip)) as before, av.open(str(video)) as after:
        given = next(before.decode(video=0)).to_ndarray(format="rgb24").astype(int)
        drawn = next(after.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    assert np.abs(given - drawn)[:90].mean() < 8
    assert drawn[-12:].max() > 150  # white letters
    assert np.median(drawn[-12:]) < 40  # on black


async def test_folder_takes_a_videos_place_and_bad_images_fail_alone(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(5):
        photo_like(64 + number, 48, number).save(folder / f"{number}.png")
    (folder / "2.png").write_bytes(b"no image")
    table, video = tmp_path / "out.csv", tmp_path / "out.mp4"
    async with serving() as server:
        status, _, said = await resnet50(
            *("stream", folder, "--fps", 10, "--json", "--csv", table, "--annotate", video),
            server=server,
        )
    assert (status, "2.png: " in said) == (1, True), said
    found = rows(table)
    assert [row["outcome"] for row in found] == ["answered"] * 2 + ["failed"] + ["answered"] * 2
    assert [row["time_s"] for row in found] == ["0.0", "0.1", "0.2", "0.3", "0.4"]
    assert shapes(video) == [(64, 48)] * 5


async def test_latest_counts_what_it_drops(engine, clip, tmp_path):
    table, video = tmp_path / "out.csv", tmp_path / "out.mp4"
    engine.hold_at = 0
    async with serving() as server:
        command = await Command.start(
            *("stream", clip, "--delivery", "latest", "--concurrency", 64),
            *("--json", "--csv", table, "--annotate", video),
            server=server,
        )
        # One frame is being computed and the last one waits: all between are dropped.
        readline = command.process.stdout.readline
        lines = [json.loads(await asyncio.to_thread(readline)) for _ in range(38)]
        engine.go.set()
        status, _, said = await command.end()
    assert status == 0, said
    assert {line["outcome"] for line in lines} == {"dropped"}
    assert "40 frames sent, 2 answered, 38 dropped, 0 failed" in said
    found = rows(table)
    assert sorted(int(row["frame"]) for row in found) == list(range(40))
    dropped = [row for row in found if row["outcome"] == "dropped"]
    assert all(int(row["replaced_by"]) == int(row["frame"]) + 1 for row in dropped)
    assert shapes(video) == [(160, 120)] * 40


async def test_interrupted_stream_finishes_its_files(engine, clip, tmp_path):
    table, video = tmp_path / "out.csv", tmp_path / "out.mp4"
    engine.hold_at = 10
    async with serving(max_batch_size=1) as server:
        command = await Command.start(
            *("stream", clip, "--concurrency", 4, "--csv", table, "--annotate", video),
            server=server,
        )
        await until(lambda: engine.total == 10)
        command.process.send_signal(signal.SIGINT)
        await command.says("stopping")
        engine.go.set()
        status, summary, said = await command.end()
    assert status == 0, said
    count = len(rows(table))
    assert 10 <= count <= 15
    assert f"{count} frames sent, {count} answered" in summary
    assert len(shapes(video)) == count


async def test_stream_tells_with_its_status_what_went_wrong(clip, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    async with serving() as server:
        for status, words, arguments in (
            (2, "--annotate", [clip, "--annotate", tmp_path / "out.avi"]),
            (2, "--csv", [clip, "--csv", tmp_path / "nowhere" / "out.csv"]),
            (1, "text.mp4", [tmp_path / "text.mp4"]),
            (1, "none.mp4", [tmp_path / "none.mp4"]),
            (1, "IMAGENET1K_V2", [clip, "--variant", "cats"]),
        ):
            found, _, said = await resnet50("stream", *arguments, server=server)
            assert (found, words in said, "Traceback" in said) == (status, True, False), said
    found, _, said = await resnet50("stream", clip, server="127.0.0.1:1")
    assert (found, "127.0.0.1:1" in said) == (3, True), said
