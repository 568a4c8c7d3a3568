"""Formats of files, recognised by their first bytes."""

from __future__ import annotations

import struct

# As many bytes of a file are needed; DICOM's mark is the last one.
START_BYTES = 132

_BITMAP_HEADERS = frozenset({12, 16, 40, 52, 56, 64, 108, 124})
_HEIF_BRANDS = frozenset(
    {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"mif2", b"msf1"}
)
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
# Formats that no server decodes: where their mark is, the mark, and their name.
_OTHERS = (
    (0, b"%PDF", "PDF"),
    (0, b"PK\x03\x04", "ZIP archive"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"\x1a\x45\xdf\xa3", "Matroska video"),
    (8, b"AVI ", "AVI video"),
    (8, b"WAVE", "audio"),
    (0, b"\x00\x00\x01\xba", "MPEG video"),
    (0, b"\x00\x00\x01\xb3", "MPEG video"),
    (0, b"\x30\x26\xb2\x75", "WMV video"),
    (0, b"FLV", "FLV video"),
    (4, b"jP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (4, b"JXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"8BPS", "Photoshop"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"\x00\x00\x01\x00", "icon"),
    (0, b"FUJIFILMCCD-RAW", "camera raw"),
    (128, b"DICM", "DICOM"),
    (4, b"moov", "MP4 video"),
    (4, b"mdat", "MP4 video"),
    (4, b"wide", "MP4 video"),
)


def image_format(start: bytes) -> str | None:
    """Return the format of an image file that servers decode, or None.

    Args:
        start: The file's first `START_BYTES`, or all of a shorter file.
    """
    if start.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return "WEBP"
    if start.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if start.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if start.startswith(b"BM") and _is_bitmap(start):
        return "BMP"
    brands = _brands(start)
    if brands & _AVIF_BRANDS:
        return "AVIF"
    return "HEIF" if brands & _HEIF_BRANDS else None


def other_format(start: bytes) -> str | None:
    """Return the name of a format that servers do not decode, or None if it is unknown."""
    brands = _brands(start)
    if brands:
        return "camera raw" if b"crx " in brands else "MP4 video"
    for at, mark, name in _OTHERS:
        if start.startswith(mark, at):
            return name
    return None


def _is_bitmap(start: bytes) -> bool:
    """Return True if a file that begins with BM, as texts may, continues like a BMP."""
    if len(start) < 18:
        return False
    reserved, _, header = struct.unpack_from("<III", start, 6)
    return reserved == 0 and header in _BITMAP_HEADERS


def _brands(start: bytes) -> frozenset[bytes]:
    """Return the brands of an ISO base media file (HEIC, AVIF, MP4); none for other files."""
    if start[4:8] != b"ftyp":
        return frozenset()
    end = min(int.from_bytes(start[:4], "big"), len(start))
    return frozenset({start[8:12], *(start[at : at + 4] for at in range(16, end - 3, 4))})
