"""Decode an image into the network's input: uint8 [height, width, 3], RGB.

Each image is decoded on its own and before batching, so a bad one fails alone. JPEGs take the fast
path (libjpeg-turbo straight into an array: the same pixels as Pillow's in two thirds of the time,
docs/adr/0003-jpeg-decoder.md); every other format goes through Pillow. Both meet in one resize and
crop.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from resnet50_server.errors import InvalidImage

from .background import Color, composite, has_alpha
from .decode_guard import check_exif_tags
from .depth import grey_of_8_bits
from .formats import CheckedFile, open_checked
from .jpeg import decode_jpeg
from .limits import ImageLimits, check_resized
from .pixel_budget import Reserve, unbounded
from .png import scale_transparency
from .preprocessed import preprocessed_pixels
from .raw import raw_to_rgb
from .resize import resize_and_crop, resizes_part
from .source import ImageWarning, PixelFormat, PreprocessedImage, RawImage, Source
from .transform import Transform

OnTruncated: TypeAlias = Callable[[], None] | None
"""Called if an image lacks data and is decoded all the same; None to refuse it."""

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


def ignore(_: ImageWarning) -> None:
    """Ignore what a result does not tell about its image."""


def pixels_without_decoding(source: Source, transform: Transform) -> NDArray[np.uint8] | None:
    """Return the pixels of an image that needs no decoding, or None if it needs that.

    None is needed if it was preprocessed, or is raw and only has to be cropped, which takes less
    time than a thread hop.

    Args:
        source: As `decode`.
        transform: As `decode`.

    Returns:
        uint8 [height, width, 3] of the network's input, RGB; a read-only view of the image if its
        pixels are RGB.

    Raises:
        InvalidImage: It was preprocessed, to another size.
        TransformMismatch: It was preprocessed by another transform.
    """
    if isinstance(source, bytes):
        return None
    if isinstance(source, PreprocessedImage):
        return preprocessed_pixels(source, transform)
    height, width = source.height, source.width
    if (
        height * width > MAX_INLINE_PIXELS
        or source.pixel_format not in (PixelFormat.RGB, PixelFormat.GRAY)
        or (crop := transform.only_crop(height, width)) is None
    ):
        return None
    rgb = raw_to_rgb(source, (height, width))
    cropped = rgb[crop]
    if source.pixel_format == PixelFormat.RGB and cropped.shape[:2] == transform.input_size:
        return cropped
    # A copy: it is padded, or grey pixels have become three times as many.
    return resize_and_crop(rgb, transform)


def decode(
    source: Source,
    transform: Transform,
    limits: ImageLimits,
    reserve: Reserve = unbounded,
    warn: Callable[[ImageWarning], None] = ignore,
) -> NDArray[np.uint8]:
    """Decode, resize and crop one image that passed the checks of its message.

    Args:
        source: A complete file, raw pixels, or the network's input.
        transform: The variant's; channel order and normalization are left to the engine.
        limits: For the pixels that an encoded image's header declares, and for those that a very
            long image would have once it is resized.
        reserve: Reserves memory for the image's pixels.
        warn: Called with what the result does not tell about the image.

    Returns:
        uint8 [height, width, 3] of the network's input, RGB; see `pixels_without_decoding`.

    Raises:
        InvalidImage: It is not an image, is broken, or has too many pixels.
        TransformMismatch: It was preprocessed by another transform.
        BudgetFull: There is none for it now.
    """
    if isinstance(source, bytes):
        with contextlib.ExitStack() as reserved:
            pixels = decode_file(
                source, transform, limits, lambda size: reserved.enter_context(reserve(size)), warn
            )
            return resize_and_crop(pixels, transform)
    if (cropped := pixels_without_decoding(source, transform)) is not None:
        return cropped
    assert isinstance(source, RawImage)  # a preprocessed one needs no decoding
    check_resized("image.raw", source.height, source.width, transform, limits)
    size = transform.resized(source.height, source.width)
    # Smaller planes would have other pixels where they are not averaged, or padded.
    part = resizes_part(source.height, source.width, transform)
    direct = transform.antialias and not transform.needs_padding(source.height, source.width)
    whole = size if direct and not part else None
    with reserve(source.height * source.width):
        rgb = raw_to_rgb(source, whole, transform.interpolation, transform.background)
        return resize_and_crop(rgb, transform)


def decode_file(
    encoded: bytes,
    transform: Transform,
    limits: ImageLimits,
    reserve: Callable[[int], None],
    warn: Callable[[ImageWarning], None],
) -> NDArray[np.uint8]:
    """Return an encoded image as uint8 [height, width, 3], upright.

    Args:
        encoded: A complete file.
        transform: As `decode`.
        limits: As `decode`.
        reserve: Called with the image's pixels before they are decoded.
        warn: As `decode`.
    """
    on_truncated = partial(warn, ImageWarning.TRUNCATED) if limits.accept_truncated else None
    with open_checked(encoded, transform, limits) as file:
        reserve(file.cost_pixels)
        pixels = _decode_plain_jpeg(file, on_truncated)
        if pixels is None:
            pixels = decode_with_pillow(file, transform.background, on_truncated)
        upright = UPRIGHT.get(_orientation(file.image))
        file.reader.check_time()
        # A copy, as torch takes no negative strides, and `ascontiguousarray` leaves that of a
        # single row as it is.
        return pixels if upright is None else upright(pixels).copy()


def _decode_plain_jpeg(file: CheckedFile, on_truncated: OnTruncated) -> NDArray[np.uint8] | None:
    """Return uint8 [height, width, 3] of a JPEG as stored; None if it is Pillow's to decode.

    That is a JPEG in CMYK, and anything unusual; it is scaled likewise.
    """
    image, part = file.image, file.part
    if image.format != "JPEG":
        return None
    pixels = None
    if image.mode in ("RGB", "L"):
        pixels = decode_jpeg(file.encoded, (image.height, image.width), part, on_truncated)
    if pixels is None and part > 1:
        image.draft(None, (image.width // part, image.height // part))
    return pixels


def _orientation(image: Image.Image) -> int:
    """Return how an image is to be turned; one whose EXIF cannot be read, not at all."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (InvalidImage, MemoryError):
        raise
    except Exception:  # many kinds, struct.error and SyntaxError among them; the pixels are whole
        return 1


def _load(image: Image.Image, on_truncated: OnTruncated) -> None:
    """Decode with Pillow; the pixels that a truncated file lacks are black, if it is accepted."""
    try:
        image.load()
    except OSError as error:
        if on_truncated is None or "truncated" not in str(error):
            raise
        # The pixels up to there are in place; without tiles there is nothing left to decode.
        image.tile = []  # type: ignore[attr-defined]
        image.load()
        on_truncated()


def decode_with_pillow(
    file: CheckedFile, background: Color | None, on_truncated: OnTruncated
) -> NDArray[np.uint8]:
    """Return uint8 [height, width, 3] as stored.

    Args:
        file: An opened file.
        background: Colour that transparent pixels are composited on; None drops alpha.
        on_truncated: See `OnTruncated`.
    """
    image = opened = file.image
    _load(opened, on_truncated)
    check_exif_tags(opened)  # a PNG may have it behind its pixels
    file.reader.check_time()
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow clips deeper pixels to 8 bits instead of scaling them.
        image = grey_of_8_bits(opened)
    elif opened.format == "PNG":
        scale_transparency(opened, file.encoded)
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
