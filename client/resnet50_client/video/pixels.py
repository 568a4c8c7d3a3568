"""Conversion of decoded frames to what is sent: planes as they are, RGB, or JPEG."""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from .color import BT601, BT709, BT2020, Color, color_of
from .reader import DecodedFrame
from .tone_mapping import PIXEL_FORMAT, ToneMapper

if TYPE_CHECKING:
    import av
    from av.video.plane import VideoPlane

_log = logging.getLogger(__name__)

# FFmpeg's formats that are sent unchanged.
_PLANAR = {"yuv420p": "I420", "yuvj420p": "I420", "nv12": "NV12"}
# swscale's names of matrices to the contract's; None is the default.
_MATRICES = {BT601: None, BT709: "BT709", BT2020: "BT2020"}
# Other aspect ratios are those of broken files; a wide frame could take any memory.
_ASPECTS = (Fraction(1, 4), Fraction(4))
_TONE_MAPPED = Color(BT709, full_range=True, is_rgb=True)


@dataclass(frozen=True)
class Pixels:
    """A frame in the form in which it is sent.

    Attributes:
        image: uint8 pixels in `pixel_format`, or JPEG bytes.
        pixel_format: "I420" or "NV12"; None for RGB and JPEG.
        color_matrix: Matrix of "I420" and "NV12"; None for BT.601.
        color_range: Range of "I420" and "NV12"; None for limited.
    """

    image: NDArray[np.uint8] | bytes
    pixel_format: str | None = None
    color_matrix: str | None = None
    color_range: str | None = None


class Converter:
    """Converts the frames of a source, upright and with square pixels.

    Args:
        source: Name of the source, for the log.
        max_raw_bytes: Frames of more bytes become JPEG: 0 for all, `math.inf` for none.
        jpeg_quality: Quality of JPEG, 1 to 100.
    """

    def __init__(self, source: str, max_raw_bytes: float, jpeg_quality: int) -> None:
        self._source = source
        self._max_raw_bytes = max_raw_bytes
        self._jpeg_quality = jpeg_quality
        self._scale = _Scaler()
        self._tone_map = ToneMapper()
        self._has_warned = False

    def __call__(self, decoded: DecodedFrame) -> Pixels:
        """Convert a frame."""
        frame = decoded.frame
        color = color_of(frame, decoded.stream.codec_context)
        size = _square_size(frame, decoded.stream.sample_aspect_ratio)
        turn = _Orientation.of(frame)
        if color.needs_tone_mapping:
            self._warn(color)
            frame = self._scale(
                frame, PIXEL_FORMAT, color, BT601, True, (frame.width, frame.height)
            )
            frame, color = self._tone_map(frame, color.transfer), _TONE_MAPPED
        # The planes of the contract's YUV formats have even sides.
        is_rgb = bool(size[0] % 2 or size[1] % 2)
        if size[0] * size[1] * (3 if is_rgb else 1.5) > self._max_raw_bytes:
            return Pixels(_jpeg(self._rgb(frame, color, size, turn), self._jpeg_quality))
        if is_rgb:
            return Pixels(self._rgb(frame, color, size, turn))
        return self._planar(frame, color, size, turn)

    def _warn(self, color: Color) -> None:
        if not self._has_warned:
            self._has_warned = True
            kind = {"pq": "HDR (PQ)", "hlg": "HDR (HLG)", "sdr": "in BT.2020 colours"}
            _log.warning(
                "%s: is %s; frames are converted to BT.709 in standard dynamic range",
                self._source,
                kind[color.transfer],
            )

    def _rgb(
        self, frame: av.VideoFrame, color: Color, size: tuple[int, int], turn: _Orientation
    ) -> NDArray[np.uint8]:
        """Return uint8 RGB [height, width, 3]."""
        rgb = self._scale(frame, "rgb24", color, BT601, True, size)
        pixels = _rows(rgb.planes[0])[:, : rgb.width * 3].reshape(rgb.height, rgb.width, 3)
        return np.ascontiguousarray(turn.upright(pixels))

    def _planar(
        self, frame: av.VideoFrame, color: Color, size: tuple[int, int], turn: _Orientation
    ) -> Pixels:
        """Return YUV as uint8 [height * 3 / 2, width], both even."""
        matrix, full_range = color.matrix, color.full_range
        if color.is_rgb:
            matrix, full_range = BT709 if color is _TONE_MAPPED else BT601, False
        elif matrix not in _MATRICES:
            matrix, full_range = BT601, False
        is_same = (
            frame.format.name in _PLANAR
            and matrix == color.matrix
            and size == (frame.width, frame.height)
        )
        if not is_same:
            pixel_format = "yuvj420p" if full_range else "yuv420p"
            frame = self._scale(frame, pixel_format, color, matrix, full_range, size)
        planes = [turn.upright(plane) for plane in _planes(frame)]
        rows, width = planes[0].shape
        packed = np.empty((rows * 3 // 2, width), dtype=np.uint8)
        packed[:rows] = planes[0]
        parts = np.split(packed[rows:].reshape(-1), len(planes) - 1)
        for part, plane in zip(parts, planes[1:], strict=True):
            part.reshape(plane.shape)[:] = plane
        return Pixels(
            packed,
            _PLANAR[frame.format.name],
            _MATRICES[matrix],
            "full" if full_range else None,
        )


class _Scaler:
    """Converts frames with swscale, whose tables are reused between frames."""

    def __init__(self) -> None:
        from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

        self._reformatter = VideoReformatter()
        self._colorspaces, self._ranges = Colorspace, ColorRange

    def __call__(
        self,
        frame: av.VideoFrame,
        pixel_format: str,
        color: Color,
        matrix: str,
        full_range: bool,
        size: tuple[int, int],
    ) -> av.VideoFrame:
        """Convert a frame of `color`.

        Args:
            frame: The frame.
            pixel_format: FFmpeg's name of the result's format.
            color: The frame's colours.
            matrix: The result's matrix, if it is YUV.
            full_range: The result's range.
            size: The result's width and height.
        """
        ranges, source = self._ranges, color.matrix
        if color.full_range and source == matrix == BT601 and pixel_format != "yuvj420p":
            # PyAV up to 16 ignores the ranges if both matrices are equal. FCC's equals BT.601's
            # within one level: 0.30, 0.59, 0.11 versus 0.299, 0.587, 0.114.
            source = "FCC"
        return self._reformatter.reformat(
            frame,
            *size,
            format=pixel_format,
            src_colorspace=self._colorspaces[source],
            dst_colorspace=self._colorspaces[matrix],
            src_color_range=ranges.JPEG if color.full_range else ranges.MPEG,
            dst_color_range=ranges.JPEG if full_range else ranges.MPEG,
        )


@dataclass(frozen=True)
class _Orientation:
    """How a decoded picture becomes upright: transpose it, then reverse rows and columns.

    Attributes:
        transpose: Rows become columns.
        reverse_rows: The last row becomes the first.
        reverse_columns: The last column becomes the first.
    """

    transpose: bool = False
    reverse_rows: bool = False
    reverse_columns: bool = False

    @classmethod
    def of(cls, frame: av.VideoFrame) -> _Orientation:
        """Return a frame's orientation by its display matrix, in steps of 90 degrees."""
        data = frame.side_data.get("DISPLAYMATRIX")
        if data is None:
            return cls()
        # x' = a x + c y, y' = b x + d y; y points downwards.
        a, b, _, c, d = (int(one) for one in np.frombuffer(cast("Any", data), np.int32)[:5])
        if abs(a) + abs(d) >= abs(b) + abs(c):
            return cls(False, d < 0, a < 0)
        return cls(True, b < 0, c < 0)

    def upright(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """View a picture [rows, columns, ...] upright."""
        if self.transpose:
            picture = picture.swapaxes(0, 1)
        rows = -1 if self.reverse_rows else 1
        columns = -1 if self.reverse_columns else 1
        return picture[::rows, ::columns]


def _square_size(frame: av.VideoFrame, aspect: Fraction | None) -> tuple[int, int]:
    """Return the width and height of a frame with square pixels, as encoded, not turned.

    Args:
        frame: The frame.
        aspect: Width of a pixel divided by its height; None or 0 if unknown.
    """
    width, height = frame.width, frame.height
    if not aspect or aspect == 1 or not _ASPECTS[0] <= aspect <= _ASPECTS[1]:
        return width, height
    return max(2, round(width * aspect / 2) * 2), height


def _jpeg(pixels: NDArray[np.uint8], quality: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


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
