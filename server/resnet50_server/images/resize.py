"""Resize and crop 8-bit pixels, as torchvision's transforms do on tensors."""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .transform import Interpolation, Transform


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
    pixels: NDArray[np.uint8], size: tuple[int, int], interpolation: Interpolation
) -> NDArray[np.uint8]:
    height, width = size
    method = Image.Resampling[interpolation.upper()]
    planes = (Image.fromarray(pixels[:, :, one]) for one in range(pixels.shape[2]))
    return np.dstack([np.asarray(plane.resize((width, height), method)) for plane in planes])


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
    if size != (height, width):
        pixels = resample(pixels, size, transform.interpolation)
    top, left = transform.crop_origin(*size)
    crop = transform.crop
    if top < 0 or left < 0:
        canvas = np.zeros((max(crop, size[0]), max(crop, size[1]), 3), dtype=np.uint8)
        at = max(0, -top), max(0, -left)
        canvas[at[0] : at[0] + size[0], at[1] : at[1] + size[1]] = pixels
        pixels, top, left = canvas, max(0, top), max(0, left)
    return np.array(pixels[top : top + crop, left : left + crop], order="C")
