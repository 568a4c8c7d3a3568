"""Resizing with the pixels of the server, to within one level.

Antialiased methods are Pillow's, which torch reproduces; the others, which Pillow does not have,
are computed here as torch defines them.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .geometry import Geometry, Size

_METHODS = {
    "nearest-exact": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "hamming": Image.Resampling.HAMMING,
    "box": Image.Resampling.BOX,
}
# Pixels to each side of the centre that a kernel reads when it does not make the image smaller.
_RADIUS = {
    "nearest-exact": 0.5,
    "box": 0.5,
    "bilinear": 1.0,
    "hamming": 1.0,
    "bicubic": 2.0,
    "lanczos": 3.0,
}
# Parameter of the cubic convolution kernel in torch, for bicubic without antialiasing.
_CUBIC = -0.75


def resize_and_crop(pixels: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
    """Pad, resize and crop an image.

    Args:
        pixels: uint8 [height, width, 3].
        geometry: Sizes and method.

    Returns:
        uint8 [height, width, 3] of `geometry.input_size`, contiguous.
    """
    size = (pixels.shape[0], pixels.shape[1])
    resized = geometry.resized(size)
    rows, columns = geometry.cropped(resized)
    if geometry.resizes_part(size):
        pixels = _resize_part(pixels, resized, rows, columns, geometry.transform.interpolation)
    else:
        if geometry.needs_padding(size):
            pixels = _pad_and_resize(pixels, geometry)
        else:
            pixels = resize(pixels, resized, geometry)
        pixels = pixels[rows.start : rows.stop, columns.start : columns.stop]
    if pixels.shape[:2] != geometry.input_size:
        return _centred(pixels, geometry.input_size, geometry.transform.fill)
    return np.array(pixels, order="C")  # a copy, which may be written to


def resize(pixels: NDArray[np.uint8], size: Size, geometry: Geometry) -> NDArray[np.uint8]:
    """Resize an image or planes.

    Args:
        pixels: uint8 [height, width, channels].
        size: New height and width.
        geometry: For the method.

    Returns:
        uint8 [new height, new width, channels].
    """
    if size == pixels.shape[:2]:
        return pixels
    method = geometry.transform.interpolation
    if method == "nearest":
        down, across = (
            _nearest(range(new), new, old) for new, old in zip(size, pixels.shape[:2], strict=True)
        )
        return pixels[down[:, None], across]
    if not geometry.transform.antialias:
        return _interpolate(pixels, size, method)
    if method == "bicubic":
        return _resample_in_floats(pixels, size)
    return _resample(pixels, size, method, (0, 0, pixels.shape[1], pixels.shape[0]))


def _resample_in_floats(pixels: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """Resize by bicubic, columns first, clipped but not rounded in between.

    Its negative weights would amplify that rounding, and torch rounds otherwise than Pillow: some
    pixels would be two levels apart.
    """
    resized = np.empty((*size, pixels.shape[2]), dtype=np.uint8)
    for channel in range(pixels.shape[2]):
        plane = Image.fromarray(pixels[:, :, channel].astype(np.float32))
        wide = plane.resize((size[1], pixels.shape[0]), Image.Resampling.BICUBIC)
        plane = Image.fromarray(np.asarray(wide).clip(0, 255))
        values = np.asarray(plane.resize(size[::-1], Image.Resampling.BICUBIC))
        resized[:, :, channel] = np.rint(values).clip(0, 255)
    return resized


def _resample(
    pixels: NDArray[np.uint8],
    size: Size,
    method: str,
    box: tuple[float, float, float, float],
) -> NDArray[np.uint8]:
    """Resize the part of an image in a box (left, top, right, bottom) with Pillow."""
    height, width = size
    if pixels.shape[2] == 3:
        image = Image.fromarray(np.ascontiguousarray(pixels))
        return np.asarray(image.resize((width, height), _METHODS[method], box))
    planes = (Image.fromarray(pixels[:, :, one]) for one in range(pixels.shape[2]))
    resized = [plane.resize((width, height), _METHODS[method], box) for plane in planes]
    return np.dstack([np.asarray(plane) for plane in resized])


def _resize_part(
    pixels: NDArray[np.uint8], size: Size, rows: range, columns: range, method: str
) -> NDArray[np.uint8]:
    """Resize an image, but only some rows and columns of the result.

    Args:
        pixels: uint8 [height, width, 3].
        size: New height and width of the whole image.
        rows: The rows of the result.
        columns: The columns of the result.
        method: Name of the method.

    Returns:
        uint8 [len(rows), len(columns), 3].
    """
    old = (pixels.shape[0], pixels.shape[1])
    if size == old:
        return pixels[rows.start : rows.stop, columns.start : columns.stop]
    if method == "nearest":
        down, across = _nearest(rows, size[0], old[0]), _nearest(columns, size[1], old[1])
        return pixels[down[:, None], across]
    top, bottom, box_top, box_bottom = _source(rows, size[0], old[0], _RADIUS[method])
    left, right, box_left, box_right = _source(columns, size[1], old[1], _RADIUS[method])
    part = pixels[top:bottom, left:right]
    # Columns of all rows first, then rows, as with whole images: Pillow would choose the order by
    # the box, and the rounding in between makes a difference of some levels.
    height = part.shape[0]
    part = _resample(part, (height, len(columns)), method, (box_left, 0, box_right, height))
    return _resample(
        part, (len(rows), len(columns)), method, (0, box_top, len(columns), box_bottom)
    )


def _nearest(part: range, new: int, old: int) -> NDArray[np.int64]:
    """Return the nearest pixels to those of a part, in the precision of torch."""
    scale = np.float32(old) / np.float32(new)
    index = np.floor(np.arange(part.start, part.stop, dtype=np.float32) * scale)
    nearest: NDArray[np.int64] = np.minimum(index.astype(np.int64), old - 1)
    return nearest


def _source(part: range, new: int, old: int, radius: float) -> tuple[int, int, float, float]:
    """Return the pixels along one side that a part of the resized image is computed from.

    Args:
        part: The new pixels.
        new: Number of new pixels in all.
        old: Number of old pixels.
        radius: Radius of the kernel, in the larger one of the old and new pixels.

    Returns:
        The first pixel, the one behind the last, and the edges of the part, counted from the first.
    """
    scale = old / new
    begin, end = part.start * scale, part.stop * scale
    reach = radius * max(1.0, scale) + 1.0
    first, last = max(0, math.floor(begin - reach)), min(old, math.ceil(end + reach))
    return first, last, begin - first, min(end - first, float(last - first))


def _interpolate(pixels: NDArray[np.uint8], size: Size, method: str) -> NDArray[np.uint8]:
    """Resize without antialiasing: from the nearest 2 x 2 or 4 x 4 pixels, columns first.

    In integers of the precision of torch: rounded otherwise, some pixels are two levels apart.
    """
    rows, down = _taps(size[0], pixels.shape[0], method)
    columns, across = _taps(size[1], pixels.shape[1], method)
    needed, where = np.unique(rows, return_inverse=True)
    strip = pixels[needed]
    strip = _weighted([strip[:, column] for column in columns.T], across[:, :, None])
    rows = where.reshape(rows.shape)
    return _weighted([strip[row] for row in rows.T], down[:, :, None, None])


def _weighted(taps: list[NDArray[np.uint8]], weights: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return the weighted sum of pixels.

    Args:
        taps: The pixels of each tap, uint8.
        weights: float64 [new, taps, ...]; each tap's broadcast to the pixels.
    """
    # Of int16 weights, as many bits as the largest one leaves.
    bits = math.floor(math.log2((2**15 - 0.5) / np.abs(weights).max()))
    fixed = np.trunc(weights * 2**bits + np.copysign(0.5, weights)).astype(np.int32)
    total = np.full(taps[0].shape, 2 ** (bits - 1), dtype=np.int32)
    for number, tap in enumerate(taps):
        total += tap * fixed[:, number]
    clipped: NDArray[np.uint8] = (total >> bits).clip(0, 255).astype(np.uint8)
    return clipped


def _taps(new: int, old: int, method: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the pixels along one side that each new pixel is computed from, and their weights.

    Returns:
        int64 [new, taps] and float64 [new, taps]; pixels beyond the edge are those at the edge.
    """
    centre = (np.arange(new) + 0.5) * (old / new) - 0.5
    if method == "bilinear":
        centre = centre.clip(0, None)
    first = np.floor(centre)
    at = (centre - first)[:, None]
    if method == "bilinear":
        weights, offsets = np.concatenate([1 - at, at], axis=1), np.arange(2)
    else:
        distance = np.concatenate([at + 1, at, 1 - at, 2 - at], axis=1)
        near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
        far = ((_CUBIC * distance - 5 * _CUBIC) * distance + 8 * _CUBIC) * distance - 4 * _CUBIC
        weights, offsets = np.where(distance <= 1, near, far), np.arange(-1, 3)
    index = (first.astype(np.int64)[:, None] + offsets).clip(0, old - 1)
    # The weights of the pixel at the edge are added up: the sum is rounded to an integer.
    same = index[:, :, None] == index[:, None, :]
    is_repeated = np.tril(same, -1).any(axis=2)
    return index, np.where(is_repeated, 0.0, (same * weights[:, None, :]).sum(axis=2))


def _pad_and_resize(pixels: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
    """Pad to a square and resize, the longer side first: a long image's square would be huge."""
    size = (pixels.shape[0], pixels.shape[1])
    half = geometry.half_resized(size)
    strip = (half[0], size[1]) if size[0] > size[1] else (size[0], half[1])
    pixels = _centred(resize(pixels, strip, geometry), half, geometry.transform.fill)
    return resize(pixels, geometry.resized(size), geometry)


def _centred(pixels: NDArray[np.uint8], size: Size, fill: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return pixels in the centre of a larger canvas; uint8 [height, width, 3]."""
    canvas = np.empty((*size, 3), dtype=np.uint8)
    canvas[:] = fill
    height, width = pixels.shape[:2]
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    canvas[top : top + height, left : left + width] = pixels
    return canvas
