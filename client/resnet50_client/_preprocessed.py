"""Images that the caller has preprocessed; without PIL, which only their making needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ._arrays import RawPixels
from .errors import InvalidImageError


@dataclass(frozen=True, eq=False)
class PreprocessedImage:
    """The network's input, as a `resnet50_client.preprocess.Preprocessor` makes it of an image.

    Attributes:
        pixels: uint8 [height, width, 3] of the variant's input size, RGB.
        transform_digest: `Transform.digest` of the transform that made it; the server computes it
            only with a variant of the same one.
    """

    pixels: NDArray[np.uint8]
    transform_digest: str


@dataclass(frozen=True)
class PreprocessedPixels:
    """The network's input, as the contract's `PreprocessedImage` has it.

    Attributes:
        pixels: RGB, row by row.
        transform_digest: Digest of the transform that made it.
    """

    pixels: bytes
    transform_digest: str


ImageContent: TypeAlias = bytes | RawPixels | PreprocessedPixels
"""An image as it is sent: a file's content, raw pixels, or the network's input."""


def preprocessed_pixels(image: PreprocessedImage) -> PreprocessedPixels:
    """Return the pixels as they are sent, checked as far as the variant does not matter.

    Raises:
        InvalidImageError: Its pixels are of another kind, or the digest is missing.
    """
    pixels, digest = image.pixels, image.transform_digest
    is_array = isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8
    if not (is_array and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size):
        kind = f"{pixels.dtype} {list(pixels.shape)}" if hasattr(pixels, "dtype") else type(pixels)
        raise InvalidImageError(
            f"image: pixels of a PreprocessedImage are {kind}, must be uint8 [height, width, 3]:"
            " RGB, neither scaled nor normalized",
            field="image.preprocessed.pixels",
        )
    if not (isinstance(digest, str) and digest):
        raise InvalidImageError(
            f"image: transform_digest is {digest!r}, must be Transform.digest of the variant",
            field="image.preprocessed.transform_digest",
        )
    return PreprocessedPixels(pixels.tobytes(), digest)
