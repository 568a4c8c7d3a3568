"""`resnet50 stream` of files as cameras, phones and editors write them, to the engine's input."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from resnet50_client.video.tone_mapping import to_bt709
from resnet50_server.engines.reference_check import fixed_image
from resnet50_server.engines.stub_engines import NullEngine
from tests.support.clips import deep_frame, fill, hold_turned, write_clip, yuv_of
from tests.support.command_runs import resnet50
from tests.support.serving import serving
from tests.support.video_server import ending, refusing, silent, video_server

WIDTH, HEIGHT = 320, 240
# The colours of the four quarters: top left, top right, bottom left, bottom right.
QUARTERS = [(200, 40, 40), (40, 180, 40), (50, 60, 210), (230, 220, 60)]
COUNT = 4
LOSSLESS = {"crf": "2", "preset": "veryfast"}


@pytest.fixture
def images(monkeypatch) -> list[np.ndarray]:
    """List the images that the engine computes, uint8 [height, width, 3]."""
    given: list[np.ndarray] = []
    run, check = NullEngine.run, fixed_image((224, 224))

    def record(self, images, top_k, with_embeddings):
        # The load's own: the warm-up's grey, and the image of its self-tests.
        if not all((image == 128).all() or (image == check).all() for image in images):
            given.extend(np.array(image) for image in images)
        return run(self, images, top_k, with_embeddings)

    monkeypatch.setattr(NullEngine, "run", record)
    return given


async def stream(source: object, *arguments: object, server: Any) -> tuple[int, str, str]:
    """Run the command; return its exit code, stdout and stderr."""
    return await resnet50("stream", source, *arguments, server=server)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def quartered(levels: list[np.ndarray]) -> np.ndarray:
    """Return a picture [HEIGHT, WIDTH, 3] whose quarters have these values."""
    picture = np.empty((HEIGHT, WIDTH, 3), np.asarray(levels[0]).dtype)
    for number, level in enumerate(levels):
        top, left = HEIGHT // 2 * (number // 2), WIDTH // 2 * (number % 2)
        picture[top : top + HEIGHT // 2, left : left + WIDTH // 2] = level
    return picture


def numbered(number: int) -> list[tuple[int, int, int]]:
    """Return the quarters of a frame, which tell its number."""
    return [QUARTERS[(one + number) % 4] for one in range(4)]


def yuv_frame(colours: list[tuple[int, int, int]], full_range: bool = False) -> av.VideoFrame:
    """Make a BT.601 frame of four quarters."""
    quarters = [yuv_of(colour, "bt601", full_range) for colour in colours]
    frame = fill((0, 0, 0), WIDTH, HEIGHT, "yuvj420p" if full_range else "yuv420p")
    whole = quartered([np.array(quarter, np.uint8) for quarter in quarters])
    for channel, plane in enumerate(frame.planes):
        step = 2 if channel else 1
        padded = np.zeros((plane.buffer_size // plane.line_size, plane.line_size), np.uint8)
        level = whole[::step, ::step, channel]
        padded[: level.shape[0], : level.shape[1]] = level
        plane.update(padded.tobytes())
    return frame


@dataclass
class Clip:
    """A clip and what is to be seen of it.

    Attributes:
        path: The file.
        times_s: Times of its frames in seconds.
        quarters: Colours of each frame's quarters, as it is shown.
    """

    path: Path
    times_s: list[float]
    quarters: list[list[tuple[float, ...]]]


def variable_rate(folder: Path) -> Clip:
    times_ms = [0, 40, 50, 1400]
    frames = [yuv_frame(numbered(number)) for number in range(COUNT)]
    path = write_clip(
        folder / "vfr.mp4", frames, codec="libx264", times_ms=times_ms, codec_options=LOSSLESS
    )
    return Clip(path, [one / 1000 for one in times_ms], list(map(numbered, range(COUNT))))


def rotated(folder: Path) -> Clip:
    frames = [yuv_frame(numbered(number)) for number in range(COUNT)]
    path = write_clip(
        folder / "rotated.mp4", frames, codec="libx264", fps=10, codec_options=LOSSLESS
    )
    hold_turned(path, 90)
    turned = [[each[one] for one in (2, 0, 3, 1)] for each in map(numbered, range(COUNT))]
    return Clip(path, [number / 10 for number in range(COUNT)], turned)


def full_range(folder: Path) -> Clip:
    frames = [yuv_frame(numbered(number), full_range=True) for number in range(COUNT)]
    path = write_clip(
        folder / "full.mp4",
        frames,
        codec="libx264",
        fps=10,
        matrix="bt601",
        full_range=True,
        codec_options=LOSSLESS,
    )
    return Clip(path, [number / 10 for number in range(COUNT)], list(map(numbered, range(COUNT))))


def deep(folder: Path, matrix: str, transfer: str | None) -> Path:
    frames = [
        deep_frame(
            quartered([np.array(colour) / 255 for colour in numbered(number)]),
            "yuv420p10le",
            matrix,
        )
        for number in range(COUNT)
    ]
    options = {"crf": "2", "preset": "ultrafast", "x265-params": "log-level=none"}
    return write_clip(
        folder / f"{transfer}.mp4",
        frames,
        codec="libx265",
        fps=10,
        matrix=matrix,
        transfer=transfer,
        codec_options=options,
    )


def ten_bit(folder: Path) -> Clip:
    path = deep(folder, "bt709", None)
    return Clip(path, [number / 10 for number in range(COUNT)], list(map(numbered, range(COUNT))))


def hdr(folder: Path, transfer: str) -> Clip:
    path = deep(folder, "bt2020", transfer)
    shown = [
        [
            tuple(255 * to_bt709(np.array(colour) / 255, transfer))  # type: ignore[arg-type]
            for colour in numbered(number)
        ]
        for number in range(COUNT)
    ]
    return Clip(path, [number / 10 for number in range(COUNT)], shown)


CLIPS = {
    "variable rate": variable_rate,
    "rotated": rotated,
    "full range": full_range,
    "10 bits": ten_bit,
    "HDR (PQ)": lambda folder: hdr(folder, "pq"),
    "HDR (HLG)": lambda folder: hdr(folder, "hlg"),
}


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
@pytest.mark.parametrize("kind", CLIPS)
async def test_file_reaches_the_engine_as_it_is_shown(kind, encoding, images, tmp_path):
    clip = CLIPS[kind](tmp_path)
    table, video = tmp_path / "out.csv", tmp_path / "out.mp4"
    async with serving() as server:
        status, _, said = await stream(
            clip.path,
            # One frame at a time: the server decodes several in any order.
            *("--encoding", encoding, "--concurrency", 1, "--csv", table, "--annotate", video),
            server=server,
        )
    assert status == 0, said
    assert (kind in said) == kind.startswith("HDR")  # once, for the source
    times_s = [float(row["time_s"]) for row in rows(table)]
    assert times_s == pytest.approx(clip.times_s, abs=2e-3)
    assert len(images) == COUNT
    for image, quarters in zip(images, clip.quarters, strict=True):
        side = image.shape[0]
        near, far = side // 8, side - side // 8
        seen = [image[y, x] for y in (near, far) for x in (near, far)]
        np.testing.assert_allclose(seen, quarters, atol=8)
    with av.open(str(video)) as annotated:
        written = [frame.time for frame in annotated.decode(video=0)]
    assert np.subtract(written, written[0]) == pytest.approx(clip.times_s, abs=2e-3)


async def test_joined_recordings_are_played_and_annotated_without_a_gap(images, tmp_path):
    """Timestamps go ahead by an hour, and back again."""
    parts = []
    for start_ms in (0, 3_600_000, 0):
        frames = [yuv_frame(numbered(number)) for number in range(10)]
        path = write_clip(
            tmp_path / "part.ts",
            frames,
            codec="libx264",
            times_ms=[start_ms + 40 * number for number in range(10)],
            codec_options=LOSSLESS | {"tune": "zerolatency"},
        )
        parts.append(path.read_bytes())
    whole, table, video = (tmp_path / name for name in ("whole.ts", "out.csv", "out.mp4"))
    whole.write_bytes(b"".join(parts))
    async with serving() as server:
        status, _, said = await stream(
            whole, *("--delivery", "latest", "--csv", table, "--annotate", video), server=server
        )
    assert status == 0, said
    expected = [0.04 * number for number in range(30)]
    found = sorted(rows(table), key=lambda row: int(row["frame"]))
    assert [float(row["time_s"]) for row in found] == pytest.approx(expected, abs=5e-3)
    with av.open(str(video)) as annotated:
        written = [frame.time for frame in annotated.decode(video=0)]
    assert np.subtract(written, written[0]) == pytest.approx(expected, abs=5e-3)


def live_clip(folder: Path) -> bytes:
    frames = [yuv_frame(numbered(number)) for number in range(20)]
    options = LOSSLESS | {"tune": "zerolatency"}
    path = write_clip(folder / "live.ts", frames, codec="libx264", fps=25, codec_options=options)
    return path.read_bytes()


LIVE = ("--av-option", "probesize=20000", "--av-option", "analyzeduration=0")


async def test_broken_camera_is_connected_again_and_its_loss_reported(images, tmp_path):
    content, table = live_clip(tmp_path), tmp_path / "out.csv"
    with video_server(ending(content), ending(content), refusing) as camera:
        url = f"tcp://user:s3cret@127.0.0.1:{camera.port}"
        async with serving() as server:
            status, _, said = await stream(
                url, *LIVE, "--reconnect-s", 1.5, "--csv", table, server=server
            )
    assert status == 1, said
    words = " ".join(said.split())
    assert f"resnet50: tcp://***@127.0.0.1:{camera.port}: the stream ended; connecting" in words
    assert "connected again after" in words
    assert "lost after 40 frames" in words
    assert "check the source and the network" in words
    assert "s3cret" not in said
    assert "Traceback" not in said
    found = rows(table)
    assert [row["outcome"] for row in found] == ["answered"] * 40
    times_s = [float(row["time_s"]) for row in found]
    assert np.all(np.diff(times_s) > 0)


async def test_camera_that_falls_silent_ends_the_command_in_time(images, tmp_path):
    content = live_clip(tmp_path)
    with video_server(silent(content)) as camera:
        async with serving() as server:
            status, _, said = await stream(
                f"tcp://127.0.0.1:{camera.port}",
                *(*LIVE, "--timeout-s", 1, "--reconnect-s", 0),
                server=server,
            )
    assert status == 1, said
    assert "no data for 1 s; check the source, or raise timeout_s" in " ".join(said.split())


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["clip.mp4", "--camera-format", "mjpeg"], "go with a camera, not with clip.mp4"),
        (["clip.mp4", "--size", "1920"], "'1920' is not WIDTHxHEIGHT"),
        (["clip.mp4", "--av-option", "tcp"], "'tcp' is not NAME=VALUE"),
        ([".", "--reconnect-s", "5"], "reconnect_s: for videos only"),
        (["4242", "--camera-format", "mjpeg", "--size", "640x480", "--rate", "30"], "video4242"),
    ],
)
async def test_wrong_options_of_a_source_are_named(arguments, words):
    async with serving() as server:
        status, _, said = await stream(*arguments, server=server)
    assert (status in (1, 2), words in " ".join(said.split()), "Traceback" in said) == (
        True,
        True,
        False,
    ), said


def test_pictures_of_these_tests_are_what_they_say():
    whole = quartered([np.array(one, np.uint8) for one in QUARTERS])
    turned = np.asarray(Image.fromarray(whole).transpose(Image.Transpose.ROTATE_270))
    corners = [turned[y, x] for y in (0, -1) for x in (0, -1)]
    np.testing.assert_array_equal(corners, [QUARTERS[one] for one in (2, 0, 3, 1)])
