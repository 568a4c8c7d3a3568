"""Encoded formats: check what the header of a file declares before it is decoded."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image, JpegImagePlugin, UnidentifiedImageError

from resnet50_server.errors import ImageFault, InvalidImage

from . import jpeg
from .decode_guard import FIELD, BudgetedReader, check_exif_tags, check_tiff_tags
from .heif import declared_size, decodes, decoding_bytes, missing_decoder, open_heif
from .limits import (
    ImageLimits,
    check_memory,
    check_resized,
    check_size,
    require_pixels,
    too_many_pixels,
)
from .pixel_budget import JPEG_PIXEL_BYTES, PIXEL_BYTES, BudgetFull
from .png import skipped_chunks
from .signatures import Format, identify, is_incomplete, unsupported
from .tiff import Tiff, check_strips, check_tiles
from .transform import Transform

# The formats that are always decoded; HEIC needs its decoder.
_SPELLED = "JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF"
HEADER_BYTES = 12
# Pillow decodes run-length BMPs in Python: 50 million pixels would keep the GIL for seconds.
MAX_RUN_LENGTH_PIXELS = 2**22
# All scans of a JPEG together pass over so many times the pixels that one may declare: 108 million
# in the 10 scans of usual encoders. At worst that takes 3 s of a core (docs/how-to/secure.md).
MAX_SCANNED_IMAGES = 5

# Without it Pillow knows only the formats that it has met, and `formats=` raises on the others.
Image.init()


@dataclass(frozen=True)
class CheckedFile:
    """A file whose header is within the limits, opened with Pillow.

    Attributes:
        encoded: The file without what precedes the image.
        image: Its header, and its pixels once they are loaded.
        reader: That Pillow reads it from.
        part: 2, 4 or 8 if it is to be decoded at that fraction of its size, else 1.
        cost_pixels: The memory that decoding it takes, as pixels of the worst format.
    """

    encoded: bytes
    image: Image.Image
    reader: BudgetedReader
    part: int
    cost_pixels: int


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
    padding = jpeg.padding(start)
    if padding == len(start) < jpeg.MAX_PADDING_BYTES or is_incomplete(start):
        return False
    start = start[padding or 0 :]
    name = require_format(start)
    try:
        if name in ("AVIF", "HEIC"):
            size = declared_size(start)
            if size is not None:
                check_size(*size, limits)
                check_resized(FIELD, size[1], size[0], transform, limits)
            return size is not None
        with _open(BudgetedReader(start, limits.timeout_s), start, name) as opened:
            _check_declared(opened, transform, limits)
            return True
    except InvalidImage as error:
        if name == "TIFF" and error.kind == "unsupported":
            return False  # the values of its tags may lie further on
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise too_many_pixels(error, limits) from error
    except Exception:  # decoders raise many kinds for what is cut off
        return False


@contextlib.contextmanager
def open_checked(
    encoded: bytes, transform: Transform, limits: ImageLimits
) -> Iterator[CheckedFile]:
    """Open a file with Pillow if its header is within the limits.

    Raises:
        InvalidImage: It is not, or the file turns out to be broken within the block.
    """
    encoded = encoded[jpeg.padding(encoded) or 0 :]
    name = require_format(encoded)
    skipped = None
    if name == "TIFF":
        check_tiff_tags(encoded)
    elif name == "PNG":
        skipped = skipped_chunks(encoded)
    elif name in ("AVIF", "HEIC") and (size := declared_size(encoded)):
        check_size(*size, limits)
    try:
        reader = BudgetedReader(encoded, limits.timeout_s, skipped)
        with _open(reader, encoded, name) as opened:
            _check_declared(opened, transform, limits)
            part, cost = 1, opened.width * opened.height
            if isinstance(opened, JpegImagePlugin.JpegImageFile):
                part = _fraction(opened, transform, limits)
                cost = _jpeg_cost(encoded, opened, part, reader.tell(), limits)
            elif name == "TIFF":
                check_strips(opened, len(encoded))
            elif (needed := decoding_bytes(opened)) is not None:
                cost = needed // PIXEL_BYTES
                check_memory(cost, limits)
            check_exif_tags(opened)
            reader.grant_pixel_reads(opened.format)
            yield CheckedFile(encoded, opened, reader, part, cost)
    except (InvalidImage, MemoryError, BudgetFull):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise too_many_pixels(error, limits) from error
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
    if opened.format == "JPEG":
        _check_jpeg_size(opened, transform, limits)
    else:
        check_size(*opened.size, limits)
    check_resized(FIELD, opened.height, opened.width, transform, limits)
    if opened.format == "TIFF":
        check_tiles(opened)
    elif opened.format == "BMP":
        _check_runs(opened)


def _check_jpeg_size(opened: Image.Image, transform: Transform, limits: ImageLimits) -> None:
    """Refuse a JPEG that declares too many pixels, or has too many once it is scaled."""
    width, height = opened.size
    require_pixels(width, height)
    if width * height > max(limits.max_jpeg_pixels, limits.max_pixels):
        raise InvalidImage(
            FIELD,
            f"declares {width} x {height} = {width * height} pixels, the limit for a JPEG"
            f" (max_jpeg_pixels) is {limits.max_jpeg_pixels}; send a smaller image",
            kind="too_many_pixels",
        )
    part = _fraction(opened, transform, limits)
    if part == 1:
        check_size(width, height, limits)
        return
    pixels = jpeg.scaled(width, part) * jpeg.scaled(height, part)
    if pixels > limits.max_pixels:
        raise InvalidImage(
            FIELD,
            f"declares {width} x {height} pixels, {pixels} once decoded at 1/{part} of that; the"
            f" limit (max_image_pixels) is {limits.max_pixels}; send a smaller image",
            kind="too_many_pixels",
        )


def _fraction(opened: Image.Image, transform: Transform, limits: ImageLimits) -> int:
    """Return at which fraction of its size a JPEG is decoded."""
    size = opened.height, opened.width
    if size[0] * size[1] <= limits.exact_jpeg_pixels:
        return 1
    if not transform.antialias or transform.interpolation.startswith("nearest"):
        return 1  # a smaller image has averages, of which such a variant takes none
    resized = transform.resized(*size)
    if isinstance(transform.resize, tuple):
        resized = (max(resized), max(resized))  # it may yet be turned upright
    return jpeg.fraction(size, resized)


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


def _jpeg_cost(
    encoded: bytes,
    opened: JpegImagePlugin.JpegImageFile,
    part: int,
    header_end: int,
    limits: ImageLimits,
) -> int:
    """Return the memory that decoding a JPEG takes, as pixels of the worst format.

    Args:
        encoded: The file.
        opened: Its header.
        part: At which fraction of its size it is decoded.
        header_end: Where its header ends, behind that of the first scan.
        limits: For its pixels.

    Raises:
        InvalidImage: Its scans would take minutes or too much memory.
    """
    width, height = opened.size
    # In RGB or grey; the others, in CMYK, take as much as the worst format.
    pixel_bytes = JPEG_PIXEL_BYTES if opened.mode in ("RGB", "L") else PIXEL_BYTES
    size = jpeg.scaled(width, part) * jpeg.scaled(height, part) * pixel_bytes
    if not jpeg.has_one_scan(encoded, opened.layers, header_end, "progressive" in opened.info):
        _check_scans(encoded, width * height, limits)
        if part > 1:
            sampling = [(across, down) for _, across, down, _ in opened.layer]
            size += jpeg.coefficient_bytes((height, width), sampling)
    # A file that lacks its end is copied to be given one.
    cost = (size + len(encoded)) // PIXEL_BYTES
    if part > 1 and cost > limits.max_pixels:
        raise InvalidImage(
            FIELD,
            f"is a JPEG of {width} x {height} pixels in several scans, which takes"
            f" {size // 2**20} MiB to decode: more than max_image_pixels of {limits.max_pixels} at"
            f" {PIXEL_BYTES} bytes each; save it as a baseline JPEG",
            kind="too_complex",
        )
    return cost


def _check_scans(encoded: bytes, pixels: int, limits: ImageLimits) -> None:
    """Refuse a JPEG with so many scans that decoding it would take minutes.

    Each scan passes over the whole image.
    """
    scans = jpeg.read_layout(encoded).scans
    limit = MAX_SCANNED_IMAGES * max(limits.max_pixels, limits.max_jpeg_pixels)
    if scans > jpeg.MAX_SCANS:
        raise InvalidImage(
            FIELD,
            f"is a JPEG of more than {jpeg.MAX_SCANS} scans; save it as a baseline JPEG",
            kind="too_complex",
        )
    if scans * pixels > limit:
        raise InvalidImage(
            FIELD,
            f"is a JPEG of {pixels} pixels in {scans} scans, {scans * pixels} in all of them, the"
            f" limit ({MAX_SCANNED_IMAGES} x max_jpeg_pixels) is {limit}; save it as a baseline"
            " JPEG",
            kind="too_complex",
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
    kind: ImageFault = "unreadable"
    advice = "send the whole file"
    if isinstance(error, (struct.error, UnidentifiedImageError)):
        detail, kind = "its header is not complete", "truncated"
    elif "truncated" in detail.lower():
        kind = "truncated"
        advice += ", or have the server answer from the part that is there (truncated_images)"
    return InvalidImage(FIELD, f"is truncated or broken: {detail}; {advice}", kind=kind)
