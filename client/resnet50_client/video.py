"""From a video or a camera to `VideoFrame`s, by way of PyAV: the extra `[video]`.

Decoders give YUV. The contract takes two such layouts as they are, I420 and NV12, both BT.601 in
limited range, at half the bytes of RGB; what a decoder gives otherwise is brought into I420 here.
Importing this module loads neither PyAV nor PIL.
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

# What goes out as the decoder gives it.
_PIXEL_FORMATS = {"yuv420p": "I420", "nv12": "NV12"}
_FULL_RANGE = 2  # AVColorRange
# AVColorSpace, as a frame says it (ITU-T H.273), to the name of swscale's; all else counts as
# BT.601, also the silence of most files, which swscale and the command-line tools take so too.
_COLORSPACES = {1: "ITU709", 4: "FCC", 7: "SMPTE240M", 9: "BT2020", 10: "BT2020"}
_BT601 = "ITU601"
# How much of a frame's turn it may come early: timestamps are rounded, cameras are not punctual.
_EARLY = 0.25
# A broken stream may lose every packet: so often is that logged, in seconds.
LOST_LOG_S = 10.0
_FALLBACK_FPS = 25.0  # FFmpeg's own, for sources that know no time at all


def frames_from_video(
    source: VideoSource,
    *,
    fps: float | None = None,
    encoding: Literal["raw", "jpeg"] = "raw",
    jpeg_quality: int = 90,
) -> Generator[VideoFrame, None, None]:
    """Give a video's frames one at a time, as the streams of both clients take them.

        client.classify_stream(frames_from_video("cat.mp4", fps=5))

    Needs the extra `[video]`. The source is opened when the first frame is asked for, and closed
    when the generator ends or is closed. Frames come upright where the file says how it was held
    (PyAV 14.2 or newer), and one at a time: nothing is read ahead. What cannot be decoded in the
    middle of a source is left out, with a warning in the log, at most one in 10 s. Pixels count as
    square. Messages and logs show URLs without user, password and tokens.

    Args:
        source: A path, a URL that FFmpeg opens ("https://", "rtsp://"), a binary file object, or a
            camera: its number, 0 for /dev/video0, or that path (Linux).
        fps: At most so many frames a second, by the frames' own times; None for all of them. It
            says which frames are given, not when: a file comes as fast as it is read.
        encoding: "raw" gives uint8 pixels [height * 3 / 2, width], "I420" or "NV12" straight from
            the decoder where it gives these; BT.709, full range, more than 8 bits, other chroma and
            RGB become BT.601 limited range I420. An odd last column or row is cut off.
            A file that names no matrix counts as BT.601.
            "jpeg" gives an image file's bytes: a fifth of "raw" or less, and a little less work
            for the server, for more CPU time here (figures in docs/streaming.md).
        jpeg_quality: Of encoding "jpeg", 1 to 100.

    Raises:
        ModuleNotFoundError: The extra `[video]` is not installed.
        ValueError: An argument is wrong.
        OSError: The source cannot be opened, or is no video; raised at the first frame.
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
            f"frames_from_video needs {module}: pip install 'resnet50-serving[video]'", name=module
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
    """Open a source that holds video.

    Raises:
        OSError: It cannot be opened, or holds none.
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
        raise OSError(f"{_name(source)} holds no video")
    return container


def _file_of(source: VideoSource) -> tuple[Any, dict[str, Any]]:
    """Return what PyAV opens, and how."""
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
    """Return what messages call a source; a URL without its credentials."""
    if isinstance(source, os.PathLike):
        return str(Path(source))
    if isinstance(source, str):
        return redact(source, source)
    return f"camera {source}" if isinstance(source, int) else repr(source)


def _reason(error: BaseException, source: VideoSource) -> str:
    return _shown(getattr(error, "strerror", None) or str(error), source)


def _cause(error: BaseException, source: VideoSource) -> BaseException | None:
    """Return an error to be shown as the cause of another; None if it shows credentials."""
    return error if _shown(str(error), source) == str(error) else None


def _shown(text: str, source: VideoSource) -> str:
    return redact(text, source) if isinstance(source, str) else redact(text)


def _timed(container: InputContainer, source: VideoSource) -> Iterator[tuple[float, av.VideoFrame]]:
    """Give each frame and its time in seconds, the first one's being 0."""
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
    """Give what can be decoded, in the order it is shown."""
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
            f"{_name(source)} cannot be read on after {count} frames: {_reason(error, source)}"
        ) from _cause(error, source)
    if count == 0:
        failure = lost.last
        reason = f": {_reason(failure, source)}" if failure else ""
        raise OSError(f"{_name(source)} holds no frame that can be decoded{reason}") from (
            _cause(failure, source) if failure else None
        )


class _LostPackets:
    """Logs packets that cannot be decoded: the first, then one line in `LOST_LOG_S` at most.

    Attributes:
        last: The error of the last one.
    """

    def __init__(self, source: VideoSource) -> None:
        self.last: Exception | None = None
        self._source = source
        self._count = 0
        self._next_log_s = -math.inf

    def add(self, error: Exception) -> None:
        """Count one."""
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
    """Converts frames with swscale, whose tables are kept from one frame to the next."""

    def __init__(self) -> None:
        from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

        self._reformatter = VideoReformatter()
        self._colorspaces, self._ranges = Colorspace, ColorRange

    def __call__(
        self, frame: av.VideoFrame, pixel_format: str, full_range: bool, size: tuple[int, int]
    ) -> av.VideoFrame:
        """Return it in FFmpeg's `pixel_format`, BT.601 if that is YUV, and `size` large."""
        ranges, source = self._ranges, _colorspace(frame)
        from_full_range = _is_full_range(frame)
        if from_full_range and source == _BT601:
            # PyAV up to 16 forgets the ranges where both matrices are the same. FCC's is BT.601's
            # within one level: 0.30, 0.59, 0.11 against 0.299, 0.587, 0.114.
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
    """Return how often it is to be turned by 90 degrees, counter-clockwise, to stand upright."""
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
    """View the planes without what pads their rows: [height, width], [rows, columns(, U and V)]."""
    views: list[NDArray[np.uint8]] = []
    for plane in frame.planes:
        rows = _rows(plane)
        if frame.format.name == "nv12" and views:
            views.append(rows[:, : 2 * plane.width].reshape(plane.height, plane.width, 2))
        else:
            views.append(rows[:, : plane.width])
    return views


def _rows(plane: VideoPlane) -> NDArray[np.uint8]:
    """View a plane's rows with their padding: uint8 [rows, bytes from one to the next]."""
    content: NDArray[np.uint8] = np.frombuffer(cast("Any", plane), dtype=np.uint8)
    return content.reshape(-1, plane.line_size)[: plane.height]


class _JpegEncoder:
    """Makes JPEG files of frames."""

    def __init__(self, quality: int) -> None:
        self._quality = quality

    def __call__(self, reformat: _Reformat, frame: av.VideoFrame) -> _Pixels:
        """Return the file's bytes, which say themselves what they are."""
        from PIL import Image

        turns = _quarter_turns(frame)
        rgb = reformat(frame, "rgb24", full_range=True, size=(frame.width, frame.height))
        height, width = rgb.height, rgb.width
        pixels = _rows(rgb.planes[0])[:, : width * 3].reshape(height, width, 3)
        upright = np.rot90(pixels, turns)
        buffer = io.BytesIO()
        Image.fromarray(upright).save(buffer, "JPEG", quality=self._quality)
        return buffer.getvalue(), None
