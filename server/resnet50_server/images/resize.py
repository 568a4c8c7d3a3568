"""Pad, resize and crop 8-bit pixels, as torchvision's transforms do."""

from __future__ import annotations

import math
import sys

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .transform import ANTIALIAS_OPTIONAL, Interpolation, Transform

# Methods of Pillow's that torch does not have for tensors, has in recent releases only, or rounds
# otherwise ("nearest-exact").
PILLOW_ONLY = ("nearest-exact", "lanczos", "hamming", "box")

# An image this many times as long as wide is cropped while it is resized: it is resized only where
# the crop lies. Others are resized whole, which is what torchvision does, in C.
ELONGATED = 4
# Pixels to each side of the centre that a kernel reads, when it does not make the image smaller.
RADIUS = {
    "nearest-exact": 0.5,
    "box": 0.5,
    "bilinear": 1.0,
    "hamming": 1.0,
    "bicubic": 2.0,
    "lanczos": 3.0,
}


def is_elongated(size: tuple[int, int]) -> bool:
    """Return whether an image of a (height, width) is cropped while it is resized."""
    return max(size) > ELONGATED * min(size)


def resizes_part(height: int, width: int, transform: Transform) -> bool:
    """Return whether an image of this size is resized only where the crop lies."""
    return (
        is_elongated(transform.resized(height, width))
        and not isinstance(transform.resize, tuple)
        and not transform.needs_padding(height, width)
        and transform.antialias
    )


def resized_pixels(height: int, width: int, transform: Transform) -> int:
    """Return how many pixels resizing makes of an image at most.

    Of an elongated one, those of the crop; of a padded one, those of its longer side too.
    """
    size = transform.resized(height, width)
    if resizes_part(height, width, transform):
        rows, columns = _cropped(size, transform)
        return len(rows) * len(columns)
    if transform.needs_padding(height, width):
        return max(math.prod(size), math.prod(transform.half_resized(height, width)))
    return math.prod(size)


def resample(
    pixels: NDArray[np.uint8],
    size: tuple[int, int],
    interpolation: Interpolation,
    antialias: bool = True,
) -> NDArray[np.uint8]:
    """Resize an image or planes.

    Servers with a stub engine run without torch. There Pillow resizes, whose pixels may be a level
    apart: what stub engines return does not depend on pixels.

    Args:
        pixels: uint8 [height, width, channels].
        size: New height and width.
        interpolation: How.
        antialias: Whether bilinear and bicubic average all pixels that a smaller one covers.

    Returns:
        uint8 [new height, new width, channels].
    """
    if interpolation in PILLOW_ONLY or sys.modules.get("torch") is None:
        return resample_by_pillow(pixels, size, interpolation)
    import torch
    from torch.nn import functional

    smooth = interpolation in ANTIALIAS_OPTIONAL
    resized = functional.interpolate(
        torch.from_numpy(pixels).permute(2, 0, 1)[None],
        size=list(size),
        mode=interpolation,
        align_corners=False if smooth else None,
        antialias=antialias and smooth,
    )
    out: NDArray[np.uint8] = resized[0].permute(1, 2, 0).numpy()
    return out


def resample_by_pillow(
    pixels: NDArray[np.uint8],
    size: tuple[int, int],
    interpolation: Interpolation,
    box: tuple[float, float, float, float] | None = None,
) -> NDArray[np.uint8]:
    """Resize planes; `box` is the part of them to resize: left, top, right, bottom."""
    height, width = size
    method = Image.Resampling[interpolation.removesuffix("-exact").upper()]
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


def resample_part(
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
    return resample_by_pillow(
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
        range(max(0, start), min(side, start + crop))
        for start, side, crop in zip(origin, size, transform.input_size, strict=True)
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
        uint8 [height, width, 3] of `transform.input_size`, contiguous; a copy.
    """
    height, width = pixels.shape[:2]
    size = transform.resized(height, width)
    rows, columns = _cropped(size, transform)
    if transform.needs_padding(height, width):
        pixels = _pad_and_resize(pixels, transform)[
            rows.start : rows.stop, columns.start : columns.stop
        ]
    elif resizes_part(height, width, transform):
        pixels = resample_part(pixels, size, rows, columns, transform.interpolation)
    else:
        pixels = _resized(pixels, size, transform)[
            rows.start : rows.stop, columns.start : columns.stop
        ]
    if pixels.shape[:2] != transform.input_size:
        return _centred(pixels, transform.input_size, transform.fill)
    return np.array(pixels, order="C")


def _pad_and_resize(pixels: NDArray[np.uint8], transform: Transform) -> NDArray[np.uint8]:
    """Pad to a square and resize.

    Each axis is resized on its own anyway, so the longer side is resized before the shorter one is
    padded: the square of a very long image would need a hundred times its memory.
    """
    height, width = pixels.shape[:2]
    half = transform.half_resized(height, width)
    strip = (half[0], width) if height > width else (height, half[1])
    pixels = _centred(_resized(pixels, strip, transform), half, transform.fill)
    return _resized(pixels, transform.resized(height, width), transform)


def _resized(
    pixels: NDArray[np.uint8], size: tuple[int, int], transform: Transform
) -> NDArray[np.uint8]:
    if size == pixels.shape[:2]:
        return pixels
    return resample(pixels, size, transform.interpolation, transform.antialias)


def _centred(
    pixels: NDArray[np.uint8], size: tuple[int, int], fill: tuple[int, int, int]
) -> NDArray[np.uint8]:
    """Return pixels in the centre of a larger canvas; uint8 [height, width, 3]."""
    canvas = np.empty((*size, 3), dtype=np.uint8)
    canvas[:] = fill
    height, width = pixels.shape[:2]
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    canvas[top : top + height, left : left + width] = pixels
    return canvas
