"""Sources of `frames_from_video`: files, cameras, and how they are opened."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from resnet50_client import frames_from_video
from resnet50_client.video import source as video_source
from tests.support.clips import picture_frame, write_clip
from tests.support.pictures import picture


@pytest.fixture
def opened(monkeypatch) -> list:
    """List the containers that are opened from now on, and whether each was closed."""
    containers = []
    real = av.open

    class Watched:
        def __init__(self, container) -> None:
            self.container, self.closed = container, False
            containers.append(self)

        def __getattr__(self, name: str):
            return getattr(self.container, name)

        def close(self) -> None:
            self.closed = True
            self.container.close()

    def watch(file, mode="r", **options):
        container = real(file, mode, **options)
        return Watched(container) if mode == "r" else container

    monkeypatch.setattr(av, "open", watch)
    return containers


def test_source_opens_at_first_frame_and_closes_with_generator(opened, tmp_path):
    path = write_clip(tmp_path / "clip.mkv", [picture_frame(picture(64, 48))] * 5)
    frames = frames_from_video(path)
    frames.close()
    assert opened == []
    frames = frames_from_video(path)
    next(frames)
    assert [one.closed for one in opened] == [False]
    frames.close()
    assert [one.closed for one in opened] == [True]
    assert len(list(frames_from_video(path))) == 5
    assert [one.closed for one in opened] == [True, True]


def silence(path) -> None:
    """Write a file that holds sound only."""
    with av.open(path, "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))


def sources_that_are_no_video(folder) -> Iterator[tuple[object, type, str]]:
    yield folder / "none.mp4", FileNotFoundError, "none.mp4"
    yield str(folder), OSError, folder.name
    yield "http://127.0.0.1:1/clip.mp4", ConnectionError, "127.0.0.1:1"
    yield 4242, OSError, "/dev/video4242"
    yield "/dev/video4242", OSError, "/dev/video4242"
    (folder / "text.mp4").write_bytes(b"no video at all " * 100)
    yield folder / "text.mp4", OSError, r"text\.mp4.*cannot be read as video"
    (folder / "empty.mp4").touch()
    yield folder / "empty.mp4", OSError, r"empty\.mp4"
    yield io.BytesIO(b"no video"), OSError, "BytesIO"
    silence(folder / "sound.wav")
    yield folder / "sound.wav", OSError, r"sound\.wav.*contains no video"


def test_errors_name_the_source(opened, tmp_path):
    for source, kind, text in sources_that_are_no_video(tmp_path):
        with pytest.raises(kind, match=text):
            next(frames_from_video(source))
    assert [one.closed for one in opened] == [True]  # the sound's: all others do not open


def test_what_cannot_be_decoded_is_left_out(tmp_path, caplog):
    path = write_clip(
        tmp_path / "clip.avi",
        [picture_frame(picture(64, 48, "RGB"), "yuvj420p")] * 6,
        codec="mjpeg",
        full_range=True,
    )
    content = bytearray(path.read_bytes())
    starts = [at for at in range(len(content) - 2) if content[at : at + 3] == b"\xff\xd8\xff"]
    assert len(starts) == 6
    length = starts[3] - starts[2] - 8
    content[starts[2] : starts[2] + length] = bytes(length)
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        given = list(frames_from_video(path))
    assert len(given) == 5
    assert "clip.avi: a packet cannot be decoded" in caplog.text


@pytest.mark.parametrize(
    "options, text",
    [
        ({"fps": 0}, "fps: is 0"),
        ({"fps": float("nan")}, "fps: is nan"),
        ({"fps": "5"}, "fps: is '5'"),
        ({"fps": True}, "fps: is True"),
        ({"jpeg_quality": "90"}, "jpeg_quality: is '90'"),
        ({"encoding": "png"}, "encoding: is 'png'"),
        ({"jpeg_quality": 0}, "jpeg_quality: is 0"),
        ({"timeout_s": 0}, "timeout_s: is 0"),
        ({"reconnect_s": -1}, "reconnect_s: is -1"),
        ({"rate": 0}, "rate: is 0"),
        ({"size": (0, 48)}, r"size: is \(0, 48\)"),
        ({"size": "1920x1080"}, "size: is '1920x1080'"),
        ({"av_options": {"rtsp_transport": None}}, "av_options: 'rtsp_transport'"),
        ({"camera_format": "mjpeg"}, r"go with a camera, not with clip\.mp4"),
        ({"rate": 30}, r"go with a camera, not with clip\.mp4"),
    ],
)
def test_wrong_arguments_raise_at_the_call(options, text):
    with pytest.raises(ValueError, match=text):
        frames_from_video("clip.mp4", **options)


@pytest.mark.parametrize("source", [None, True, 1.5, ["clip.mp4"]])
def test_unknown_types_of_sources_raise_at_the_call(source):
    with pytest.raises(TypeError, match="source: "):
        frames_from_video(source)


@pytest.fixture
def handed_over(monkeypatch) -> list:
    """List what PyAV is asked to open from now on; it is opened none the less."""
    asked = []
    real = av.open

    def watch(file, mode="r", **arguments):
        asked.append((file, arguments))
        return real(file, mode, **arguments)

    monkeypatch.setattr(av, "open", watch)
    return asked


@pytest.mark.parametrize("source", [4242, "/dev/video4242", Path("/dev/video4242")])
def test_cameras_are_asked_for_format_size_and_rate(source, handed_over):
    """No camera is here: how FFmpeg's device takes the options is not tested."""
    options = {"camera_format": "mjpeg", "size": (1920, 1080), "rate": 30}
    with pytest.raises(OSError, match="/dev/video4242"):
        next(frames_from_video(source, **options, av_options={"timestamps": "abs"}))
    ((file, arguments),) = handed_over
    assert file == "/dev/video4242"
    assert arguments["format"] == "v4l2"
    assert arguments["options"] == {
        "input_format": "mjpeg",
        "video_size": "1920x1080",
        "framerate": "30",
        "timestamps": "abs",
    }


def test_cameras_know_the_option_of_the_size():
    with pytest.raises(OSError, match="Invalid argument"):
        next(frames_from_video(4242, av_options={"video_size": "large"}))


def test_options_of_the_caller_replace_ours(handed_over):
    url = "rtsp://127.0.0.1:1/stream"
    for options in ({}, {"rtsp_transport": "udp", "user_agent": "x"}):
        with pytest.raises(OSError, match="127"):
            next(frames_from_video(url, av_options=options))
    assert [arguments["options"] for _, arguments in handed_over] == [
        {"rtsp_transport": "tcp"},
        {"rtsp_transport": "udp", "user_agent": "x"},
    ]


def test_files_are_decoded_by_several_threads(opened, tmp_path, monkeypatch):
    monkeypatch.setattr("resnet50_client.video.source.cpus", lambda: 3)
    frames = [picture_frame(picture(64, 48))] * 8
    path = write_clip(tmp_path / "clip.mp4", frames, codec="libx264")
    frames = frames_from_video(path)
    next(frames)
    context = opened[0].container.streams.video[0].codec_context
    assert "FRAME" in str(context.thread_type) or "AUTO" in str(context.thread_type)
    assert context.thread_count == 3
    assert len(list(frames)) == 7


def test_cpus_follow_a_container_quota(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(video_source, "CPU_QUOTA", tmp_path / "cpu.max")
    for text, cpus in (("250000 100000", 2), ("50000 100000", 1), ("max 100000", 8), ("", 8)):
        (tmp_path / "cpu.max").write_text(text)
        assert video_source.cpus() == cpus
    (tmp_path / "cpu.max").unlink()
    assert video_source.cpus() == 8


@pytest.mark.parametrize("module, options", [("av", {}), ("PIL", {"encoding": "jpeg"})])
def test_missing_extra_is_named_at_the_call(module, options, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=r"the extra \[video\]"):
        frames_from_video("clip.mp4", **options)


def test_raw_frames_need_no_pil(tmp_path):
    path = write_clip(tmp_path / "clip.mkv", [picture_frame(picture(64, 48))])
    script = (
        "import sys; from resnet50_client import frames_from_video;"
        "assert not {'av', 'PIL'} & set(sys.modules);"
        f"next(frames_from_video({str(path)!r}));"
        "print('av' in sys.modules, 'PIL' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "False"], done.stderr
