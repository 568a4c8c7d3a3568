"""From a request's image to the network's input: uint8 [crop, crop, 3], RGB.

Each image is decoded on its own and before batching, so a bad one fails alone. JPEGs take the fast
path (libjpeg-turbo straight into an array: the same pixels as Pillow's in two thirds of the time,
docs/adr/0003-jpeg-decoder.md); every other format goes through Pillow. Both meet in one resize and
crop.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image

from resnet50.v1 import image_pb2
from resnet50_server.errors import InvalidImage

from .decode_guard import FIELD, GuardedFile, check_exif
from .formats import (
    ImageLimits,
    check_resized,
    opened_image,
    too_long,
)
from .pixel_budget import JPEG_PIXEL_BYTES, PIXEL_BYTES, Room, any_room
from .raw import RawPixels, raw_to_rgb, take_raw
from .resize import resample
from .transform import Transform

# 512 x 512 takes a tenth of a millisecond to copy.
MAX_AT_HAND_PIXELS = 2**18

# What turns stored [height, width, 3] pixels upright, by EXIF orientation; 1 is upright already.
UPRIGHT: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: pixels.transpose(1, 0, 2)[:, ::-1],
    7: lambda pixels: pixels.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda pixels: pixels.transpose(1, 0, 2)[::-1],
}

Source: TypeAlias = bytes | RawPixels
"""An image as it came: a complete file, or raw pixels."""


def source_of(image: image_pb2.Image, limits: ImageLimits) -> Source:
    """Take an image out of its message; refuse what can be refused without decoding.

    Raises:
        InvalidImage: It is missing, empty, too long, or its raw numbers do not add up; names the
            field and the limit.
    """
    kind = image.WhichOneof("source")
    if kind is None:
        raise InvalidImage("image", "is empty; set image.encoded or image.raw", kind="empty")
    if kind == "raw":
        return take_raw(image.raw, limits.max_pixels)
    encoded: bytes = image.encoded  # a copy each time, so taken once
    if not encoded:
        raise InvalidImage(FIELD, "has 0 bytes; send a complete image file", kind="empty")
    if len(encoded) > limits.max_bytes:
        raise too_long(len(encoded), limits)
    return encoded


def length_of(source: Source) -> int:
    """Return how many bytes an image has as it came."""
    return len(source) if isinstance(source, bytes) else len(source.pixels)


def is_at_hand(source: Source, transform: Transform) -> bool:
    """Return whether an image needs no more than copying: raw, in RGB or grey, of the right size.

    That takes less than the way into a thread and back.
    """
    return (
        isinstance(source, RawPixels)
        and source.pixel_format in (image_pb2.PIXEL_FORMAT_RGB, image_pb2.PIXEL_FORMAT_GRAY)
        and transform.resized(source.height, source.width) == (source.height, source.width)
        and source.height * source.width <= MAX_AT_HAND_PIXELS
    )


def decode(
    source: Source,
    transform: Transform,
    limits: ImageLimits,
    room: Room = any_room,
) -> NDArray[np.uint8]:
    """Decode, resize and crop one image that `source_of` has passed.

    Args:
        source: A complete file, or raw pixels.
        transform: The variant's; its normalisation is left to the engine.
        limits: For the pixels that an encoded image's header declares, and for those that a very
            long image would have once its shorter side is resized.
        room: Holds memory for the image's pixels.

    Returns:
        uint8 [crop, crop, 3], RGB.

    Raises:
        InvalidImage: It is not an image, is broken, or has too many pixels.
        NoRoom: `room` has none for it now.
    """
    if isinstance(source, bytes):
        with contextlib.ExitStack() as held:
            pixels = _decode_encoded(
                source, transform, limits, lambda size: held.enter_context(room(size))
            )
            return resize_and_crop(pixels, transform)
    check_resized("image.raw", source.height, source.width, transform, limits)
    size = transform.resized(source.height, source.width)
    with room(source.height * source.width):
        return resize_and_crop(raw_to_rgb(source, size, transform.interpolation), transform)


def resize_and_crop(pixels: NDArray[np.uint8], transform: Transform) -> NDArray[np.uint8]:
    """Apply a variant's geometry.

    Pixels stay as [height, width, 3], as decoders give them, torch resizes them fastest, and the
    network's channels_last layout has them.

    Args:
        pixels: uint8 [height, width, 3].
        transform: Which geometry.

    Returns:
        uint8 [crop, crop, 3], contiguous.
    """
    height, width = pixels.shape[:2]
    size = transform.resized(height, width)
    if size != (height, width):
        pixels = resample(pixels, size, transform.interpolation)
    top, left = transform.crop_origin(*size)
    crop = transform.crop
    if top < 0 or left < 0:
        canvas = np.zeros((max(crop, size[0]), max(crop, size[1]), 3), dtype=np.uint8)
        at = max(0, -top), max(0, -left)
        canvas[at[0] : at[0] + size[0], at[1] : at[1] + size[1]] = pixels
        pixels, top, left = canvas, max(0, top), max(0, left)
    return np.ascontiguousarray(pixels[top : top + crop, left : left + crop])


def _decode_encoded(
    encoded: bytes, transform: Transform, limits: ImageLimits, take_room: Callable[[int], None]
) -> NDArray[np.uint8]:
    """Return an encoded image as uint8 [height, width, 3], upright.

    Args:
        encoded: A complete file.
        transform: As `decode`.
        limits: As `decode`.
        take_room: Called with the image's pixels before they are decoded.
    """
    with opened_image(encoded, transform, limits) as (image, file):
        plain_jpeg = _is_plain_jpeg(image)
        size = image.width * image.height
        take_room(size * JPEG_PIXEL_BYTES // PIXEL_BYTES if plain_jpeg else size)
        pixels = _decode_jpeg(encoded) if plain_jpeg else None
        if pixels is None:
            pixels = _decode_pillow(image, file)
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


def _to_8_bit(pixels: NDArray[np.generic], mode: str, file_format: str | None) -> NDArray[np.uint8]:
    """Scale 16-bit greyscale to 8 bits, 65535 becoming 255.

    Raises:
        InvalidImage: The pixels are deeper than that, so that nothing says which value is white.
    """
    # Older Pillow versions read a 16-bit PNG as mode "I".
    if not mode.startswith("I;16") and file_format != "PNG":
        raise InvalidImage(
            FIELD,
            f"has 32-bit pixels ({file_format}, mode {mode}), and nothing in it says which value is"
            " white; send 8 or 16 bits a channel",
            kind="unsupported",
        )
    scaled: NDArray[np.uint8] = np.rint(pixels.astype(np.float32) / 257.0).astype(np.uint8)
    return scaled


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


def _decode_pillow(opened: Image.Image, file: GuardedFile) -> NDArray[np.uint8]:
    """Return uint8 [height, width, 3] as stored."""
    opened.load()
    check_exif(opened)  # a PNG may have it behind its pixels
    file.check_time()
    image = opened
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow clips deeper pixels to 8 bits instead of scaling them.
        image = Image.fromarray(_to_8_bit(np.asarray(image), image.mode, opened.format))
    elif image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode != "RGB":
        image = image.convert("RGB")
    return np.array(image)
