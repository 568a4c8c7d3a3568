"""File formats by their first bytes: those that are decoded, and the names of those that are not.

Pillow sees a file only once it is known to be of a format of the contract: it knows others, some of
which run programs.
"""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

from resnet50_server.errors import InvalidImage

from .decode_guard import FIELD

Format: TypeAlias = Literal["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "HEIC"]

JPEG_START = b"\xff\xd8\xff"
# How files of the contract begin, but for WebP and ISO media files.
_STARTS: tuple[tuple[bytes, Format], ...] = (
    (JPEG_START, "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"BM", "BMP"),
    (b"GIF8", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),  # BigTIFF
)
# Brands of ISO media files (ISO/IEC 14496-12) that are images, and which they are: AVIF 1.1, and
# ISO/IEC 23008-12 annex B. "mif1" and "msf1" are any of them; the brands that follow say which.
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_ANY_IMAGE_BRANDS = frozenset({b"mif1", b"mif2", b"msf1", b"heif"})
_OTHER_BRANDS = {
    b"crx ": "a Canon CR3 camera raw file",
    b"jp2 ": "a JPEG 2000 image",
    b"jpx ": "a JPEG 2000 image",
    b"jxl ": "a JPEG XL image",
    b"qt  ": "a QuickTime video",
    b"M4A ": "an MPEG-4 audio file",
}
# Formats that people send and that are not decoded, by how their files begin.
_NAMES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (0, b"\xff\x0a", "a JPEG XL image"),
    (0, b"II\xbc\x01", "a JPEG XR image"),
    (0, b"MM\0+", "a BigTIFF in big-endian byte order, which is not decoded; send little-endian"),
    (0, b"8BPS", "a Photoshop (PSD) file"),
    (0, b"gimp xcf", "a GIMP (XCF) file"),
    (0, b"FUJIFILMCCD-RAW", "a Fujifilm RAF camera raw file"),
    (0, b"IIU\0", "a Panasonic RW2 camera raw file"),
    (0, b"IIRO", "an Olympus ORF camera raw file"),
    (0, b"IIRS", "an Olympus ORF camera raw file"),
    (0, b"FOVb", "a Sigma X3F camera raw file"),
    (0, b"%PDF-", "a PDF document"),
    (0, b"%!PS", "a PostScript document"),
    (0, b"RIFF", "a RIFF file (AVI, WAV)"),
    (0, b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (4, b"moov", "a QuickTime video"),
    (4, b"mdat", "a QuickTime video"),
    (4, b"wide", "a QuickTime video"),
    (0, b"FLV", "a Flash video"),
    (0, b"OggS", "an Ogg file"),
    (0, b"ID3", "an MP3 file"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (0, b"\xfd7zXZ\0", "an xz archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"7z\xbc\xaf", "a 7z archive"),
    (0, b"Rar!", "a RAR archive"),
    (0, b"\0\0\x01\0", "an icon (ICO)"),
    (0, b"icns", "an icon (ICNS)"),
    (0, b"qoif", "a QOI image"),
    (0, b"v/1\x01", "an OpenEXR image"),
    (0, b"#?RADIANCE", "a Radiance HDR image"),
    (0, b"#?RGBE", "a Radiance HDR image"),
    (0, b"DDS ", "a DirectDraw (DDS) texture"),
    (0, b"SIMPLE  =", "a FITS file"),
    (128, b"DICM", "a DICOM file"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"BPG\xfb", "a BPG image"),
    (0, b"FLIF", "a FLIF image"),
    (0, b"\xd7\xcd\xc6\x9a", "a Windows metafile"),
)
# Text by what it begins with, without its case.
_TEXTS: tuple[tuple[bytes, str], ...] = (
    (rb"P[1-7]\s", "a Netpbm image (PBM, PGM, PPM, PAM)"),
    (rb"P[Ff]\s", "a Netpbm image (PFM)"),
    (rb"data:", "a data: URL, which is text; send the bytes that it holds"),
    (rb"https?://", "a URL, which the server does not fetch; send the file's bytes"),
    (rb"/9j/|iVBORw0K|R0lGOD|UklGR", "an image in base64, which is text; send its decoded bytes"),
    (rb"\s*<svg", "an SVG drawing"),
    (rb"\s*(<!DOCTYPE html|<html)", "an HTML page"),
    (rb"\s*<\?xml", "an XML document"),
    (rb"\s*\{", "a JSON document"),
)
_TEXT_PATTERNS = [(re.compile(text, re.IGNORECASE), name) for text, name in _TEXTS]
_SEARCHED_BYTES = 1024
_MAX_BRANDS = 32


def identify(start: bytes) -> Format | None:
    """Return the format of the contract that a file begins like, or None.

    Args:
        start: The first bytes of it, 12 or more unless it has fewer.
    """
    for magic, name in _STARTS:
        if start.startswith(magic):
            return name
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WEBP"
    brands = _brands(start)
    if brands and (brands[0] in _AVIF_BRANDS or brands[0] in _HEIC_BRANDS):
        return "AVIF" if brands[0] in _AVIF_BRANDS else "HEIC"
    if brands and brands[0] in _ANY_IMAGE_BRANDS:
        return "AVIF" if _AVIF_BRANDS.intersection(brands) else "HEIC"
    return None


def unsupported(start: bytes, decoded: str) -> InvalidImage:
    """Return the error of a file of a format that is not decoded.

    Args:
        start: The first bytes of it.
        decoded: Names of the formats that are.
    """
    name = _name(start)
    if name is None:
        return InvalidImage(
            FIELD,
            f"{len(start)} bytes beginning with {start[:8].hex(' ')} are not a readable {decoded}"
            " file; send the whole file, in one of these formats; raw pixels as image.raw, which in"
            " Python is np.frombuffer(content, np.uint8).reshape(height, width, 3)",
            kind="unsupported",
        )
    advice = "" if ";" in name else f", which is not decoded; send {decoded}"
    return InvalidImage(FIELD, f"is {name}{advice}", kind="unsupported")


def _name(start: bytes) -> str | None:
    """Return what a file is that is not decoded, with its article; None if it is not known."""
    if brands := _brands(start):
        return _OTHER_BRANDS.get(brands[0], "an MPEG-4 video")
    for at, magic, name in _NAMES:
        if start[at : at + len(magic)] == magic:
            return name
    text = start[:_SEARCHED_BYTES].removeprefix(b"\xef\xbb\xbf")
    for pattern, name in _TEXT_PATTERNS:
        if pattern.match(text):
            return "an SVG drawing" if name == "an XML document" and b"<svg" in text else name
    return None


def is_incomplete(start: bytes) -> bool:
    """Return whether the list of brands that says what a file is has not arrived whole."""
    return start[4:8] == b"ftyp" and len(start) < _end_of_brands(start)


def _end_of_brands(start: bytes) -> int:
    return min(int.from_bytes(start[:4], "big"), 16 + 4 * _MAX_BRANDS)


def _brands(start: bytes) -> list[bytes]:
    """Return the brands of an ISO media file, as far as they are there; the major one first."""
    if start[4:8] != b"ftyp":
        return []
    end = min(_end_of_brands(start), len(start))
    compatible = [start[at : at + 4] for at in range(16, end - 3, 4)]
    return [start[8:12], *compatible]
