"""Frames of a video or camera, decoded with PyAV: the extra `[video]`.

Decoders output YUV. The server accepts two such layouts, I420 and NV12, both BT.601 in limited
range, at half the bytes of RGB; other output is converted to I420 here. Importing this module loads
neither PyAV nor PIL.
"""

from __future__ import annotations

import io
import logging
import math
import os
import re
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from .images import VideoFrame
from .redaction import redact

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.plane import VideoPlane

VideoSource: TypeAlias = str | os.PathLike[str] | int | BinaryIO
_Pixels: TypeAlias = tuple[NDArray[np.uint8] | bytes, str | None]
_log = logging.getLogger(__name__)

# FFmpeg's formats that are sent unchanged.
_PIXEL_FORMATS = {"yuv420p": "I420", "nv12": "NV12"}
_FULL_RANGE = 2  # AVColorRange
# A frame's AVColorSpace (ITU-T H.273) to swscale's name; others are treated as BT.601, as are the
# many files without one, like swscale and the command-line tools do.
_COLORSPACES = {1: "ITU709", 4: "FCC", 7: "SMPTE240M", 9: "BT2020", 10: "BT2020"}
_BT601 = "ITU601"
# Tolerance for early frames, as a fraction of the frame interval: timestamps are rounded, and
# cameras jitter.
_EARLY = 0.25
# Minimum seconds between log lines about undecodable packets, which may be many.
LOST_LOG_S = 10.0
_FALLBACK_FPS = 25.0  # FFmpeg's default for sources without timestamps


def frames_from_video(
    source: VideoSource,
    *,
    fps: float | None = None,
    encoding: Literal["raw", "jpeg"] = "raw",
    jpeg_quality: int = 90,
) -> Generator[VideoFrame, None, None]:
    """Yield a video's frames one at a time, for the streams of both clients.

        client.classify_stream(frames_from_video("cat.mp4", fps=5))

    Needs the extra `[video]`. The source is opened for the first frame, and closed when the
    generator ends or is closed. Frames are rotated upright according to the file's metadata (PyAV
    14.2 or newer). Nothing is read ahead. Undecodable packets are skipped, with a warning at most
    once per 10 s in the log. Pixels are assumed to be square. Messages and logs show URLs without
    user names, passwords and tokens.

    Args:
        source: A path, a URL that FFmpeg opens ("https://", "rtsp://"), a binary file object, or a
            camera: its number, 0 for /dev/video0, or that path (Linux).
        fps: Maximum frames per second, by the frames' timestamps; None for all frames. It selects
            frames but does not pace them: a file is read as fast as possible.
        encoding: "raw" for uint8 pixels [height * 3 / 2, width], "I420" or "NV12" unchanged from
            the decoder; BT.709, full range, more than 8 bits, other chroma and RGB are converted to
            BT.601 limited range I420. An odd last column or row is cropped. A file without a
            matrix is treated as BT.601.
            "jpeg" for encoded bytes: at most a fifth of "raw", and slightly less work for the
            server, but more CPU time here (figures in docs/streaming.md).
        jpeg_quality: Quality of encoding "jpeg", 1 to 100.

    Raises:
        ModuleNotFoundError: The extra `[video]` is not installed.
        ValueError: An argument is invalid.
        OSError: The source cannot be opened, or is not a video; raised at the first frame.
    """
    if fps is not None and not (_is_number(fps) and fps > 0 and math.isfinite(fps)):
        raise ValueError(f"fps: is {fps!r}, must be a number above 0, or None for all frames")
    if encoding not in ("raw", "jpeg"):
        raise ValueError(f"encoding: is {encoding!r}, must be 'raw' or 'jpeg'")
    if not (_is_number(jpeg_quality) and 1 <= jpeg_quality <= 100):
        raise ValueError(f"jpeg_quality: is {jpeg_quality!r}, must be 1 to 100")
    _require("av")
    if encoding == "jpeg":
        _require("PIL")
        return _frames(source, fps, _JpegEncoder(jpeg_quality))
    return _frames(source, fps, _raw)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _require(module: str) -> None:
    try:
        __import__(module)
    except ImportError as error:
        raise ModuleNotFoundError(
            f"frames_from_video needs {module}: install resnet50-serving with the extra [video]",
            name=module,
        ) from error


def _frames(
    source: VideoSource, fps: float | None, pixels: Callable[[_Reformat, av.VideoFrame], _Pixels]
) -> Generator[VideoFrame, None, None]:
    reformat = _Reformat()
    last_turn = -1
    with closing(_open(source)) as container:
        for number, (time_s, frame) in enumerate(_timed(container, source)):
            if fps is not None:
                turn = math.floor(time_s * fps + _EARLY)
                if turn == last_turn:
                    continue
                last_turn = turn
            image, pixel_format = pixels(reformat, frame)
            yield VideoFrame(image, pixel_format, time_s, number)


def _open(source: VideoSource) -> InputContainer:
    """Open a video source.

    Raises:
        OSError: It cannot be opened, or contains no video.
    """
    import av

    file, options = _file_of(source)
    try:
        container: InputContainer = av.open(file, mode="r", **options)
    except OSError as error:  # PyAV's own are these too, and name the file
        if _cause(error, source) is error:
            raise
        raise OSError(error.errno, _reason(error, source), _name(source)) from None
    except (av.FFmpegError, ValueError) as error:
        raise OSError(
            f"{_name(source)} cannot be read as video: {_reason(error, source)}"
        ) from _cause(error, source)
    if not container.streams.video:
        container.close()
        raise OSError(f"{_name(source)} contains no video")
    return container


def _file_of(source: VideoSource) -> tuple[Any, dict[str, Any]]:
    """Return PyAV's file argument and options."""
    if isinstance(source, int):
        source = f"/dev/video{source}"
    elif isinstance(source, os.PathLike):
        source = os.fspath(source)
    if isinstance(source, str) and re.fullmatch(r"/dev/video\d+", source):
        if sys.platform != "linux":
            raise OSError(f"{source}: cameras are opened by number or device on Linux only")
        return source, {"format": "v4l2"}
    return source, {}


def _name(source: VideoSource) -> str:
    """Return a source's name for messages; a URL without credentials."""
    if isinstance(source, os.PathLike):
        return str(Path(source))
    if isinstance(source, str):
        return redact(source, source)
    return f"camera {source}" if isinstance(source, int) else repr(source)


def _reason(error: BaseException, source: VideoSource) -> str:
    return _redacted(getattr(error, "strerror", None) or str(error), source)


def _cause(error: BaseException, source: VideoSource) -> BaseException | None:
    """Return an error as the cause of another; None if it contains credentials."""
    return error if _redacted(str(error), source) == str(error) else None


def _redacted(text: str, source: VideoSource) -> str:
    return redact(text, source) if isinstance(source, str) else redact(text)


def _timed(container: InputContainer, source: VideoSource) -> Iterator[tuple[float, av.VideoFrame]]:
    """Yield each frame with its time in seconds from the first one."""
    rate = float(container.streams.video[0].average_rate or _FALLBACK_FPS)
    start_s, time_s = None, 0.0
    for number, frame in enumerate(_decoded(container, source)):
        if frame.time is None:  # streams without a container
            time_s = time_s + 1 / rate if number else 0.0
        else:
            start_s = frame.time if start_s is None else start_s
            time_s = frame.time - start_s
        yield time_s, frame


def _decoded(container: InputContainer, source: VideoSource) -> Iterator[av.VideoFrame]:
    """Yield decodable frames in presentation order."""
    import av

    stream = container.streams.video[0]
    count = 0
    lost = _LostPackets(source)
    try:
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError as error:
                lost.add(error)  # one lost packet does not end a camera's stream
                continue
            for frame in frames:
                count += 1
                yield frame
    except av.FFmpegError as error:
        raise OSError(
            f"reading {_name(source)} failed after {count} frames: {_reason(error, source)}"
        ) from _cause(error, source)
    if count == 0:
        failure = lost.last
        reason = f": {_reason(failure, source)}" if failure else ""
        raise OSError(f"{_name(source)} contains no decodable frame{reason}") from (
            _cause(failure, source) if failure else None
        )


class _LostPackets:
    """Logs undecodable packets: the first, then at most one line per `LOST_LOG_S`.

    Attributes:
        last: Error of the last one.
    """

    def __init__(self, source: VideoSource) -> None:
        self.last: Exception | None = None
        self._source = source
        self._count = 0
        self._next_log_s = -math.inf

    def add(self, error: Exception) -> None:
        """Count an undecodable packet."""
        self.last = error
        self._count += 1
        if time.monotonic() >= self._next_log_s:
            self._next_log_s = time.monotonic() + LOST_LOG_S
            _log.warning(
                "%s: a packet cannot be decoded, %d so far: %s",
                _name(self._source),
                self._count,
                _reason(error, self._source),
            )


class _Reformat:
    """Converts frames with swscale, whose tables are reused between frames."""

    def __init__(self) -> None:
        from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

        self._reformatter = VideoReformatter()
        self._colorspaces, self._ranges = Colorspace, ColorRange

    def __call__(
        self, frame: av.VideoFrame, pixel_format: str, full_range: bool, size: tuple[int, int]
    ) -> av.VideoFrame:
        """Convert a frame to FFmpeg's `pixel_format`, BT.601 if that is YUV, and to `size`."""
        ranges, source = self._ranges, _colorspace(frame)
        from_full_range = _is_full_range(frame)
        if from_full_range and source == _BT601:
            # PyAV up to 16 ignores the ranges if both matrices are equal. FCC's equals BT.601's
            # within one level: 0.30, 0.59, 0.11 versus 0.299, 0.587, 0.114.
            source = "FCC"
        return self._reformatter.reformat(
            frame,
            *size,
            format=pixel_format,
            src_colorspace=self._colorspaces[source],
            dst_colorspace=self._colorspaces[_BT601],
            src_color_range=ranges.JPEG if from_full_range else ranges.MPEG,
            dst_color_range=ranges.JPEG if full_range else ranges.MPEG,
        )


def _colorspace(frame: av.VideoFrame) -> str:
    return _COLORSPACES.get(int(frame.colorspace), _BT601)


def _is_full_range(frame: av.VideoFrame) -> bool:
    name = frame.format.name
    return int(frame.color_range) == _FULL_RANGE or name.startswith("yuvj") or frame.format.is_rgb


def _quarter_turns(frame: av.VideoFrame) -> int:
    """Return the number of counter-clockwise 90-degree rotations to make a frame upright."""
    return round(getattr(frame, "rotation", 0) / 90) % 4


def _raw(reformat: _Reformat, frame: av.VideoFrame) -> _Pixels:
    """Return planar pixels as uint8 [height * 3 / 2, width], both even."""
    turns = _quarter_turns(frame)
    as_it_is = (
        frame.format.name in _PIXEL_FORMATS
        and not _is_full_range(frame)
        and _colorspace(frame) == _BT601
        and min(frame.width, frame.height) > 1
    )
    if not as_it_is:
        size = max(frame.width, 2), max(frame.height, 2)
        frame = reformat(frame, "yuv420p", full_range=False, size=size)
    planes = [np.rot90(plane, turns) for plane in _planes(frame)]
    rows, width = (side // 2 * 2 for side in planes[0].shape)
    packed = np.empty((rows * 3 // 2, width), dtype=np.uint8)
    packed[:rows] = planes[0][:rows, :width]
    parts = np.split(packed[rows:].reshape(-1), len(planes) - 1)
    for part, plane in zip(parts, planes[1:], strict=True):
        chroma = plane[: rows // 2, : width // 2]
        part.reshape(chroma.shape)[:] = chroma
    return packed, _PIXEL_FORMATS[frame.format.name]


def _planes(frame: av.VideoFrame) -> list[NDArray[np.uint8]]:
    """View the planes without row padding: [height, width], [rows, columns(, U and V)]."""
    views: list[NDArray[np.uint8]] = []
    for plane in frame.planes:
        rows = _rows(plane)
        if frame.format.name == "nv12" and views:
            views.append(rows[:, : 2 * plane.width].reshape(plane.height, plane.width, 2))
        else:
            views.append(rows[:, : plane.width])
    return views


def _rows(plane: VideoPlane) -> NDArray[np.uint8]:
    """View a plane's rows with their padding: uint8 [rows, line size in bytes]."""
    content: NDArray[np.uint8] = np.frombuffer(cast("Any", plane), dtype=np.uint8)
    return content.reshape(-1, plane.line_size)[: plane.height]


class _JpegEncoder:
    """Encodes frames as JPEG."""

    def __init__(self, quality: int) -> None:
        self._quality = quality

    def __call__(self, reformat: _Reformat, frame: av.VideoFrame) -> _Pixels:
        """Return JPEG bytes; their pixel format is None."""
        from PIL import Image

        turns = _quarter_turns(frame)
        rgb = reformat(frame, "rgb24", full_range=True, size=(frame.width, frame.height))
        height, width = rgb.height, rgb.width
        pixels = _rows(rgb.planes[0])[:, : width * 3].reshape(height, width, 3)
        upright = np.rot90(pixels, turns)
        buffer = io.BytesIO()
        Image.fromarray(upright).save(buffer, "JPEG", quality=self._quality)
        return buffer.getvalue(), None
