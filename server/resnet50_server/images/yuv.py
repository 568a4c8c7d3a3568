"""YUV pixels to RGB, by the matrix and the range that an image declares."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .source import ColorMatrix, ColorRange

# Weights of red and blue in luma: ITU-R BT.601-7 section 2.5.1, BT.709-6 section 3.2, BT.2020-2
# table 4 (non-constant luminance). ITU-T H.273 table 4 lists all three.
_LUMA_WEIGHTS = {
    ColorMatrix.BT601: (0.299, 0.114),
    ColorMatrix.BT709: (0.2126, 0.0722),
    ColorMatrix.BT2020: (0.2627, 0.0593),
}


class _Conversion(NamedTuple):
    """Conversion of 8-bit YUV to RGB levels.

    Attributes:
        black: The level of luma that is black.
        luma: Factor of luma above black.
        chroma: float32 [2, 3]: red, green and blue of U - 128 and of V - 128.
    """

    black: float
    luma: float
    chroma: NDArray[np.float32]


def _conversion(matrix: ColorMatrix, levels: ColorRange) -> _Conversion:
    """Return the conversion by the equations of ITU-T H.273 section 8.3."""
    red, blue = _LUMA_WEIGHTS[matrix]
    green = 1.0 - red - blue
    full = levels == ColorRange.FULL
    chroma = np.array(
        [
            [0.0, -2.0 * blue * (1.0 - blue) / green, 2.0 * (1.0 - blue)],
            [2.0 * (1.0 - red), -2.0 * red * (1.0 - red) / green, 0.0],
        ]
    )
    return _Conversion(
        black=0.0 if full else 16.0,
        luma=1.0 if full else 255 / 219,
        chroma=(chroma * (1.0 if full else 255 / 224)).astype(np.float32),
    )


_CONVERSIONS: dict[tuple[int, int], _Conversion] = {
    (matrix, levels): _conversion(
        ColorMatrix(matrix or ColorMatrix.BT601), ColorRange(levels or ColorRange.LIMITED)
    )
    for matrix in ColorMatrix
    for levels in ColorRange
}


def yuv_to_rgb(
    luma: NDArray[np.uint8], chroma: NDArray[np.uint8], matrix: int, levels: int
) -> NDArray[np.uint8]:
    """Convert YUV pixels.

    Args:
        luma: uint8 [height, width].
        chroma: uint8 [height, width, 2]: U and V.
        matrix: A `ColorMatrix`; unspecified is BT.601.
        levels: A `ColorRange`; unspecified is limited.

    Returns:
        uint8 RGB [height, width, 3].
    """
    black, luma_factor, chroma_factors = _CONVERSIONS[matrix, levels]
    rgb = (chroma.astype(np.float32) - 128.0) @ chroma_factors
    rgb += ((luma.astype(np.float32) - black) * luma_factor)[..., None]
    converted: NDArray[np.uint8] = np.rint(rgb, out=rgb).clip(0, 255).astype(np.uint8)
    return converted
