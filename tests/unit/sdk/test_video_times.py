"""Times of frames whose source's timestamps jump."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from resnet50_client import frames_from_video
from resnet50_client.video.clock import Clock, Pacer
from tests.support.clips import fill, write_clip

FPS = 25


class Now:
    """A clock that is set by the test."""

    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


def times(timestamps: list[float | None], fps: float | None = FPS, **options) -> list[float]:
    clock = Clock(fps, **({"restarts": True, "live": False} | options))
    return [clock.time_s(one) for one in timestamps]


@pytest.mark.parametrize(
    "timestamps, expected",
    [
        pytest.param([5, 5.04, 5.08], [0, 0.04, 0.08], id="from the first frame"),
        pytest.param([0, 0.04, 3600, 3600.04], [0, 0.04, 0.08, 0.12], id="ahead"),
        pytest.param([3600, 3600.04, 0, 0.04], [0, 0.04, 0.08, 0.12], id="back"),
        pytest.param([0, 0.5, 1, 0, 0.5, 1], [0, 0.5, 1, 1.5, 2, 2.5], id="loop"),
        pytest.param([0, 0.04, 2.03], [0, 0.04, 2.03], id="a step of 2 s"),
        pytest.param([0, 0.04, 0.03, 0.08], [0, 0.04, 0.04, 0.08], id="jitter"),
        pytest.param([None, None, None], [0, 0.04, 0.08], id="no timestamps"),
        pytest.param([0, None, 0.08], [0, 0.04, 0.08], id="a missing timestamp"),
        pytest.param([0, 5, 10, 15], [0, 5, 10, 15], id="a slow camera"),
        pytest.param([1e9, -1e9, 1e9], [0, 0.04, 0.08], id="far apart"),
    ],
)
def test_times_go_on_where_the_source_restarts(timestamps, expected):
    fps = 0.2 if timestamps == [0, 5, 10, 15] else FPS
    assert times(timestamps, fps) == pytest.approx(expected)


def test_steps_ahead_are_kept_where_formats_permit_no_restart():
    assert times([0, 0.04, 3600, 0], restarts=False) == pytest.approx([0, 0.04, 3600, 7199.96])


def test_times_never_decrease():
    draw = np.random.default_rng(0)
    for _ in range(200):
        timestamps = list(np.cumsum(draw.normal(0.04, draw.choice([0.01, 1, 1000]), 50)))
        for restarts in (False, True):
            assert np.all(np.diff(times(timestamps, restarts=restarts)) >= 0)


def test_live_times_go_on_by_this_machines_clock():
    now = Now()
    clock = Clock(FPS, restarts=True, live=True, now=now)
    seen = []
    for timestamp, passed_s in ((7, 0), (7.04, 0.1), (0, 5), (0.04, 0.1)):
        now.s += passed_s
        seen.append(clock.time_s(timestamp))
    clock.reconnected()
    now.s += 10
    seen.append(clock.time_s(0.08))
    assert seen == pytest.approx([0, 0.04, 5.04, 5.08, 15.08])


class Waits:
    """An event that records waits, and moves the clock."""

    def __init__(self, now: Now) -> None:
        self.now, self.waits = now, []

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now.s += seconds


@pytest.mark.parametrize(
    "max_wait_s, waits", [(float("inf"), [0.04, 3600, 0.04]), (2, [0.04, 2, 0.04])]
)
def test_playback_waits_for_each_frame(max_wait_s, waits, monkeypatch):
    now = Now()
    monkeypatch.setattr("resnet50_client.video.clock.time.monotonic", now)
    stop = Waits(now)
    pacer = Pacer(stop, max_wait_s)
    for time_s in (0, 0.04, 3600.04, 3600.08):
        pacer.wait(time_s)
    assert stop.waits == pytest.approx(waits)


def recording(path: Path, start_s: float, first: int) -> bytes:
    """Return 10 frames of MPEG-TS; their luma counts from `first`."""
    frames = [fill((first + number, 128, 128), 64, 48, "yuv420p") for number in range(10)]
    at_ms = [round(1000 * (start_s + number / FPS)) for number in range(10)]
    options = {"crf": "1", "tune": "zerolatency"}
    write_clip(path, frames, codec="libx264", times_ms=at_ms, codec_options=options, fps=FPS)
    return path.read_bytes()


@pytest.mark.parametrize("starts_s", [(0, 3600), (3600, 0), (0, 0), (0, 90_000, 5)])
@pytest.mark.parametrize("real_time", [False, True])
def test_joined_recordings_are_read_as_one(starts_s, real_time, tmp_path):
    whole = tmp_path / "whole.ts"
    whole.write_bytes(
        b"".join(
            recording(tmp_path / f"{number}.ts", start_s, 40 + 20 * number)
            for number, start_s in enumerate(starts_s)
        )
    )
    frames = list(frames_from_video(whole, real_time=real_time))
    lumas = [float(frame.image[:48].mean()) for frame in frames]
    expected = [40 + 20 * part + number for part in range(len(starts_s)) for number in range(10)]
    np.testing.assert_allclose(lumas, expected, atol=1)
    steps = np.diff([frame.time_s for frame in frames])
    np.testing.assert_allclose(steps, 1 / FPS, atol=0.002)


def test_stills_of_a_file_keep_their_times(tmp_path):
    frames = [fill((value, 128, 128), 32, 32, "yuv420p") for value in (50, 60, 70)]
    path = write_clip(tmp_path / "slides.mkv", frames, times_ms=[0, 5000, 10_000])
    assert [frame.time_s for frame in frames_from_video(path)] == pytest.approx([0, 5, 10])


def test_a_set_event_ends_the_frames(tmp_path):
    frames = [fill((value, 128, 128), 32, 32, "yuv420p") for value in range(20, 60)]
    path = write_clip(tmp_path / "clip.mkv", frames, fps=1)
    stop = threading.Event()
    given = []
    for frame in frames_from_video(path, real_time=True, stop=stop):
        given.append(frame)
        stop.set()
    assert len(given) == 1
