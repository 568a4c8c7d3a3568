"""Decode an image into the network's input: uint8 [crop, crop, 3], RGB.

Each image is decoded on its own and before batching, so a bad one fails alone. JPEGs take the fast
path (libjpeg-turbo straight into an array: the same pixels as Pillow's in two thirds of the time,
docs/adr/0003-jpeg-decoder.md); every other format goes through Pillow. Both meet in one resize and
crop.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image

from resnet50_server.errors import InvalidImage

from .background import Color, composite, has_alpha
from .decode_guard import BudgetedReader, check_exif_tags
from .depth import grey_of_8_bits
from .formats import ImageLimits, check_memory, check_resized, open_checked
from .heif import decoding_bytes
from .pixel_budget import JPEG_PIXEL_BYTES, PIXEL_BYTES, Reserve, unbounded
from .png import scale_transparency
from .raw import raw_to_rgb
from .resize import resize_and_crop
from .source import PixelFormat, RawImage, Source
from .transform import Transform

# 512 x 512 takes a tenth of a millisecond to copy.
MAX_INLINE_PIXELS = 2**18

# Functions that turn stored [height, width, 3] pixels upright, by EXIF orientation; 1 needs none.
UPRIGHT: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: pixels.transpose(1, 0, 2)[:, ::-1],
    7: lambda pixels: pixels.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda pixels: pixels.transpose(1, 0, 2)[::-1],
}


def needs_no_decode(source: Source, transform: Transform) -> bool:
    """Return whether an image only has to be copied: raw, in RGB or grey, resized already.

    That takes less time than a thread hop.
    """
    return (
        isinstance(source, RawImage)
        and source.pixel_format in (PixelFormat.RGB, PixelFormat.GRAY)
        and transform.resized(source.height, source.width) == (source.height, source.width)
        and source.height * source.width <= MAX_INLINE_PIXELS
    )


def decode(
    source: Source,
    transform: Transform,
    limits: ImageLimits,
    reserve: Reserve = unbounded,
) -> NDArray[np.uint8]:
    """Decode, resize and crop one image that passed the checks of its message.

    Args:
        source: A complete file, or raw pixels.
        transform: The variant's; its normalisation is left to the engine.
        limits: For the pixels that an encoded image's header declares, and for those that a very
            long image would have once its shorter side is resized.
        reserve: Reserves memory for the image's pixels.

    Returns:
        uint8 [crop, crop, 3], RGB.

    Raises:
        InvalidImage: It is not an image, is broken, or has too many pixels.
        BudgetFull: There is none for it now.
    """
    if isinstance(source, bytes):
        with contextlib.ExitStack() as reserved:
            pixels = _decode_encoded(
                source, transform, limits, lambda size: reserved.enter_context(reserve(size))
            )
            return resize_and_crop(pixels, transform)
    check_resized("image.raw", source.height, source.width, transform, limits)
    size = transform.resized(source.height, source.width)
    with reserve(source.height * source.width):
        rgb = raw_to_rgb(source, size, transform.interpolation, transform.background)
        return resize_and_crop(rgb, transform)


def _decode_encoded(
    encoded: bytes, transform: Transform, limits: ImageLimits, reserve: Callable[[int], None]
) -> NDArray[np.uint8]:
    """Return an encoded image as uint8 [height, width, 3], upright.

    Args:
        encoded: A complete file.
        transform: As `decode`.
        limits: As `decode`.
        reserve: Called with the image's pixels before they are decoded.
    """
    with open_checked(encoded, transform, limits) as (image, file):
        plain_jpeg = _is_plain_jpeg(image)
        size = image.width * image.height
        if plain_jpeg:
            size = size * JPEG_PIXEL_BYTES // PIXEL_BYTES
        elif (needed := decoding_bytes(image)) is not None:
            size = needed // PIXEL_BYTES
            check_memory(size, limits)
        reserve(size)
        pixels = _decode_jpeg(encoded) if plain_jpeg else None
        if pixels is None:
            pixels = _decode_pillow(image, file, transform.background, encoded)
        upright = UPRIGHT.get(_orientation(image))
        file.check_time()
        # A copy, as torch takes no negative strides, and `ascontiguousarray` leaves that of a
        # single row as it is.
        return pixels if upright is None else upright(pixels).copy()


def _is_plain_jpeg(image: Image.Image) -> bool:
    return image.format == "JPEG" and image.mode in ("RGB", "L")


def _orientation(image: Image.Image) -> int:
    """Return how an image is to be turned; one whose EXIF cannot be read, not at all."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (InvalidImage, MemoryError):
        raise
    except Exception:  # many kinds, struct.error and SyntaxError among them; the pixels are whole
        return 1


def _decode_jpeg(encoded: bytes) -> NDArray[np.uint8] | None:
    """Return uint8 [height, width, 3] as stored, or None.

    Anything unusual is Pillow's to judge: it reads some files that break the standard a little, and
    says what is wrong with the others.
    """
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(encoded, "RGB")
    except ValueError:
        return None
    return pixels


def _decode_pillow(
    opened: Image.Image, file: BudgetedReader, background: Color | None, encoded: bytes
) -> NDArray[np.uint8]:
    """Return uint8 [height, width, 3] as stored."""
    opened.load()
    check_exif_tags(opened)  # a PNG may have it behind its pixels
    file.check_time()
    image = opened
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow clips deeper pixels to 8 bits instead of scaling them.
        image = grey_of_8_bits(opened)
    elif opened.format == "PNG":
        scale_transparency(opened, encoded)
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())  # Pillow converts premultiplied ones to no other
    if background is not None and has_alpha(image):
        if image.mode != "RGBA":  # to which `convert` would copy it
            image = image.convert("RGBA")
        image = composite(image, background)
    elif image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode != "RGB":
        image = image.convert("RGB")
    return np.array(image)
