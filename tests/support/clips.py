"""Video clips that tests make, with PyAV."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

# Y, U and V of R, G and B in 0 to 1: the luma weights of red and blue (ITU-R BT.601, BT.709).
LUMA_WEIGHTS = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}
_TAGS = {"bt601": 6, "bt709": 1}  # AVColorSpace


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
    return tuple(min(255, max(0, round(level))) for level in levels)


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
    **options: object,
) -> Path:
    """Encode frames, with ffv1 without any loss; `times_ms` says when each is shown."""
    frames = list(frames)
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height = frames[0].width, frames[0].height
        stream.pix_fmt = frames[0].format.name
        for name, value in options.items():
            setattr(stream, name, value)
        context = stream.codec_context
        if matrix:
            context.colorspace = _TAGS[matrix]
        context.color_range = 2 if full_range else 1
        context.time_base = Fraction(1, 1000) if times_ms is not None else Fraction(1, fps)
        times = times_ms if times_ms is not None else range(len(frames))
        for frame, time in zip(frames, times, strict=True):
            frame.pts, frame.time_base = time, context.time_base
            frame.color_range = context.color_range
            frame.colorspace = context.colorspace
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def hold_turned(path: Path, degrees: int) -> None:
    """Write into an MP4 that it is to be shown turned by 90 degrees clockwise or the other way."""
    one, sine = 1 << 16, {90: 1 << 16, -90: -(1 << 16)}[degrees]
    upright = struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    turned = struct.pack(">9i", 0, sine, 0, -sine, 0, 0, 0, 0, 1 << 30)
    content = path.read_bytes()
    track = content.index(b"tkhd")
    at = content.index(upright, track)
    path.write_bytes(content[:at] + turned + content[at + len(turned) :])


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
