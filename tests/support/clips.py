"""Video clips that tests make, with PyAV."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

# Y, U and V of R, G and B in 0 to 1: the luma weights of red and blue (ITU-R BT.601, BT.709).
LUMA_WEIGHTS = {
    "bt601": (0.299, 0.114),
    "bt709": (0.2126, 0.0722),
    "bt2020": (0.2627, 0.0593),
}
_TAGS = {"bt601": 6, "bt709": 1, "bt2020": 9}  # AVColorSpace
TRANSFERS = {"bt709": 1, "pq": 16, "hlg": 18}  # AVColorTransferCharacteristic
_BT2020_PRIMARIES = 9


def yuv_of(
    rgb: tuple[int, int, int], matrix: str = "bt601", full_range: bool = False
) -> tuple[int, int, int]:
    """Return the Y, U and V of a colour, by the standards' formula."""
    kr, kb = LUMA_WEIGHTS[matrix]
    red, green, blue = (value / 255 for value in rgb)
    y = kr * red + (1 - kr - kb) * green + kb * blue
    u, v = (blue - y) / (2 - 2 * kb), (red - y) / (2 - 2 * kr)
    if full_range:
        levels = (255 * y, 128 + 255 * u, 128 + 255 * v)
    else:
        levels = (16 + 219 * y, 128 + 224 * u, 128 + 224 * v)
    luma, blue_difference, red_difference = (min(255, max(0, round(level))) for level in levels)
    return luma, blue_difference, red_difference


def fill(planes: tuple[int, int, int], width: int, height: int, format: str) -> av.VideoFrame:
    """Make a frame of one colour, given as its Y, U and V."""
    frame = av.VideoFrame(width, height, format)
    values = [planes[:1], planes[1:]] if format == "nv12" else [[one] for one in planes]
    for plane, value in zip(frame.planes, values, strict=True):
        row = np.resize(np.array(value, dtype=np.uint8), plane.line_size)
        plane.update(np.tile(row, plane.buffer_size // plane.line_size).tobytes())
    return frame


def picture_frame(picture: Image.Image, format: str = "yuv420p") -> av.VideoFrame:
    """Make a frame of a picture, BT.601 in limited range if the format is YUV."""
    return av.VideoFrame.from_image(picture).reformat(
        format=format, dst_colorspace="ITU601", dst_color_range="MPEG"
    )


def write_clip(
    path: Path,
    frames: Iterable[av.VideoFrame],
    *,
    codec: str = "ffv1",
    times_ms: Iterable[int] | None = None,
    fps: int = 30,
    matrix: str | None = None,
    full_range: bool = False,
    transfer: str | None = None,
    aspect: Fraction | None = None,
    codec_options: dict[str, str] | None = None,
    **options: Any,
) -> Path:
    """Encode frames, with ffv1 without any loss.

    Args:
        path: The file.
        frames: The frames.
        codec: FFmpeg's name of the encoder.
        times_ms: When each frame is shown, in milliseconds; None for `fps`.
        fps: Frames per second.
        matrix: Tag of the matrix; None for none.
        full_range: Tag of the range.
        transfer: Tag of the transfer function, and BT.2020 as that of the primaries; None for
            neither.
        aspect: Width of a pixel divided by its height; None for no tag.
        codec_options: Options of the encoder.
        options: Attributes of the stream.
    """
    frames = list(frames)
    with av.open(path, "w") as container:
        stream: Any = container.add_stream(codec, rate=fps, options=codec_options or {})
        stream.width, stream.height = frames[0].width, frames[0].height
        stream.pix_fmt = frames[0].format.name
        for name, value in options.items():
            setattr(stream, name, value)
        context = stream.codec_context
        if matrix:
            context.colorspace = _TAGS[matrix]
        context.color_range = 2 if full_range else 1
        if aspect:
            context.sample_aspect_ratio = aspect
        if transfer:
            context.color_trc = TRANSFERS[transfer]
            context.color_primaries = _BT2020_PRIMARIES
        context.time_base = Fraction(1, 1000) if times_ms is not None else Fraction(1, fps)
        times = times_ms if times_ms is not None else range(len(frames))
        for frame, time in zip(frames, times, strict=True):
            frame.pts, frame.time_base = time, context.time_base
            frame.color_range = context.color_range
            frame.colorspace = context.colorspace
            frame.color_trc, frame.color_primaries = context.color_trc, context.color_primaries
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


# How a picture is shown: cosine and sine of clockwise turns, and mirrored left to right.
DISPLAYS = {
    90: (0, 1, -1, 0),
    -90: (0, -1, 1, 0),
    180: (-1, 0, 0, -1),
    "mirrored": (-1, 0, 0, 1),
    "mirrored and 90": (0, 1, 1, 0),
}


def hold_turned(path: Path, display: int | str) -> None:
    """Write into an MP4 that it is to be shown turned clockwise, or mirrored: see `DISPLAYS`."""
    one = 1 << 16
    a, b, c, d = (value * one for value in DISPLAYS[display])
    upright = struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    turned = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    content = path.read_bytes()
    track = content.index(b"tkhd")
    at = content.index(upright, track)
    path.write_bytes(content[:at] + turned + content[at + len(turned) :])


def deep_frame(rgb: np.ndarray, pixel_format: str, matrix: str, full_range: bool = False):
    """Make a 10-bit frame of R'G'B' in 0 to 1 [height, width, 3], by the standards' formula."""
    kr, kb = LUMA_WEIGHTS[matrix]
    red, green, blue = np.moveaxis(rgb, -1, 0)
    y = kr * red + (1 - kr - kb) * green + kb * blue
    u, v = (blue - y) / (2 - 2 * kb), (red - y) / (2 - 2 * kr)
    if full_range:
        levels = [1023 * y, 512 + 1023 * u, 512 + 1023 * v]
    else:
        levels = [4 * (16 + 219 * y), 4 * (128 + 224 * u), 4 * (128 + 224 * v)]
    if "420" in pixel_format:
        levels[1:] = [
            (one[::2, ::2] + one[1::2, ::2] + one[::2, 1::2] + one[1::2, 1::2]) / 4
            for one in levels[1:]
        ]
    height, width = y.shape
    frame = av.VideoFrame(width, height, pixel_format)
    for plane, level in zip(frame.planes, levels, strict=True):
        rows = np.zeros((plane.buffer_size // plane.line_size, plane.line_size // 2), np.uint16)
        rows[: level.shape[0], : level.shape[1]] = np.rint(level).clip(0, 1023)
        plane.update(rows.tobytes())
    return frame


def moving_digits(
    images: list[Image.Image], *, side: int = 96, each: int = 5, reach: float = 1.0
) -> list[Image.Image]:
    """Return `each` pictures of every image in turn, which circles at `reach` pixels meanwhile."""
    pictures = []
    for image in images:
        large = image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
        for step in range(each):
            angle = 2 * np.pi * step / each
            shift = (1, 0, -reach * np.cos(angle), 0, 1, -reach * np.sin(angle))
            pictures.append(
                large.transform(
                    large.size, Image.Transform.AFFINE, shift, Image.Resampling.BILINEAR
                )
            )
    return pictures
