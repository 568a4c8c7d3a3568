"""Encoded formats: check what the header of a file declares before it is decoded."""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, JpegImagePlugin, UnidentifiedImageError

from resnet50_server.errors import ImageFault, InvalidImage

from .decode_guard import FIELD, BudgetedReader, check_exif_tags, check_tiff_tags
from .heif import declared_size, decodes, missing_decoder, open_heif
from .pixel_budget import BudgetFull
from .png import skipped_chunks
from .signatures import Format, identify, is_incomplete, unsupported
from .tiff import Tiff, check_strips, check_tiles
from .transform import Transform

# The formats of the contract that Pillow decodes.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
_SPELLED = "JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF"
HEADER_BYTES = 12
# Pillow decodes run-length BMPs in Python: 50 million pixels would keep the GIL for seconds.
MAX_RUN_LENGTH_PIXELS = 2**22
JPEG_START_OF_SCAN = b"\xff\xda"
# So many bytes are searched for scans at once.
SCAN_PIECE = 2**20
# Progressive encoders write about 10.
MAX_JPEG_SCANS = 100

# Pixels are limited here, by the limits of a server; see `ImageLimits` for Pillow's own guard.
Image.MAX_IMAGE_PIXELS = None
# Without it Pillow knows only the formats that it has met, and `formats=` raises on the others.
Image.init()


@dataclass(frozen=True)
class ImageLimits:
    """Limits of one image.

    Attributes:
        max_bytes: Length of an encoded image.
        max_pixels: Width x height of any image.
        timeout_s: For decoding one, in seconds.
    """

    max_bytes: int = 32 * 2**20
    max_pixels: int = 50_000_000
    timeout_s: float = 10.0

    def __post_init__(self) -> None:
        # Pillow allocates what some headers declare before their size can be checked (a GIF of 43
        # bytes: 4 GB). It has one limit for the process: the largest of ours, twice over.
        Image.MAX_IMAGE_PIXELS = max(self.max_pixels, Image.MAX_IMAGE_PIXELS or 0)


def check_encoded(encoded: bytes, limits: ImageLimits) -> None:
    """Refuse an encoded image by its size.

    Raises:
        InvalidImage: It is empty or too large.
    """
    if not encoded:
        raise InvalidImage(FIELD, "has 0 bytes; send a complete image file", kind="empty")
    if len(encoded) > limits.max_bytes:
        raise InvalidImage(
            FIELD,
            f"has {len(encoded)} bytes, the limit (max_image_bytes) is {limits.max_bytes};"
            " send a smaller or more compressed image",
            kind="too_many_bytes",
        )


def check_header(start: bytes, transform: Transform, limits: ImageLimits) -> bool:
    """Check the first bytes of an image that is still arriving.

    Args:
        start: As much as is there.
        transform: The variant's.
        limits: For the pixels that the header declares.

    Returns:
        Whether the header was read; if not, more of the image is needed.

    Raises:
        InvalidImage: It is no image, or declares too many pixels.
    """
    if is_incomplete(start):
        return False
    name = require_format(start)
    try:
        if name in ("AVIF", "HEIC"):
            size = declared_size(start)
            if size is not None:
                _check_size(*size, transform, limits)
            return size is not None
        with _open(BudgetedReader(start, limits.timeout_s), start, name) as opened:
            _check_declared(opened, transform, limits)
            return True
    except InvalidImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_many_pixels(error, limits) from error
    except Exception:  # decoders raise many kinds for what is cut off
        return False


@contextlib.contextmanager
def open_checked(
    encoded: bytes, transform: Transform, limits: ImageLimits
) -> Iterator[tuple[Image.Image, BudgetedReader]]:
    """Open a file with Pillow if its header is within the limits; yield the image and its reader.

    Raises:
        InvalidImage: It is not, or the file turns out to be broken within the block.
    """
    name = require_format(encoded)
    skipped = None
    if name == "TIFF":
        check_tiff_tags(encoded)
    elif name == "PNG":
        skipped = skipped_chunks(encoded)
    elif name in ("AVIF", "HEIC") and (size := declared_size(encoded)):
        _check_size(*size, transform, limits)
    try:
        file = BudgetedReader(encoded, limits.timeout_s, skipped)
        with _open(file, encoded, name) as opened:
            _check_declared(opened, transform, limits)
            if isinstance(opened, JpegImagePlugin.JpegImageFile):
                _check_scans(encoded, opened, file.tell(), limits)
            elif name == "TIFF":
                check_strips(opened, len(encoded))
            check_exif_tags(opened)
            file.grant_pixel_reads(opened.format)
            yield opened, file
    except (InvalidImage, MemoryError, BudgetFull):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_many_pixels(error, limits) from error
    except Exception as error:  # decoders raise many kinds for broken files, struct.error included
        raise _broken(error) from error


class _Jpeg(JpegImagePlugin.JpegImageFile):
    """Reads less of a JPEG's header than `Image.open`, which reads tags before they are checked.

    That is the list of further pictures (MPF) of which 1,500 tags that share 45 KB take 25 s and
    2 GB before Pillow 13; and the resolution, which is not needed.
    """

    def _read_dpi_from_exif(self) -> None:
        """Read nothing."""


def _open(file: BudgetedReader, content: bytes, name: Format) -> Image.Image:
    """Read a file's header."""
    try:
        if name == "JPEG":
            return _Jpeg(file)
        if name == "TIFF":
            return Tiff(file)
        if name in ("AVIF", "HEIC"):
            return open_heif(file, content, name)
        return Image.open(file, formats=(name,))
    except SyntaxError as error:
        raise UnidentifiedImageError(str(error)) from error


def check_resized(
    field: str, height: int, width: int, transform: Transform, limits: ImageLimits
) -> None:
    """Refuse an image so long and thin that resizing its short side makes it enormous.

    Args:
        field: Where it is in the request.
        height: Its own.
        width: Its own.
        transform: The variant's.
        limits: For its pixels.

    Raises:
        InvalidImage: It is.
    """
    new_height, new_width = transform.resized(height, width)
    if new_height * new_width > limits.max_pixels:
        raise InvalidImage(
            field,
            f"is {width} x {height} pixels, and {new_width} x {new_height} once its shorter side is"
            f" resized to {transform.resize}: more than the limit (max_image_pixels) of"
            f" {limits.max_pixels}; send a less elongated image",
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


def require_format(start: bytes) -> Format:
    """Return the format of a file, by its first bytes.

    Raises:
        InvalidImage: It is none of the contract, or this installation does not decode it.
    """
    name = identify(start)
    if name is None:
        heic = " or HEIC" if decodes("HEIC") else ""
        raise unsupported(start, f"{_SPELLED}{heic}")
    if not decodes(name):
        raise missing_decoder(name)
    return name


def _check_declared(opened: Image.Image, transform: Transform, limits: ImageLimits) -> None:
    """Refuse a file whose header declares too many pixels."""
    _check_size(*opened.size, transform, limits)
    if opened.format == "TIFF":
        check_tiles(opened)
    elif opened.format == "BMP":
        _check_runs(opened)


def _check_size(width: int, height: int, transform: Transform, limits: ImageLimits) -> None:
    """Refuse an encoded image of no or of too many pixels."""
    if not width or not height:
        raise InvalidImage(
            FIELD, f"declares {width} x {height} pixels; send an image that has some"
        )
    if width * height > limits.max_pixels:
        raise InvalidImage(
            FIELD,
            f"declares {width} x {height} = {width * height} pixels, the limit (max_image_pixels)"
            f" is {limits.max_pixels}; send a smaller image",
            kind="too_many_pixels",
        )
    check_resized(FIELD, height, width, transform, limits)


def _check_runs(opened: Image.Image) -> None:
    """Refuse a run-length BMP of so many pixels that it would keep the GIL for seconds."""
    tiles = getattr(opened, "tile", ())
    pixels = opened.size[0] * opened.size[1]
    if pixels > MAX_RUN_LENGTH_PIXELS and any(tile[0] == "bmp_rle" for tile in tiles):
        raise InvalidImage(
            FIELD,
            f"is a run-length BMP of {pixels} pixels, of which at most {MAX_RUN_LENGTH_PIXELS} are"
            " decoded; save it uncompressed, or as a PNG",
            kind="too_complex",
        )


def _check_scans(
    encoded: bytes, opened: JpegImagePlugin.JpegImageFile, at: int, limits: ImageLimits
) -> None:
    """Refuse a JPEG with so many scans that decoding it would take minutes.

    Each scan passes over the whole image. The marker appears nowhere within compressed data.

    Args:
        encoded: The file.
        opened: Its header.
        at: Where the header ends, behind that of the first scan.
        limits: For its pixels.
    """
    if _has_one_scan(encoded, opened, at):
        return
    scans = _count_scans(encoded)
    pixels = opened.size[0] * opened.size[1]
    if scans > MAX_JPEG_SCANS or scans * pixels > MAX_JPEG_SCANS // 10 * limits.max_pixels:
        raise InvalidImage(
            FIELD,
            f"is a JPEG of {pixels} pixels in {scans} scans; at most {MAX_JPEG_SCANS} are decoded,"
            f" and {MAX_JPEG_SCANS // 10} times max_image_pixels in all of them; save it as a"
            " baseline JPEG",
            kind="too_complex",
        )


def _has_one_scan(encoded: bytes, opened: JpegImagePlugin.JpegImageFile, at: int) -> bool:
    """Return whether decoders read one scan only: of all components, and not progressive.

    That is how nearly all JPEGs are. Decoders ignore further scans of such a file.
    """
    if "progressive" in opened.info:
        return False
    length = 6 + 2 * opened.layers
    header = JPEG_START_OF_SCAN + struct.pack(">HB", length, opened.layers)
    return encoded.startswith(header, max(0, at - length - len(JPEG_START_OF_SCAN)))


def _count_scans(encoded: bytes) -> int:
    """Return how many scans a JPEG has; mostly without the GIL, as `bytes.count` is not."""
    scans = 0
    for start in range(0, len(encoded), SCAN_PIECE):
        length = min(SCAN_PIECE + 1, len(encoded) - start)
        piece = np.frombuffer(encoded, np.uint8, length, start)
        found = (piece[:-1] == JPEG_START_OF_SCAN[0]) & (piece[1:] == JPEG_START_OF_SCAN[1])
        scans += int(np.count_nonzero(found))
    return scans


def _too_many_pixels(error: BaseException, limits: ImageLimits) -> InvalidImage:
    """Translate the error of Pillow's own guard, which knows the number of pixels only."""
    found = re.search(r"\d+", str(error))
    return InvalidImage(
        FIELD,
        f"declares {found[0] if found else 'too many'} pixels, the limit (max_image_pixels) is"
        f" {limits.max_pixels}; send a smaller image",
        kind="too_many_pixels",
    )


def _broken(error: Exception) -> InvalidImage:
    """Return the error of a file that no decoder reads."""
    detail = " ".join(str(error).split())[:200]
    if "text chunks" in detail or "Decompressed data too large" in detail:
        return InvalidImage(
            FIELD,
            "has text or a colour profile that is too long once it is inflated; save it anew"
            " without metadata",
            kind="too_complex",
        )
    kind: ImageFault = "truncated" if "truncated" in detail.lower() else "unreadable"
    if isinstance(error, (struct.error, UnidentifiedImageError)):
        detail, kind = "its header is not complete", "truncated"
    return InvalidImage(FIELD, f"is truncated or broken: {detail}; send the whole file", kind=kind)
