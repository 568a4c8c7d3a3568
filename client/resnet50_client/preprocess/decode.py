"""Decoding of image files to upright RGB or RGBA, with the server's reading of them."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .._pil import pil_array
from ..errors import InvalidImageError
from .geometry import Geometry

# Formats of the contract; HEIF if pillow-heif is registered as an opener.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "HEIF")
_ADVICE = "send the file itself: the server reads it, or says what is wrong with it"
_PNG_DEPTH_AT = 24


def decode_file(content: bytes, geometry: Geometry) -> NDArray[np.uint8]:
    """Decode an image file.

    Args:
        content: The whole file.
        geometry: Determines the fraction of its size at which a large JPEG is decoded.

    Returns:
        uint8 [height, width, 3] RGB, [height, width, 4] RGBA if it has alpha, or [height, width]
        grey; upright.

    Raises:
        InvalidImageError: The file cannot be decoded here with the server's pixels.
    """
    try:
        with _open(content) as image:
            _prepare(image, content, geometry)
            return pil_array(image)
    except (InvalidImageError, MemoryError):
        raise
    except Exception as error:  # Pillow raises many kinds for broken files
        raise InvalidImageError(
            f"image: cannot be decoded ({type(error).__name__}: {error}); {_ADVICE}",
            field="image",
        ) from error


def _open(content: bytes) -> Image.Image:
    Image.init()  # Pillow rejects formats that it has not loaded yet
    return Image.open(io.BytesIO(content), formats=[one for one in _FORMATS if one in Image.OPEN])


def _prepare(image: Image.Image, content: bytes, geometry: Geometry) -> None:
    """Load an image, so that its pixels and its transparent value are those of the server."""
    if image.format in ("JPEG", "MPO"):
        part = geometry.jpeg_fraction((image.height, image.width))
        if part > 1:
            image.draft(None, (image.width // part, image.height // part))
    if image.format == "TIFF" and image.mode.startswith(("I", "F")):
        raise InvalidImageError(
            f"image: a TIFF of mode {image.mode}, whose tags define black and white; {_ADVICE}",
            field="image",
        )
    image.load()
    if image.format == "PNG":
        if image.mode.startswith("I") and "transparency" in image.info:
            raise InvalidImageError(
                f"image: a PNG with one transparent value of 16 bits; {_ADVICE}", field="image"
            )
        _scale_transparency(image, content)


def _scale_transparency(image: Image.Image, content: bytes) -> None:
    """Scale the transparent value of a PNG to 8 bits; Pillow leaves it in the file's depth."""
    value = image.info.get("transparency")
    depth = content[_PNG_DEPTH_AT] if content[12:16] == b"IHDR" else 8
    if image.mode == "L" and isinstance(value, int) and 0 < depth < 8:
        image.info["transparency"] = value * 255 // ((1 << depth) - 1)
    elif image.mode == "RGB" and isinstance(value, tuple) and depth == 16:
        image.info["transparency"] = tuple(one >> 8 for one in value)
