"""PNG chunks that are not read: text and colour profiles, which may be long once inflated."""

from __future__ import annotations

import struct

from PIL import Image

_SIGNATURE_BYTES = 8
_FRAME_BYTES = 12  # of a chunk's length, type and checksum
_DEPTH_AT = 24
# Colours are taken as they are, and text is not needed. The exception is EXIF as text.
_SKIPPED = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_EXIF_KEY = b"Raw profile type exif\0"
MAX_EXIF_BYTES = 2**16
# Pixels come in pieces of some kilobytes; more chunks than that are refused as they are read.
_MAX_CHUNKS = 10_000


def skipped_chunks(content: bytes) -> dict[int, int]:
    """Return where chunks are that need not be read: their ends by their starts.

    Args:
        content: The whole file.
    """
    skipped: dict[int, int] = {}
    at = _SIGNATURE_BYTES
    for _ in range(_MAX_CHUNKS):
        if at + _FRAME_BYTES > len(content):
            break
        length, kind = struct.unpack_from(">I4s", content, at)
        end = at + _FRAME_BYTES + length
        if kind in _SKIPPED and end <= len(content):
            exif = content.startswith(_EXIF_KEY, at + 8) and length <= MAX_EXIF_BYTES
            if not exif:
                skipped[at] = end
        at = end
    return skipped


def scale_transparency(opened: Image.Image, content: bytes) -> None:
    """Scale the transparent value of a PNG to the 8 bits of its decoded pixels.

    Pillow leaves it in the depth of the file, and compares it with pixels of 8 bits.

    Args:
        opened: The decoded image of mode L or RGB.
        content: The whole file.
    """
    value = opened.info.get("transparency")
    # Pillow also reads a header that is not the first chunk; its depth is left as it is.
    depth = content[_DEPTH_AT] if content[12:16] == b"IHDR" else 8
    if opened.mode == "L" and isinstance(value, int) and 0 < depth < 8:
        opened.info["transparency"] = value * 255 // ((1 << depth) - 1)
    elif opened.mode == "RGB" and isinstance(value, tuple) and depth == 16:
        opened.info["transparency"] = tuple(one >> 8 for one in value)
