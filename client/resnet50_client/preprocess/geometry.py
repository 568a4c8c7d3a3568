"""The sizes through which a variant's transform takes an image, as the server computes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from .._types.variants import Transform

Size: TypeAlias = tuple[int, int]
"""Height and width, in pixels."""

METHODS = ("nearest", "nearest-exact", "bilinear", "bicubic", "lanczos", "hamming", "box")
# An image this many times as long as wide is resized only where the crop lies.
_ELONGATED = 4
# A scaled JPEG has at least so many times the pixels, each way, that it is resized to; libjpeg
# scales by these fractions.
_MIN_SCALED_MULTIPLE = 3
_FRACTIONS = (8, 4, 2)


@dataclass(frozen=True)
class Geometry:
    """Resize and crop of a variant.

    Attributes:
        transform: The variant's.
    """

    transform: Transform

    @property
    def input_size(self) -> Size:
        """Size of the network's input."""
        return self.transform.input_size

    def resized(self, size: Size) -> Size:
        """Return the size after padding to a square, if at all, and resizing.

        The side that follows from the other one is truncated, as in torchvision.
        """
        height, width = size
        if self.transform.pad_to_square:
            height = width = max(size)
        short, long = min(height, width), max(height, width)
        if self.transform.resize_to is not None:
            return self.transform.resize_to
        if self.transform.resize_longer_side:
            side = self.transform.resize_longer_side
            long, short = side, max(1, int(side * short / long))
        elif self.transform.resize:
            side = self.transform.resize
            long, short = int(side * long / short), side
        else:
            return height, width
        return (long, short) if height > width else (short, long)

    def half_resized(self, size: Size) -> Size:
        """Return the size with the longer side resized and the other one padded to it."""
        height, width = size
        new_height, new_width = self.resized(size)
        return (new_height, height) if height > width else (width, new_width)

    def needs_padding(self, size: Size) -> bool:
        """Return True if an image of this size is padded before it is resized."""
        return self.transform.pad_to_square and size[0] != size[1]

    def resizes_part(self, size: Size) -> bool:
        """Return True if an image of this size is resized only where the crop lies."""
        resized = self.resized(size)
        return (
            max(resized) > _ELONGATED * min(resized)
            and self.transform.resize_to is None
            and not self.needs_padding(size)
            and self.transform.antialias
        )

    def cropped(self, resized: Size) -> tuple[range, range]:
        """Return the rows and columns of a resized image that the central crop keeps."""
        rows, columns = (
            range(max(0, start), min(side, start + crop))
            for side, crop in zip(resized, self.input_size, strict=True)
            for start in (_centred(side, crop),)
        )
        return rows, columns

    def jpeg_fraction(self, size: Size) -> int:
        """Return 2, 4 or 8 if a JPEG of this size is decoded at that fraction of it, else 1."""
        exact = self.transform.exact_jpeg_pixels
        if not exact or size[0] * size[1] <= exact:
            return 1
        if not self.transform.antialias or self.transform.interpolation.startswith("nearest"):
            return 1
        resized = self.resized(size)
        if self.transform.resize_to is not None:
            resized = (max(resized), max(resized))  # the image may yet be turned upright
        times = min(
            side // (_MIN_SCALED_MULTIPLE * new) for side, new in zip(size, resized, strict=True)
        )
        return next((part for part in _FRACTIONS if part <= times), 1)


def _centred(length: int, crop: int) -> int:
    """Return the start of a crop in a side, by Python's rounding as in torchvision.

    Below 0, it is the number of pixels that are padded before the image.
    """
    return round((length - crop) / 2.0) if length >= crop else -((crop - length) // 2)
