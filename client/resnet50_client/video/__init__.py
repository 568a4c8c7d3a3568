"""Frames of a video or camera, decoded with PyAV (the extra `[video]`), or of a pipe.

Decoders output YUV. The server accepts two such layouts, I420 and NV12, at half the bytes of RGB;
other output is converted here. Importing this module loads neither PyAV nor PIL.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Generator, Mapping
from contextlib import closing
from numbers import Real
from typing import Literal

from .._arguments import check_seconds
from .._unary import UPLOAD_ABOVE_BYTES
from ..images import VideoFrame
from .pixels import Converter
from .raw import frames_from_raw
from .reader import SourceLostError, read_frames
from .source import Source, SourceOptions, VideoSource

__all__ = ["SourceLostError", "VideoSource", "frames_from_raw", "frames_from_video"]

# Tolerance for early frames, as a fraction of the frame interval: timestamps are rounded, and
# cameras jitter.
_EARLY = 0.25
_MAX_RAW_BYTES = {"raw": math.inf, "jpeg": 0}


def frames_from_video(
    source: VideoSource,
    *,
    fps: float | None = None,
    encoding: Literal["raw", "jpeg"] | None = None,
    jpeg_quality: int = 90,
    av_options: Mapping[str, str] | None = None,
    timeout_s: float = 10.0,
    reconnect_s: float = 60.0,
    camera_format: str | None = None,
    size: tuple[int, int] | None = None,
    rate: float | None = None,
    real_time: bool = False,
    stop: threading.Event | None = None,
) -> Generator[VideoFrame, None, None]:
    """Yield a video's frames one at a time, for the streams of both clients.

        client.classify_stream(frames_from_video("cat.mp4", fps=5))

    Needs the extra `[video]`. The source is opened for the first frame, and closed when the
    generator ends or is closed. Nothing is read ahead, except that files are decoded by several
    threads. Undecodable packets are skipped, with a warning at most once per 10 s in the log.
    Messages and logs show URLs without user names, passwords and tokens.

    Frames are upright (rotated and mirrored by the file's metadata, in steps of 90 degrees),
    cropped as the video says, and have square pixels. HDR (PQ and HLG) and BT.2020 colours are
    converted to BT.709 in standard dynamic range, with a warning once per source.

    `VideoFrame.time_s` never decreases. A timestamp that goes back by more than a frame, or ahead
    by more than 2 s, is the restart of the source's clock: times continue from the frame before, by
    a frame's interval, and by the time that passed here if the source is live. A step ahead in a
    file of a format that permits no restarts, such as MP4, is a still, and kept.

    Args:
        source: A path, a URL that FFmpeg opens ("https://", "rtsp://"), a binary file object, or a
            camera: its number, 0 for /dev/video0, or that path (Linux).
        fps: Maximum frames per second, by the frames' times; None for all frames. It selects
            frames but does not pace them.
        encoding: "raw" for uint8 pixels: [height * 3 / 2, width], "I420" or "NV12", unchanged from
            the decoder where it has 8 bits and 4:2:0 chroma, with `color_matrix` and `color_range`;
            other formats are converted to I420. Frames of an odd width or height are RGB
            [height, width, 3]. A video without a matrix is BT.709 if it is at least 1280 pixels
            wide or more than 576 high, else BT.601, as in mpv.
            "jpeg" for encoded bytes: at most a fifth of "raw", and slightly less work for the
            server, but more CPU time here (figures in docs/explanation/streaming.md).
            None for "raw" if a frame fits into a message of 4 MiB, and "jpeg" above that, e.g. for
            4K: a stream does not send frames in chunks.
        jpeg_quality: Quality of encoding "jpeg", 1 to 100.
        av_options: Options of FFmpeg's demuxer and protocol, e.g. {"rtsp_transport": "udp"}; TCP
            is the default for RTSP. FFmpeg ignores unknown ones.
        timeout_s: A network source that sends nothing for so long has failed; `math.inf` for no
            limit. Name resolution by the operating system, and a camera's driver, have limits of
            their own.
        reconnect_s: A live source that fails after its first frame (a camera, or a URL without an
            end) is opened again, with pauses of 0.5 to 8 s and a warning in the log, until there
            was no frame for so long. A download of a file by HTTP is resumed where it broke. 0:
            the first failure is raised, and a live source that ends has ended.
        camera_format: Pixel format or codec of a camera, e.g. "mjpeg", "yuyv422".
        size: Width and height of a camera's frames, e.g. (1920, 1080).
        rate: Frames per second of a camera.
        real_time: Yield the frames of a file when they are due, as a camera would, a still for at
            most 2 s. Live sources are not paced: they are their own clock.
        stop: Ends the frames when it is set, also while waiting.

    Raises:
        ModuleNotFoundError: The extra `[video]` is not installed.
        TypeError: The source is of no type that is known here.
        ValueError: An argument is invalid.
        SourceLostError: A live source failed, and could not be opened again within `reconnect_s`.
            It is a ConnectionError.
        OSError: The source cannot be opened or read, or is not a video; raised at the first frame
            or where it fails. It is a TimeoutError if it sent nothing for `timeout_s`.
    """
    if fps is not None:
        _check_positive("fps", fps, "a number above 0, or None for all frames")
    if encoding not in (None, *_MAX_RAW_BYTES):
        raise ValueError(f"encoding: is {encoding!r}, must be 'raw' or 'jpeg', or None for either")
    if not (_is_number(jpeg_quality) and 1 <= jpeg_quality <= 100):
        raise ValueError(f"jpeg_quality: is {jpeg_quality!r}, must be 1 to 100")
    check_seconds("timeout_s", timeout_s)
    check_seconds("reconnect_s", reconnect_s, zero=True)
    if rate is not None:
        _check_positive("rate", rate, "a number above 0, or None for the camera's own")
    if size is not None and not _is_size(size):
        raise ValueError(f"size: is {size!r}, must be (width, height) in pixels, or None")
    options = SourceOptions(
        _av_options(av_options), timeout_s, reconnect_s, camera_format, size, rate
    )
    opened = Source(source, options)
    _require("av")
    if encoding == "jpeg":
        _require("PIL")
    max_raw_bytes = UPLOAD_ABOVE_BYTES if encoding is None else _MAX_RAW_BYTES[encoding]
    convert = Converter(opened.name, max_raw_bytes, jpeg_quality)
    return _frames(opened, fps, convert, stop or threading.Event(), real_time)


def _frames(
    source: Source, fps: float | None, convert: Converter, stop: threading.Event, real_time: bool
) -> Generator[VideoFrame, None, None]:
    last_turn = -1
    with closing(read_frames(source, stop, real_time=real_time)) as frames:
        for number, decoded in enumerate(frames):
            if fps is not None:
                turn = math.floor(decoded.time_s * fps + _EARLY)
                if turn == last_turn:
                    continue
                last_turn = turn
            pixels = convert(decoded)
            yield VideoFrame(
                pixels.image,
                pixels.pixel_format,
                decoded.time_s,
                number,
                pixels.color_matrix,
                pixels.color_range,
            )


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _check_positive(name: str, value: float, rule: str) -> None:
    if not (_is_number(value) and value > 0 and math.isfinite(value)):
        raise ValueError(f"{name}: is {value!r}, must be {rule}")


def _is_size(size: object) -> bool:
    return (
        isinstance(size, tuple)
        and len(size) == 2
        and all(isinstance(side, int) and 1 <= side <= 65535 for side in size)
    )


def _av_options(options: Mapping[str, str] | None) -> dict[str, str]:
    """Return the options as text, as FFmpeg has them."""
    texts: dict[str, str] = {}
    for name, value in (options or {}).items():
        if not isinstance(name, str) or not isinstance(value, (str, int, float)):
            raise ValueError(f"av_options: {name!r}: must be a name and its value as text")
        texts[name] = str(value)
    return texts


def _require(module: str) -> None:
    try:
        __import__(module)
    except ImportError as error:
        raise ModuleNotFoundError(
            f"frames_from_video needs {module}: install resnet50-serving with the extra [video]",
            name=module,
        ) from error
