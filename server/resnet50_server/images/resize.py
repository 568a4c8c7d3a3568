"""Resizing of 8-bit planes, as torchvision's transforms do it on tensors."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from .transform import Interpolation


def resample(
    pixels: NDArray[np.uint8], size: tuple[int, int], interpolation: Interpolation
) -> NDArray[np.uint8]:
    """Resize an image or planes; antialiased unless nearest.

    Args:
        pixels: uint8 [height, width, channels].
        size: New height and width.
        interpolation: How.

    Returns:
        uint8 [new height, new width, channels].
    """
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
