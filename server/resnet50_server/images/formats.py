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
from .pixel_budget import BudgetFull
from .transform import Transform

# The formats of the contract.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
JPEG_START = b"\xff\xd8\xff"
TIFF_STARTS = (b"II*\0", b"MM\0*")
# How their files begin: where, and with which bytes.
MAGIC = (
    (0, JPEG_START),
    (0, b"\x89PNG\r\n\x1a\n"),
    (8, b"WEBP"),
    (0, b"BM"),
    (0, b"GIF8"),
    *((0, start) for start in TIFF_STARTS),
)
HEADER_BYTES = 12
TIFF_STRIP_LENGTHS, TIFF_TILE_LENGTHS = 279, 325
TIFF_TILE_WIDTH, TIFF_TILE_LENGTH = 322, 323
MIN_TILE_PIXELS = 2**20
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


def is_jpeg(encoded: bytes) -> bool:
    """Return whether a file begins like a JPEG."""
    return encoded.startswith(JPEG_START)


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
    _require_known_format(start)
    try:
        with _open(BudgetedReader(start, limits.timeout_s), start) as opened:
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
    _require_known_format(encoded)
    if encoded[:4] in TIFF_STARTS:
        check_tiff_tags(encoded)
    try:
        file = BudgetedReader(encoded, limits.timeout_s)
        with _open(file, encoded) as opened:
            _check_declared(opened, transform, limits)
            if isinstance(opened, JpegImagePlugin.JpegImageFile):
                _check_scans(encoded, opened, file.tell(), limits)
            elif opened.format == "TIFF":
                _check_strips(opened, len(encoded))
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


def _open(file: BudgetedReader, content: bytes) -> Image.Image:
    """Read a file's header with Pillow."""
    if not is_jpeg(content):
        return Image.open(file, formats=FORMATS)
    try:
        return _Jpeg(file)
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


def _require_known_format(start: bytes) -> None:
    """Refuse other formats before Pillow sees them: it knows some that run programs."""
    if not any(start[at : at + len(magic)] == magic for at, magic in MAGIC):
        raise InvalidImage(
            FIELD,
            f"{len(start)} bytes beginning with {start[:8].hex(' ')} are not a readable JPEG, PNG,"
            " WebP, BMP, GIF or TIFF file; send the whole file, in one of these formats",
            kind="unsupported",
        )


def _check_declared(opened: Image.Image, transform: Transform, limits: ImageLimits) -> None:
    """Refuse a file whose header declares too many pixels."""
    _check_size(*opened.size, transform, limits)
    if opened.format == "TIFF":
        _check_tiles(opened)
    elif opened.format == "BMP":
        _check_runs(opened)


def _check_size(width: int, height: int, transform: Transform, limits: ImageLimits) -> None:
    """Refuse an encoded image of too many pixels."""
    if width * height > limits.max_pixels:
        raise InvalidImage(
            FIELD,
            f"declares {width} x {height} = {width * height} pixels, the limit (max_image_pixels)"
            f" is {limits.max_pixels}; send a smaller image",
            kind="too_many_pixels",
        )
    check_resized(FIELD, height, width, transform, limits)


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
            kind="too_complex",
        )


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


def _check_strips(opened: Image.Image, length: int) -> None:
    """Refuse a TIFF whose strips or tiles share their bytes, which are then decoded for each."""
    tags = getattr(opened, "tag_v2", {})
    for tag in (TIFF_STRIP_LENGTHS, TIFF_TILE_LENGTHS):
        lengths = tags.get(tag, 0)
        total = sum(lengths) if isinstance(lengths, tuple) else lengths
        if isinstance(lengths, tuple) and total > 2 * length:
            raise InvalidImage(
                FIELD,
                f"is a TIFF of {length} bytes whose {len(lengths)} strips or tiles have {total};"
                " write it without strips that share their bytes",
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
