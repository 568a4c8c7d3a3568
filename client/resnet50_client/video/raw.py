"""Frames of raw video from a pipe, as FFmpeg and GStreamer write it."""

from __future__ import annotations

import math
from collections.abc import Generator
from numbers import Integral, Real
from typing import IO

import numpy as np

from .._arrays import CHANNELS, PIXEL_FORMATS
from ..images import VideoFrame

MAX_SIDE = 65535


def frames_from_raw(
    pipe: IO[bytes], width: int, height: int, pixel_format: str = "RGB", *, fps: float = 25.0
) -> Generator[VideoFrame, None, None]:
    """Yield the frames of raw video from a pipe, for the streams of both clients.

        command = ["ffmpeg", "-i", url, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as ffmpeg:
            client.classify_stream(frames_from_raw(ffmpeg.stdout, 1920, 1080))

    Raw video has no header: size and layout have to be those that the program writes. The pipe is
    closed when the generator ends or is closed, which ends the program.

    Args:
        pipe: A binary file object, e.g. `Popen.stdout`.
        width: Width of the frames in pixels.
        height: Height of the frames in pixels.
        pixel_format: "RGB" (FFmpeg's rgb24), "BGR" (bgr24), "RGBA" (rgba), "GRAY" (gray), "I420"
            (yuv420p) or "NV12" (nv12).
        fps: Frames per second, for `VideoFrame.time_s`.

    Raises:
        TypeError: The pipe is not a binary file object.
        ValueError: Another argument is invalid.
        OSError: The pipe cannot be read, or ends within a frame; raised where it does.
    """
    if not callable(getattr(pipe, "read", None)):
        raise TypeError(f"pipe: is {type(pipe).__name__}, must be a binary file object")
    for name, side in (("width", width), ("height", height)):
        good = isinstance(side, Integral) and not isinstance(side, bool)
        if not good or not 1 <= side <= MAX_SIDE:
            raise ValueError(f"{name}: is {side!r}, must be 1 to {MAX_SIDE} pixels")
    if pixel_format not in PIXEL_FORMATS:
        raise ValueError(
            f"pixel_format: is {pixel_format!r}, must be one of {', '.join(PIXEL_FORMATS)}"
        )
    if isinstance(fps, bool) or not isinstance(fps, Real) or not 0 < fps < math.inf:
        raise ValueError(f"fps: is {fps!r}, must be a number above 0")
    channels = CHANNELS.get(pixel_format)
    if channels is not None:
        return _frames(pipe, (height, width, channels), pixel_format, fps)
    if width % 2 or height % 2:
        raise ValueError(
            f"width, height: are {width} and {height}, must be even for {pixel_format}"
        )
    return _frames(pipe, (height * 3 // 2, width), pixel_format, fps)


def _frames(
    pipe: IO[bytes], shape: tuple[int, ...], pixel_format: str, fps: float
) -> Generator[VideoFrame, None, None]:
    number, size = 0, math.prod(shape)
    with pipe:
        while content := _read(pipe, size):
            if len(content) < size:
                raise OSError(
                    f"pipe: ended within frame {number}, after {len(content)} of {size} bytes;"
                    " width, height and pixel_format have to be those that the program writes"
                )
            pixels = np.frombuffer(content, np.uint8).reshape(shape)
            yield VideoFrame(pixels, pixel_format, number / fps, number)
            number += 1


def _read(pipe: IO[bytes], size: int) -> bytes:
    """Read so many bytes, or fewer at the end; an unbuffered pipe gives them in parts."""
    parts, missing = [], size
    while missing:
        part = pipe.read(missing)
        if part is None:
            raise OSError("pipe: is non-blocking and has no data now; set it to blocking")
        if not isinstance(part, bytes):
            raise TypeError(
                f"pipe: read() returned {type(part).__name__}, must be bytes: open it"
                " in binary mode"
            )
        if not part:
            break
        parts.append(part)
        missing -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
