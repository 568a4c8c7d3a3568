"""Resize and crop 8-bit pixels, as torchvision's transforms do on tensors."""

from __future__ import annotations

import math
import sys

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .transform import Interpolation, Transform

# An image this many times as long as wide is cropped while it is resized: it is resized only where
# the crop lies. Others are resized whole, which is what torchvision does, in C.
ELONGATED = 4
# Pixels to each side of the centre that a kernel reads, when it does not make the image smaller.
RADIUS = {"bilinear": 1.0, "bicubic": 2.0}


def is_elongated(size: tuple[int, int]) -> bool:
    """Return whether an image of a (height, width) is cropped while it is resized."""
    return max(size) > ELONGATED * min(size)


def resized_pixels(height: int, width: int, transform: Transform) -> int:
    """Return how many pixels resizing makes of an image: of an elongated one, those of the crop."""
    size = transform.resized(height, width)
    if is_elongated(size):
        rows, columns = _cropped(size, transform)
        return len(rows) * len(columns)
    return size[0] * size[1]


def resample(
    pixels: NDArray[np.uint8], size: tuple[int, int], interpolation: Interpolation
) -> NDArray[np.uint8]:
    """Resize an image or planes; antialiased unless nearest.

    Servers with a stub engine run without torch. There Pillow resizes, whose pixels may be a level
    apart: what stub engines return does not depend on pixels.

    Args:
        pixels: uint8 [height, width, channels].
        size: New height and width.
        interpolation: How.

    Returns:
        uint8 [new height, new width, channels].
    """
    if sys.modules.get("torch") is None:
        return _resample_by_pillow(pixels, size, interpolation)
    import torch
    from torch.nn import functional

    antialias = interpolation != "nearest"
    resized = functional.interpolate(
        torch.from_numpy(pixels).permute(2, 0, 1)[None],
        size=list(size),
        mode=interpolation,
        align_corners=False if antialias else None,
        antialias=antialias,
    )
    out: NDArray[np.uint8] = resized[0].permute(1, 2, 0).numpy()
    return out


def _resample_by_pillow(
    pixels: NDArray[np.uint8],
    size: tuple[int, int],
    interpolation: Interpolation,
    box: tuple[float, float, float, float] | None = None,
) -> NDArray[np.uint8]:
    """Resize planes; `box` is the part of them to resize: left, top, right, bottom."""
    height, width = size
    method = Image.Resampling[interpolation.upper()]
    planes = (Image.fromarray(pixels[:, :, one]) for one in range(pixels.shape[2]))
    if box is None:
        resized = [plane.resize((width, height), method) for plane in planes]
    else:
        # Rows first, then columns, as torch does, and as Pillow does with whole images: rounding in
        # between makes a difference of some levels to bicubic kernels.
        left, top, right, bottom = box
        rows = pixels.shape[0]
        resized = [
            plane.resize((width, rows), method, (left, 0, right, rows)).resize(
                (width, height), method, (0, top, width, bottom)
            )
            for plane in planes
        ]
    return np.dstack([np.asarray(plane) for plane in resized])


def _resample_part(
    pixels: NDArray[np.uint8],
    size: tuple[int, int],
    rows: range,
    columns: range,
    interpolation: Interpolation,
) -> NDArray[np.uint8]:
    """Resize an image, but only some rows and columns of the result.

    Each pixel is the one that resizing the whole image gives, to within a level: kernels lie where
    they would lie then, and read the pixels beyond the part.

    Args:
        pixels: uint8 [height, width, channels].
        size: New height and width of the whole image.
        rows: Those wanted of the new ones.
        columns: Likewise.
        interpolation: As `resample`.

    Returns:
        uint8 [len(rows), len(columns), channels].
    """
    if size == pixels.shape[:2]:
        return pixels[rows.start : rows.stop, columns.start : columns.stop]
    if interpolation == "nearest":
        down, across = (
            _nearest(part, new, old)
            for part, new, old in zip((rows, columns), size, pixels.shape[:2], strict=True)
        )
        return pixels[down[:, None], across]
    radius = RADIUS[interpolation]
    top, bottom, box_top, box_bottom = _source(rows, size[0], pixels.shape[0], radius)
    left, right, box_left, box_right = _source(columns, size[1], pixels.shape[1], radius)
    return _resample_by_pillow(
        np.ascontiguousarray(pixels[top:bottom, left:right]),
        (len(rows), len(columns)),
        interpolation,
        (box_left, box_top, box_right, box_bottom),
    )


def _nearest(part: range, new: int, old: int) -> NDArray[np.int64]:
    """Return the pixels that are nearest to those of a part, in the numbers that torch has."""
    scale = np.float32(old) / np.float32(new)
    index = np.floor(np.arange(part.start, part.stop, dtype=np.float32) * scale)
    nearest: NDArray[np.int64] = np.minimum(index.astype(np.int64), old - 1)
    return nearest


def _source(part: range, new: int, old: int, radius: float) -> tuple[int, int, float, float]:
    """Return what is read along one side for a part of the resized image.

    Args:
        part: Which of the new pixels are wanted.
        new: How many there would be in all.
        old: How many there are.
        radius: Of the kernel, in the larger one of the old and new pixels.

    Returns:
        The first of the old pixels that is read, the one behind the last, and between which of
        their edges the part lies, counted from the first.
    """
    scale = old / new
    begin, end = part.start * scale, part.stop * scale
    reach = radius * max(1.0, scale) + 1.0
    first, last = max(0, math.floor(begin - reach)), min(old, math.ceil(end + reach))
    return first, last, begin - first, min(end - first, float(last - first))


def _cropped(size: tuple[int, int], transform: Transform) -> tuple[range, range]:
    """Return the rows and columns of a resized image that the crop keeps."""
    origin = transform.crop_origin(*size)
    rows, columns = (
        range(max(0, start), min(side, start + transform.crop))
        for start, side in zip(origin, size, strict=True)
    )
    return rows, columns


def resize_and_crop(pixels: NDArray[np.uint8], transform: Transform) -> NDArray[np.uint8]:
    """Apply a variant's geometry.

    Pixels stay as [height, width, 3], as decoders give them, torch resizes them fastest, and the
    network's channels_last layout has them.

    Args:
        pixels: uint8 [height, width, 3].
        transform: Which geometry.

    Returns:
        uint8 [crop, crop, 3], contiguous; a copy.
    """
    height, width = pixels.shape[:2]
    size = transform.resized(height, width)
    top, left = transform.crop_origin(*size)
    crop = transform.crop
    if is_elongated(size):
        rows, columns = _cropped(size, transform)
        pixels = _resample_part(pixels, size, rows, columns, transform.interpolation)
        size, top, left = (len(rows), len(columns)), min(0, top), min(0, left)
    elif size != (height, width):
        pixels = resample(pixels, size, transform.interpolation)
    if top < 0 or left < 0:
        canvas = np.zeros((max(crop, size[0]), max(crop, size[1]), 3), dtype=np.uint8)
        at = max(0, -top), max(0, -left)
        canvas[at[0] : at[0] + size[0], at[1] : at[1] + size[1]] = pixels
        pixels, top, left = canvas, max(0, top), max(0, left)
    return np.array(pixels[top : top + crop, left : left + crop], order="C")
