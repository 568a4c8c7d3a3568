"""An image as a request brings it: a complete file, raw pixels, or the network's input."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, TypeAlias


class PixelFormat(IntEnum):
    """Layout of raw pixels, with the numbers of the contract."""

    UNSPECIFIED = 0
    RGB = 1
    BGR = 2
    RGBA = 3
    GRAY = 4
    NV12 = 5
    I420 = 6


class ColorMatrix(IntEnum):
    """Matrix coefficients of YUV pixels, with the numbers of the contract."""

    UNSPECIFIED = 0
    BT601 = 1
    BT709 = 2
    BT2020 = 3


class ColorRange(IntEnum):
    """Range of YUV levels, with the numbers of the contract."""

    UNSPECIFIED = 0
    LIMITED = 1
    FULL = 2


class RawImage(NamedTuple):
    """Raw pixels.

    Attributes:
        width: In pixels.
        height: In pixels.
        pixel_format: A `PixelFormat`.
        row_stride_bytes: From the start of one row to that of the next; 0 for packed rows.
        pixels: The planes, one after the other.
        color_matrix: A `ColorMatrix`; unspecified is BT.601.
        color_range: A `ColorRange`; unspecified is limited.
    """

    width: int
    height: int
    pixel_format: int
    row_stride_bytes: int
    pixels: bytes
    color_matrix: int = ColorMatrix.UNSPECIFIED
    color_range: int = ColorRange.UNSPECIFIED


@dataclass(frozen=True)
class PreprocessedImage:
    """The network's input, made by the caller.

    Attributes:
        pixels: uint8 [height, width, 3] of the variant's input size, RGB, not normalized.
        transform_digest: `Transform.digest` of the transform that made it.
    """

    pixels: bytes
    transform_digest: str


class ImageWarning(IntEnum):
    """Something that a result does not tell about its image, with the numbers of the contract.

    Attributes:
        TRUNCATED: Data was missing; the pixels that it would have given are grey or black.
    """

    TRUNCATED = 1


Source: TypeAlias = bytes | RawImage | PreprocessedImage
"""An encoded file, raw pixels, or the network's input."""


def size_bytes(source: Source) -> int:
    """Return the size of an image as it was sent."""
    return len(source) if isinstance(source, bytes) else len(source.pixels)
