"""`resnet50 stream`: real processes, killed and stopped, against servers here.

The server runs in the test's own process, so that a test can hold its engine at a given image and
count what it computed.
"""

from __future__ import annotations

import asyncio
import csv
import json
import signal
from pathlib import Path

import av
import numpy as np
import pytest

from resnet50_client.testing import FakeServer
from tests.support.command_runs import Command, resnet50
from tests.support.counted_engine import counted_engine
from tests.support.pictures import photo_like
from tests.support.serving import serving, until


@pytest.fixture
def engine(monkeypatch):
    yield from counted_engine(monkeypatch)


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
    assert [one["frame_id"] for one in objects] == list(range(len(numbers)))
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


async def test_truncated_image_of_a_folder_is_answered_with_a_warning(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    photo_like(320, 240).save(folder / "0.jpg")
    content = (folder / "0.jpg").read_bytes()
    (folder / "1.jpg").write_bytes(content[: len(content) * 2 // 3])
    async with serving(truncated_images="accept") as server:
        status, _, said = await resnet50("stream", folder, server=server)
    assert status == 0, said
    words = " ".join(said.split())
    assert f"{folder / '1.jpg'}: the image is truncated; the result is that of the part" in words
    assert "0.jpg: the image is" not in words


class NoCategory(FakeServer):
    """Answers without a category, as a variant with thresholds may."""

    def answer(self, method, options, image, context):
        found = super().answer(method, options, image, context)
        found.ClearField("categories")
        return found


async def test_frame_without_a_category_is_answered_without_a_label(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    photo_like(64, 48).save(folder / "0.png")
    table, video = tmp_path / "out.csv", tmp_path / "out.mp4"
    outputs = ("--csv", table, "--annotate", video)
    with NoCategory() as server:
        status, summary, said = await resnet50("stream", folder, *outputs, server=server.address)
    assert (status, "labels: no category 1" in summary) == (0, True), said
    (row,) = rows(table)
    assert (row["outcome"], row["label"], row["probability"]) == ("answered", "", "")
    assert shapes(video) == [(64, 48)]


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
    assert all(int(row["replaced_by"]) == int(row["frame_id"]) + 1 for row in dropped)
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


async def test_table_that_cannot_be_made_leaves_no_video(clip, tmp_path):
    video = tmp_path / "out.mp4"
    (tmp_path / "out.csv").mkdir()
    async with serving() as server:
        status, _, said = await resnet50(
            "stream", clip, "--annotate", video, "--csv", tmp_path / "out.csv", server=server
        )
    assert (status, "out.csv" in said) == (1, True), said
    assert not video.exists()


async def test_table_that_cannot_be_written_fails_but_the_video_is_whole(clip, tmp_path):
    video, table = tmp_path / "out.mp4", tmp_path / "out.csv"
    table.symlink_to("/dev/full")
    async with serving() as server:
        status, _, said = await resnet50(
            "stream", clip, "--annotate", video, "--csv", table, server=server
        )
    assert (status, "No space left on device" in said) == (1, True), said
    assert shapes(video) == [(160, 120)] * 40
