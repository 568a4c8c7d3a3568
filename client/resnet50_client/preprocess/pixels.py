"""From an image to the network's input: decoding, conversion to RGB, resizing. Imports Pillow."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .._arrays import RawPixels
from .decode import decode_file
from .geometry import Geometry
from .raw import raw_to_rgb, to_rgb
from .resize import resize_and_crop


def network_input(
    content: bytes | RawPixels, geometry: Geometry, background: str
) -> NDArray[np.uint8]:
    """Preprocess an image.

    Args:
        content: A file, or raw pixels.
        geometry: Resize and crop.
        background: "#rrggbb" that alpha is composited on; "none" drops it.

    Returns:
        uint8 [height, width, 3] of `geometry.input_size`, RGB, contiguous.

    Raises:
        InvalidImageError: The file cannot be decoded here with the server's pixels.
    """
    if isinstance(content, bytes):
        pixels = to_rgb(decode_file(content, geometry), background)
    else:
        pixels = raw_to_rgb(content, geometry, background)
    return resize_and_crop(pixels, geometry)
