"""`frames_from_raw`: frames of raw video from a pipe."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest

from resnet50_client import Client, frames_from_raw
from resnet50_client.images import RawPixels, read_image
from resnet50_client.testing import FakeServer

WIDTH, HEIGHT = 6, 4


def video(count: int, size: int) -> bytes:
    """Return the bytes of so many frames of `size` bytes, each filled with its number."""
    return b"".join(bytes([number]) * size for number in range(count))


@pytest.mark.parametrize(
    ("pixel_format", "shape"),
    [
        ("RGB", (HEIGHT, WIDTH, 3)),
        ("BGR", (HEIGHT, WIDTH, 3)),
        ("RGBA", (HEIGHT, WIDTH, 4)),
        ("GRAY", (HEIGHT, WIDTH, 1)),
        ("I420", (HEIGHT * 3 // 2, WIDTH)),
        ("NV12", (HEIGHT * 3 // 2, WIDTH)),
    ],
)
def test_frames_are_those_of_the_pipe(pixel_format, shape):
    pipe = io.BytesIO(video(3, int(np.prod(shape))))
    frames = list(frames_from_raw(pipe, WIDTH, HEIGHT, pixel_format, fps=10))
    assert [frame.image.shape for frame in frames] == [shape] * 3
    assert [int(frame.image.max()) for frame in frames] == [0, 1, 2]
    assert [frame.time_s for frame in frames] == [0.0, 0.1, 0.2]
    assert [frame.number for frame in frames] == [0, 1, 2]
    sent = read_image(frames[1])
    assert isinstance(sent, RawPixels)
    assert (sent.width, sent.height, sent.pixel_format) == (WIDTH, HEIGHT, pixel_format)
    assert pipe.closed


class Parts(io.RawIOBase):
    """An unbuffered pipe: each read returns a few bytes."""

    def __init__(self, content: bytes) -> None:
        self.content = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        return self.content.readinto(memoryview(buffer)[:7])


def test_unbuffered_pipe_is_read_in_parts():
    size = WIDTH * HEIGHT * 3
    frames = list(frames_from_raw(Parts(video(2, size)), WIDTH, HEIGHT))
    assert [int(frame.image.min()) for frame in frames] == [0, 1]


def test_pipe_that_ends_within_a_frame_is_an_error():
    size = WIDTH * HEIGHT * 3
    frames = frames_from_raw(io.BytesIO(video(2, size)[:-5]), WIDTH, HEIGHT)
    assert next(frames).number == 0
    with pytest.raises(OSError, match=f"within frame 1, after {size - 5} of {size} bytes"):
        next(frames)


class Empty:
    """A non-blocking pipe without data."""

    def read(self, size: int) -> None:
        return None

    def __enter__(self) -> Empty:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def test_pipes_that_cannot_be_read_say_so():
    with pytest.raises(OSError, match="non-blocking"):
        next(frames_from_raw(Empty(), WIDTH, HEIGHT))
    with pytest.raises(TypeError, match="binary mode"):
        next(frames_from_raw(io.StringIO("text"), WIDTH, HEIGHT))


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ((b"bytes", 4, 4), TypeError, "pipe: is bytes"),
        ((io.BytesIO(), 0, 4), ValueError, "width: is 0, must be 1 to 65535"),
        ((io.BytesIO(), 4, True), ValueError, "height: is True"),
        ((io.BytesIO(), 4, 4, "rgb24"), ValueError, "pixel_format: is 'rgb24', must be one of RGB"),
        ((io.BytesIO(), 5, 4, "I420"), ValueError, "must be even for I420"),
    ],
)
def test_wrong_arguments_raise_at_the_call(arguments, error, says):
    with pytest.raises(error, match=says):
        frames_from_raw(*arguments)


@pytest.mark.parametrize("fps", [0, -1.0, float("inf"), float("nan"), "25", True])
def test_wrong_frame_rates_are_refused(fps):
    with pytest.raises(ValueError, match="fps: is"):
        frames_from_raw(io.BytesIO(), 4, 4, fps=fps)


def test_frames_of_a_process_are_classified_until_it_is_stopped():
    """A program that writes without end, as a camera does, ends with its stream."""
    write = "import sys\nwhile True: sys.stdout.buffer.write(bytes(range(48)))"
    process = subprocess.Popen(
        [sys.executable, "-c", write], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    with process, FakeServer() as server, Client(server.address) as client:
        frames = frames_from_raw(process.stdout, 4, 4)
        with client.classify_stream(frames, window=2) as stream:
            for answer in stream:
                assert answer.source.number == answer.frame_id
                if answer.frame_id == 9:
                    break
        process.wait(60)
    assert process.stdout.closed
    assert [one.image.pixels for one in server.received[:10]] == [bytes(range(48))] * 10
