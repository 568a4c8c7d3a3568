"""From a request's image to the network's input: uint8 [crop, crop, 3], RGB.

Each image is decoded on its own and before batching, so a bad one fails alone. JPEGs take the fast
path (libjpeg-turbo straight into an array: the same pixels as Pillow's in two thirds of the time,
docs/adr/0003-jpeg-decoder.md); every other format goes through Pillow. Both meet in one resize and
crop.
"""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from resnet50.v1 import image_pb2

from .errors import InvalidImage
from .pixels import RawPixels, raw_to_rgb, take_raw
from .resample import resample
from .transform import Transform

# The formats of the contract. Pillow's JPEG reader also gives "MPO", a JPEG with more pictures.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
JPEG_START = b"\xff\xd8\xff"
# How their files begin: where, and with which bytes.
MAGIC = (
    (0, JPEG_START),
    (0, b"\x89PNG\r\n\x1a\n"),
    (8, b"WEBP"),
    (0, b"BM"),
    (0, b"GIF8"),
    (0, b"II*\0"),
    (0, b"MM\0*"),
)
HEADER_BYTES = 12
# 512 x 512 takes a tenth of a millisecond to copy.
MAX_AT_HAND_PIXELS = 2**18
TIFF_TILE_WIDTH, TIFF_TILE_LENGTH = 322, 323
MIN_TILE_PIXELS = 2**20
JPEG_START_OF_SCAN = b"\xff\xda"
# Progressive encoders write about 10.
MAX_JPEG_SCANS = 100
FIELD = "image.encoded"
NO_PIXELS: NDArray[np.uint8] = np.empty((0, 0, 3), dtype=np.uint8)

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

# Pixels are limited here, from the header and before decoding; Pillow's own guard would only warn.
Image.MAX_IMAGE_PIXELS = None
# Without it Pillow knows only the formats that it has met, and `formats=` raises on the others.
Image.init()


@dataclass(frozen=True)
class ImageLimits:
    """What an image may weigh.

    Attributes:
        max_bytes: Length of an encoded image.
        max_pixels: Width x height of any image.
    """

    max_bytes: int = 32 * 2**20
    max_pixels: int = 50_000_000


Source: TypeAlias = bytes | RawPixels
"""An image as it came: a complete file, or raw pixels."""


class JpegDecoder(Protocol):
    """Decodes JPEGs, from several threads at once."""

    def decode(self, encoded: bytes, transform: Transform, orientation: int) -> NDArray[np.uint8]:
        """Decode, turn upright, resize and crop.

        Args:
            encoded: A complete JPEG file, in RGB or grey.
            transform: The variant's.
            orientation: As its EXIF header has it.

        Returns:
            uint8 [crop, crop, 3], RGB.

        Raises:
            ValueError: It does not take this one.
        """
        ...


def source_of(image: image_pb2.Image, limits: ImageLimits) -> Source:
    """Take an image out of its message; refuse what can be refused without decoding.

    Raises:
        InvalidImage: It is missing, empty, too long, or its raw numbers do not add up; names the
            field and the limit.
    """
    kind = image.WhichOneof("source")
    if kind is None:
        raise InvalidImage("image", "is empty; set image.encoded or image.raw")
    if kind == "raw":
        return take_raw(image.raw, limits.max_pixels)
    encoded: bytes = image.encoded  # a copy each time, so taken once
    if not encoded:
        raise InvalidImage(FIELD, "has 0 bytes; send a complete image file")
    if len(encoded) > limits.max_bytes:
        raise InvalidImage(FIELD, too_long(len(encoded), limits))
    return encoded


def too_long(length: int, limits: ImageLimits) -> str:
    """Say that an encoded image of `length` bytes is over the limit."""
    return (
        f"has {length} bytes, the limit (max_image_bytes) is {limits.max_bytes};"
        " send a smaller or more compressed image"
    )


def length_of(source: Source) -> int:
    """Return how many bytes an image has as it came."""
    return len(source) if isinstance(source, bytes) else len(source.pixels)


def is_looked_at_fast(source: Source) -> bool:
    """Return whether `check_undecoded` takes less than the way into a thread and back."""
    return not isinstance(source, bytes) or source.startswith(JPEG_START)


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


def check_undecoded(source: Source, transform: Transform, limits: ImageLimits) -> NDArray[np.uint8]:
    """Check an image that is not going to be decoded: everything that its header says.

    Returns:
        What stands for its pixels: uint8 [0, 0, 3].

    Raises:
        InvalidImage: It is not an image, its header is broken, or it declares too many pixels.
    """
    if not isinstance(source, bytes):
        _check_resized("image.raw", source.height, source.width, transform, limits)
        return NO_PIXELS
    if source.startswith(JPEG_START):
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(source)
        except ValueError:
            pass  # Pillow's to judge, as in decoding
        else:
            _check_size(width, height, transform, limits)
            return NO_PIXELS
    try:
        with Image.open(io.BytesIO(source), formats=FORMATS) as opened:
            _check_declared(opened, transform, limits)
    except (InvalidImage, MemoryError):
        raise
    except Exception as error:  # decoders raise many kinds for broken files
        raise InvalidImage(FIELD, _reason(source, error)) from error
    return NO_PIXELS


def check_header(start: bytes, transform: Transform, limits: ImageLimits) -> bool:
    """Look at the first bytes of an image that is still arriving.

    Args:
        start: As much as is there.
        transform: The variant's.
        limits: For the pixels that the header declares.

    Returns:
        Whether the header was read; if not, more of the image is needed.

    Raises:
        InvalidImage: It is no image, or declares too many pixels.
    """
    if not _begins_like_an_image(start):
        raise InvalidImage(FIELD, _not_readable(start))
    try:
        with Image.open(io.BytesIO(start), formats=FORMATS) as opened:
            _check_declared(opened, transform, limits)
            return True
    except InvalidImage:
        raise
    except Exception:  # decoders raise many kinds for what is cut off
        return False


def decode(
    source: Source, transform: Transform, limits: ImageLimits, jpegs: JpegDecoder | None = None
) -> NDArray[np.uint8]:
    """Decode, resize and crop one image that `source_of` has passed.

    Args:
        source: A complete file, or raw pixels.
        transform: The variant's; its normalisation is left to the engine.
        limits: For the pixels that an encoded image's header declares, and for those that a very
            long image would have once its shorter side is resized.
        jpegs: Decodes JPEGs that it takes, elsewhere than on the CPU.

    Returns:
        uint8 [crop, crop, 3], RGB.

    Raises:
        InvalidImage: It is not an image, is broken, or has too many pixels.
    """
    if isinstance(source, bytes):
        if jpegs is not None:
            orientation = _jpeg_orientation(source, transform, limits)
            if orientation is not None:
                with contextlib.suppress(ValueError):
                    return jpegs.decode(source, transform, orientation)
        pixels = _decode_encoded(source, transform, limits)
    else:
        _check_resized("image.raw", source.height, source.width, transform, limits)
        size = transform.resized(source.height, source.width)
        pixels = raw_to_rgb(source, size, transform.interpolation)
    return resize_and_crop(pixels, transform)


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


def _decode_encoded(encoded: bytes, transform: Transform, limits: ImageLimits) -> NDArray[np.uint8]:
    """Return an encoded image as uint8 [height, width, 3], upright."""
    with _opened(encoded, transform, limits) as image:
        return _decode_jpeg(encoded, image) if _is_plain_jpeg(image) else _decode_pillow(image)


def _jpeg_orientation(encoded: bytes, transform: Transform, limits: ImageLimits) -> int | None:
    """Return how a JPEG in RGB or grey is to be turned, by its EXIF header; None for others."""
    with _opened(encoded, transform, limits) as image:
        return _orientation(image) if _is_plain_jpeg(image) else None


@contextlib.contextmanager
def _opened(encoded: bytes, transform: Transform, limits: ImageLimits) -> Iterator[Image.Image]:
    """Give Pillow's view of a file whose header is within the limits.

    Raises:
        InvalidImage: It is not, or the file turns out to be broken within the block.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as opened:
            _check_declared(opened, transform, limits)
            if opened.format in ("JPEG", "MPO"):
                _check_scans(encoded, opened, limits)
            yield opened
    except (InvalidImage, MemoryError):
        raise
    except Exception as error:  # decoders raise many kinds for broken files, struct.error included
        raise InvalidImage(FIELD, _reason(encoded, error)) from error


def _is_plain_jpeg(image: Image.Image) -> bool:
    return image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L")


def _orientation(image: Image.Image) -> int:
    return int(image.getexif().get(ExifTags.Base.Orientation, 1))


def _check_declared(opened: Image.Image, transform: Transform, limits: ImageLimits) -> None:
    """Refuse a file whose header declares too many pixels."""
    _check_size(*opened.size, transform, limits)
    if opened.format == "TIFF":
        _check_tiles(opened)


def _check_size(width: int, height: int, transform: Transform, limits: ImageLimits) -> None:
    """Refuse an encoded image of too many pixels."""
    if width * height > limits.max_pixels:
        raise InvalidImage(
            FIELD,
            f"declares {width} x {height} = {width * height} pixels, the limit (max_image_pixels)"
            f" is {limits.max_pixels}; send a smaller image",
        )
    _check_resized(FIELD, height, width, transform, limits)


def _check_tiles(opened: Image.Image) -> None:
    """Refuse a TIFF with tiles far larger than itself, which are decoded whole."""
    tags = getattr(opened, "tag_v2", {})
    tile = tags.get(TIFF_TILE_WIDTH, 0) * tags.get(TIFF_TILE_LENGTH, 0)
    limit = max(4 * opened.size[0] * opened.size[1], MIN_TILE_PIXELS)
    if tile > limit:
        raise InvalidImage(
            FIELD,
            f"is a TIFF of {opened.size[0]} x {opened.size[1]} pixels with tiles of {tile} pixels,"
            f" the limit is {limit}; write it with smaller tiles",
        )


def _check_scans(encoded: bytes, opened: Image.Image, limits: ImageLimits) -> None:
    """Refuse a JPEG with so many scans that decoding it would take minutes.

    Each scan passes over the whole image. The marker appears nowhere within compressed data.
    """
    scans = encoded.count(JPEG_START_OF_SCAN)
    pixels = opened.size[0] * opened.size[1]
    if scans > MAX_JPEG_SCANS or scans * pixels > MAX_JPEG_SCANS // 10 * limits.max_pixels:
        raise InvalidImage(
            FIELD,
            f"is a JPEG of {pixels} pixels in {scans} scans; at most {MAX_JPEG_SCANS} are decoded,"
            f" and {MAX_JPEG_SCANS // 10} times max_image_pixels in all of them; save it as a"
            " baseline JPEG",
        )


def _check_resized(
    field: str, height: int, width: int, transform: Transform, limits: ImageLimits
) -> None:
    """Refuse an image so long and thin that resizing its short side makes it enormous."""
    new_height, new_width = transform.resized(height, width)
    if new_height * new_width > limits.max_pixels:
        raise InvalidImage(
            field,
            f"is {width} x {height} pixels, and {new_width} x {new_height} once its shorter side is"
            f" resized to {transform.resize}: more than the limit (max_image_pixels) of"
            f" {limits.max_pixels}; send a less elongated image",
        )


def _decode_jpeg(encoded: bytes, opened: Image.Image) -> NDArray[np.uint8]:
    """Return uint8 [height, width, 3]; `opened` is Pillow's view of the same file."""
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(encoded, "RGB")
    except ValueError:
        # Anything unusual is Pillow's to judge: it reads some files that break the standard a
        # little, and says what is wrong with the others.
        return _decode_pillow(opened)
    upright = UPRIGHT.get(_orientation(opened))
    return pixels if upright is None else np.ascontiguousarray(upright(pixels))


def _decode_pillow(opened: Image.Image) -> NDArray[np.uint8]:
    """Return uint8 [height, width, 3]."""
    opened.load()
    ImageOps.exif_transpose(opened, in_place=True)
    image = opened
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow clips deeper pixels to 8 bits instead of scaling them.
        image = Image.fromarray(_to_8_bit(np.asarray(image), image.mode, opened.format))
    elif image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode != "RGB":
        image = image.convert("RGB")
    return np.array(image)


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
        )
    scaled: NDArray[np.uint8] = np.rint(pixels.astype(np.float32) / 257.0).astype(np.uint8)
    return scaled


def _reason(encoded: bytes, error: Exception) -> str:
    """Say what is wrong with a file that no decoder takes."""
    if isinstance(error, UnidentifiedImageError) and not _begins_like_an_image(encoded):
        return _not_readable(encoded)
    detail = " ".join(str(error).split())[:200]
    if isinstance(error, (struct.error, UnidentifiedImageError)):
        detail = "its header is not complete"
    return f"is truncated or broken: {detail}; send the whole file"


def _begins_like_an_image(start: bytes) -> bool:
    return any(start[at : at + len(magic)] == magic for at, magic in MAGIC)


def _not_readable(encoded: bytes) -> str:
    return (
        f"{len(encoded)} bytes beginning with {encoded[:8].hex(' ')} are not a readable JPEG, PNG,"
        " WebP, BMP, GIF or TIFF file; send the whole file, in one of these formats"
    )
