"""Raw pixels: check lengths and strides, convert to RGB."""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnet50_server.errors import InvalidImage

from .background import Color, composite
from .resize import resample
from .source import ColorMatrix, ColorRange, PixelFormat, RawImage
from .transform import Interpolation
from .yuv import yuv_to_rgb

_CHANNELS: dict[int, int] = {
    PixelFormat.RGB: 3,
    PixelFormat.BGR: 3,
    PixelFormat.RGBA: 4,
    PixelFormat.GRAY: 1,
}
# Where red, green and blue lie in a pixel.
_CHANNEL_ORDER: dict[int, tuple[int, int, int]] = {
    PixelFormat.BGR: (2, 1, 0),
    PixelFormat.RGBA: (0, 1, 2),
    PixelFormat.GRAY: (0, 0, 0),
}
_PLANAR = (PixelFormat.NV12, PixelFormat.I420)
MAX_SIDE = 65535
_STRIP_ROWS = 32  # even, as chroma rows are shared by two


def check_raw(raw: RawImage, max_pixels: int) -> None:
    """Refuse raw pixels whose dimensions do not add up.

    Raises:
        InvalidImage: Names the field, what it is and what it must be.
    """
    layout = raw.width, raw.height, raw.pixel_format, raw.row_stride_bytes
    full, least = _checked_lengths(*layout, raw.color_matrix, raw.color_range, max_pixels)
    if not least <= len(raw.pixels) <= full:
        wanted = str(full) if full == least else f"{least} to {full}"
        row = raw.row_stride_bytes or raw.width * _CHANNELS.get(raw.pixel_format, 1)
        raise _raw_error(
            "image.raw.pixels",
            f"has {len(raw.pixels)} bytes, {raw.width} x {raw.height} in {_format_name(raw)} with"
            f" rows of {row} bytes needs {wanted}",
        )


@lru_cache(maxsize=256)  # cameras send one layout again and again
def _checked_lengths(
    width: int,
    height: int,
    pixel_format: int,
    row_stride_bytes: int,
    color_matrix: int,
    color_range: int,
    max_pixels: int,
) -> tuple[int, int]:
    """Return `lengths` of a layout; refuse it as `check_layout` does."""
    layout = (width, height, pixel_format, row_stride_bytes, b"", color_matrix, color_range)
    raw = RawImage(*layout)
    check_layout(raw, max_pixels)
    return lengths(raw)


def check_layout(raw: RawImage, max_pixels: int) -> None:
    """Refuse raw pixels whose dimensions do not add up, whatever their bytes.

    Raises:
        InvalidImage: Names the field, what it is and what it must be.
    """
    name = "image.raw"
    for side, value in (("width", raw.width), ("height", raw.height)):
        if not 1 <= value <= MAX_SIDE:
            raise _raw_error(f"{name}.{side}", f"is {value}, must be 1 to {MAX_SIDE} pixels")
    if raw.pixel_format not in _CHANNELS and raw.pixel_format not in _PLANAR:
        names = _contract_names(PixelFormat, "PIXEL_FORMAT")
        known = ", ".join(names[one] for one in names if one)
        raise _raw_error(f"{name}.pixel_format", f"is {_format_name(raw)}, must be one of {known}")
    if raw.width * raw.height > max_pixels:
        raise InvalidImage(
            f"{name}.width",
            f"times height is {raw.width * raw.height} pixels, the limit (max_image_pixels) is"
            f" {max_pixels}",
            kind="too_many_pixels",
        )
    if raw.pixel_format in _PLANAR and (raw.width % 2 or raw.height % 2):
        raise _raw_error(
            f"{name}.width",
            f"{raw.width} x {raw.height}: both sides must be even for {_format_name(raw)}",
        )
    _check_color(raw)
    row = raw.width * _CHANNELS.get(raw.pixel_format, 1)
    if raw.row_stride_bytes and raw.row_stride_bytes < row:
        raise _raw_error(
            f"{name}.row_stride_bytes",
            f"is {raw.row_stride_bytes}, a row of {raw.width} pixels in {_format_name(raw)} has"
            f" {row} bytes; 0 means packed rows",
        )


def _check_color(raw: RawImage) -> None:
    """Refuse a matrix or a range that is unknown, or that goes with no YUV."""
    if not (raw.color_matrix or raw.color_range):
        return
    for field, known in (("color_matrix", ColorMatrix), ("color_range", ColorRange)):
        value = getattr(raw, field)
        if not value:
            continue
        names = _contract_names(known, field.upper())
        if value not in names:
            allowed = ", ".join(names[one] for one in names if one)
            raise _raw_error(f"image.raw.{field}", f"is {value}, must be one of {allowed}")
        if raw.pixel_format not in _PLANAR:
            raise _raw_error(
                f"image.raw.{field}",
                f"is {names[value]}, which {_format_name(raw)} has not; leave it unset, it goes"
                " with PIXEL_FORMAT_NV12 and PIXEL_FORMAT_I420",
            )


def _raw_error(field: str, reason: str) -> InvalidImage:
    return InvalidImage(field, reason, kind="bad_raw")


def raw_to_rgb(
    raw: RawImage,
    size: tuple[int, int] | None = None,
    interpolation: Interpolation = "bilinear",
    background: Color | None = None,
) -> NDArray[np.uint8]:
    """Return a checked raw image as RGB.

    Args:
        raw: The image.
        size: Height and width that it will be resized to, if it will. Planes of a camera format
            are made smaller before they are converted: both are linear, so the order matters by
            rounding only, and half the pixels of RGB are resampled and few are converted.
        interpolation: How it will be resized.
        background: Colour that RGBA is composited on; None drops alpha.

    Returns:
        uint8 [height, width, 3], of the image's own size or, for a camera format, of `size`. A
        read-only view of the message if nothing has to be changed.
    """
    if raw.pixel_format in _PLANAR:
        return _planar_to_rgb(raw, size, interpolation)
    height, width, channels = raw.height, raw.width, _CHANNELS[raw.pixel_format]
    stride = raw.row_stride_bytes or width * channels
    # NumPy checks that they lie within the bytes.
    rows: NDArray[np.uint8] = np.ndarray(
        (height, width, channels), np.uint8, raw.pixels, strides=(stride, channels, 1)
    )
    if raw.pixel_format == PixelFormat.RGB:
        # To be resized, it is copied, since torch refuses memory that it may not write to.
        return rows if size == (height, width) else np.array(rows, order="C")
    if raw.pixel_format == PixelFormat.RGBA and background is not None:
        return np.asarray(composite(Image.fromarray(rows), background))
    # Plane by plane, which takes a quarter of the time of numpy's own way.
    rgb = np.empty((height, width, 3), dtype=np.uint8)
    for channel, source in enumerate(_CHANNEL_ORDER[raw.pixel_format]):
        rgb[:, :, channel] = rows[:, :, source]
    return rgb


def _format_name(raw: RawImage) -> str:
    """Return the name of its format in the contract; the number, if it has none."""
    return _contract_names(PixelFormat, "PIXEL_FORMAT").get(raw.pixel_format, str(raw.pixel_format))


def _contract_names(known: type[IntEnum], prefix: str) -> dict[int, str]:
    """Return the names of an enum's values in the contract."""
    return {one.value: f"{prefix}_{one.name}" for one in known}


def _planes(raw: RawImage) -> list[tuple[int, int, int]]:
    """Return (rows, stride, bytes of a row that count) of each plane."""
    height, width = raw.height, raw.width
    if raw.pixel_format not in _PLANAR:
        row = width * _CHANNELS[raw.pixel_format]
        return [(height, raw.row_stride_bytes or row, row)]
    stride = raw.row_stride_bytes or width
    luma = (height, stride, width)
    if raw.pixel_format == PixelFormat.NV12:
        return [luma, (height // 2, stride, width)]
    half = (stride + 1) // 2
    return [luma, (height // 2, half, width // 2), (height // 2, half, width // 2)]


def lengths(raw: RawImage) -> tuple[int, int]:
    """Return the length of all planes with and without the padding after the last row."""
    full = padding = 0
    for rows, stride, used in _planes(raw):
        full, padding = full + rows * stride, stride - used
    return full, full - padding


def _planar_to_rgb(
    raw: RawImage,
    size: tuple[int, int] | None,
    interpolation: Interpolation,
) -> NDArray[np.uint8]:
    planes: list[NDArray[np.uint8]] = []
    offset = 0
    for rows, stride, used in _planes(raw):
        planes.append(np.ndarray((rows, used), np.uint8, raw.pixels, offset, (stride, 1)))
        offset += rows * stride
    luma = planes[0]
    color = raw.color_matrix, raw.color_range
    if raw.pixel_format == PixelFormat.NV12:
        chroma = planes[1].reshape(raw.height // 2, raw.width // 2, 2)
    else:
        chroma = np.stack([planes[1], planes[2]], axis=-1)
    if size is not None and size[0] < raw.height and size[1] < raw.width:
        # Copies, since torch refuses memory that it may not write to.
        luma = resample(np.array(luma)[:, :, None], size, interpolation)[:, :, 0]
        return yuv_to_rgb(luma, resample(np.array(chroma), size, interpolation), *color)
    rgb = np.empty((raw.height, raw.width, 3), dtype=np.uint8)
    # In strips, so that the float intermediates stay in the cache and never weigh much.
    for top in range(0, raw.height, _STRIP_ROWS):
        strip, half = slice(top, top + _STRIP_ROWS), slice(top // 2, (top + _STRIP_ROWS) // 2)
        doubled = chroma[half].repeat(2, axis=0).repeat(2, axis=1)
        rgb[strip] = yuv_to_rgb(luma[strip], doubled, *color)
    return rgb
