"""Limits of one image: its bytes, and its pixels as declared, resized and decoded."""

from __future__ import annotations

import re
from dataclasses import dataclass

from PIL import Image

from resnet50_server.errors import InvalidImage
from resnet50_server.settings import Settings

from .decode_guard import FIELD
from .resize import resized_pixels
from .transform import Transform

# Entropy-coded data is read whole however small the image is decoded: 200-megapixel photos by
# default (docs/adr/0030-scaled-jpeg-decoding.md).
JPEG_MULTIPLE = 5

# Pixels are limited here, by the limits of a server; see `ImageLimits` for Pillow's own guard.
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True)
class ImageLimits:
    """Limits of one image.

    Attributes:
        max_bytes: Length of an encoded image.
        max_pixels: Width x height of any image as it is decoded.
        timeout_s: For decoding one, in seconds.
        max_jpeg_pixels: Width x height that a JPEG may declare.
        exact_jpeg_pixels: A JPEG that declares more is decoded at a half, a quarter or an eighth of
            its size where the result is large enough for the variant.
        accept_truncated: Whether to answer from what is there of an image that lacks data.
    """

    max_bytes: int = 32 * 2**20
    max_pixels: int = 50_000_000
    timeout_s: float = 10.0
    max_jpeg_pixels: int = 250_000_000
    exact_jpeg_pixels: int = 50_000_000
    accept_truncated: bool = False

    @classmethod
    def of(cls, settings: Settings) -> ImageLimits:
        """Return the limits of a server."""
        pixels = settings.max_image_pixels
        return cls(
            settings.max_image_bytes,
            pixels,
            settings.decode_timeout_s,
            settings.max_jpeg_pixels or JPEG_MULTIPLE * pixels,
            settings.exact_jpeg_pixels or pixels,
            settings.truncated_images == "accept",
        )

    def __post_init__(self) -> None:
        # Pillow allocates what some headers declare before their size can be checked (a GIF of 43
        # bytes: 4 GB). It has one limit for the process: the largest of ours, twice over.
        Image.MAX_IMAGE_PIXELS = max(self.max_pixels, Image.MAX_IMAGE_PIXELS or 0)


def check_length(length: int, limits: ImageLimits) -> None:
    """Refuse an encoded image by its size in bytes.

    Raises:
        InvalidImage: It is empty or too large.
    """
    if not length:
        raise InvalidImage(FIELD, "has 0 bytes; send a complete image file", kind="empty")
    if length > limits.max_bytes:
        raise InvalidImage(
            FIELD,
            f"has {length} bytes, the limit (max_image_bytes) is {limits.max_bytes};"
            " send a smaller or more compressed image",
            kind="too_many_bytes",
        )


def check_resized(
    field: str, height: int, width: int, transform: Transform, limits: ImageLimits
) -> None:
    """Refuse an image that resizing makes enormous.

    Args:
        field: Where it is in the request.
        height: Its own.
        width: Its own.
        transform: The variant's.
        limits: For its pixels.

    Raises:
        InvalidImage: It is.
    """
    pixels = resized_pixels(height, width, transform)
    if pixels > limits.max_pixels:
        raise InvalidImage(
            field,
            f"is {width} x {height} pixels, and {pixels} pixels while the variant resizes it: more"
            f" than the limit (max_image_pixels) of {limits.max_pixels}; send a less elongated"
            " image, or ask for a variant with a smaller resize",
            kind="too_many_pixels",
        )


def check_memory(pixels: int, limits: ImageLimits) -> None:
    """Refuse a file whose decoding takes more memory than the largest image of another format.

    Args:
        pixels: Of another format, for which decoding takes as much.
        limits: For pixels.

    Raises:
        InvalidImage: It does.
    """
    if pixels > limits.max_pixels:
        raise InvalidImage(
            FIELD,
            f"takes as much memory as {pixels} pixels to decode, its alpha or layers included; the"
            f" limit (max_image_pixels) is {limits.max_pixels}; send a smaller image",
            kind="too_many_pixels",
        )


def check_size(width: int, height: int, limits: ImageLimits) -> None:
    """Refuse an encoded image of no or of too many pixels."""
    require_pixels(width, height)
    if width * height > limits.max_pixels:
        raise InvalidImage(
            FIELD,
            f"declares {width} x {height} = {width * height} pixels, the limit (max_image_pixels)"
            f" is {limits.max_pixels}; send a smaller image",
            kind="too_many_pixels",
        )


def require_pixels(width: int, height: int) -> None:
    """Refuse an encoded image of no pixels."""
    if not width or not height:
        raise InvalidImage(
            FIELD, f"declares {width} x {height} pixels; send an image that has some"
        )


def too_many_pixels(error: BaseException, limits: ImageLimits) -> InvalidImage:
    """Translate the error of Pillow's own guard, which knows the number of pixels only."""
    found = re.search(r"\d+", str(error))
    return InvalidImage(
        FIELD,
        f"declares {found[0] if found else 'too many'} pixels, the limit (max_image_pixels) is"
        f" {limits.max_pixels}; send a smaller image",
        kind="too_many_pixels",
    )
