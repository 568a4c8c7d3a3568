"""JPEG files as cameras write them: their markers, and the fraction at which they are decoded.

A file may hold more than one image: thumbnails inside its segments, further pictures (MPO) or a
video (motion photos) behind its end. Only the first image is read, and its markers are walked from
one to the next, as segments and entropy-coded data say; bytes are never searched over the file.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from resnet50_server.errors import InvalidImage

from .decode_guard import FIELD
from .signatures import JPEG_START as START

END = b"\xff\xd9"
# Bytes that servers and cameras leave before an image: the end of a line of HTTP, zeros, and the
# fill bytes that ISO/IEC 10918-1 (B.1.1.2) allows before any marker.
PADDING = b"\0\r\n\xff"
MAX_PADDING_BYTES = 64
# Progressive encoders write about 10 scans, and some segments before each.
MAX_SCANS = 100
MAX_SEGMENTS = 10_000
# Searched at once: little at first, as the next marker is near in most cases.
FIRST_PIECE_BYTES, PIECE_BYTES = 2**12, 2**20
# A scaled image has at least so many times the pixels, each way, that its short side is resized to
# (docs/adr/0030-scaled-jpeg-decoding.md).
MIN_SCALED_MULTIPLE = 3
# Of libjpeg's fractions, those that are decoded fast.
FRACTIONS = (8, 4, 2)
# While a JPEG of several scans is decoded, libjpeg keeps its coefficients: two bytes each.
COEFFICIENT_BYTES = 2
# libjpeg's first complaint about a file of which only the end is missing, once it has one.
_ONLY_THE_END = re.compile(r"extraneous bytes before marker 0xd9")
# Markers: frame headers (SOF), of which some are progressive, and those without a length.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})
_SCAN, _START, _END = 0xDA, 0xD8, 0xD9
_COEFFICIENTS = 64


@dataclass(frozen=True)
class Layout:
    """The extent of the first image of a JPEG, and of its scans.

    Attributes:
        scans: How many scans decoders read.
        data_end: Behind the entropy-coded data of the last regular scan; 0 if there is none.
        ended: Whether the end of the image (EOI) follows it.
        complete: Whether the scans up to there carry all coefficients of all components, in full
            precision. Of each scan only its header is read.
    """

    scans: int
    data_end: int
    ended: bool
    complete: bool


def padding(start: bytes) -> int | None:
    """Return how many bytes of padding lie before a JPEG.

    Args:
        start: The file, or its first bytes.

    Returns:
        None if this is no JPEG; as many as there are bytes if a JPEG may still follow.
    """
    if start.startswith(START):
        return 0
    head = start[: MAX_PADDING_BYTES + len(START)]
    at = head.find(START)
    if at < 0:
        at = len(head)
        head = head.removesuffix(START[:2])  # of which more may follow
    if head[:at].strip(PADDING) or at > MAX_PADDING_BYTES:
        return None
    return at


def read_layout(encoded: bytes) -> Layout:
    """Walk the markers of the first image.

    The walk ends where decoders end: behind the only scan of a file that is not progressive and has
    all its components in one, else at the end of the image; and behind `MAX_SCANS` + 1 scans.

    Args:
        encoded: The file, from the start of the image on.

    Raises:
        InvalidImage: It has more segments than any encoder writes.
    """
    at, scans, data_end, regular = len(START) - 1, 0, 0, True
    ended, progressive, precision = False, False, _Precision()
    for _ in range(MAX_SEGMENTS):
        found = _next_marker(encoded, at, in_scan=False)
        # Decoders skip other bytes between segments, with a warning; then the end is doubtful.
        regular = regular and not encoded[at:found].strip(b"\xff")
        code = encoded[found + 1] if found + 1 < len(encoded) else _START
        if code in _WITHOUT_LENGTH:
            at = found + 2
            continue
        if code in (_START, _END):
            ended = regular and code == _END
            break
        length = int.from_bytes(encoded[found + 2 : found + 4], "big")
        at = found + 2 + length
        if length < 2 or at > len(encoded):
            break
        body = encoded[found + 4 : at]
        if code in _FRAMES:
            if precision.components:  # decoders refuse a second one
                break
            progressive = code in _PROGRESSIVE
            precision.add_frame(body)
        elif code == _SCAN and body:
            scans, begin = scans + 1, at
            at = _next_marker(encoded, at, in_scan=True)
            regular = regular and precision.add_scan(body)
            if regular and at > begin:
                data_end = at
            only = not progressive and body[:1] == bytes([precision.components])
            if (only and scans == 1) or scans > MAX_SCANS:
                ended = regular and encoded.startswith(END, at)
                break
    else:
        raise InvalidImage(
            FIELD,
            f"is a JPEG of more than {MAX_SEGMENTS} segments; save it anew without metadata",
            kind="too_complex",
        )
    return Layout(scans, data_end, ended, precision.complete)


class _Precision:
    """The bits of coefficients that the scans carry."""

    def __init__(self) -> None:
        # By component: the bits that are missing below each coefficient; 255 if all are.
        self._missing: dict[int, list[int]] = {}

    @property
    def components(self) -> int:
        return len(self._missing)

    @property
    def complete(self) -> bool:
        return bool(self._missing) and not any(map(any, self._missing.values()))

    def add_frame(self, body: bytes) -> None:
        """Add the components of a frame header (B.2.2)."""
        for at in range(6, len(body) - 2, 3):
            self._missing[body[at]] = [255] * _COEFFICIENTS

    def add_scan(self, body: bytes) -> bool:
        """Add what a scan header says that it carries (B.2.3); return whether it may be one."""
        components = body[1:-3:2]
        if len(body) != 4 + 2 * body[0] or not self._missing.keys() >= set(components):
            return False
        first, last, bits = body[-3], min(body[-2], _COEFFICIENTS - 1), body[-1] & 15
        for component in components:
            self._missing[component][first : last + 1] = [bits] * max(0, last + 1 - first)
        return True


def _next_marker(encoded: bytes, at: int, in_scan: bool) -> int:
    """Return where the next marker is; the length of the file if there is none.

    numpy searches, in pieces, without the GIL and in a time that depends on the length only: not on
    how many stuffed bytes (FF 00), fill bytes or restart markers there are.

    Args:
        encoded: The file.
        at: Where to begin.
        in_scan: Whether this is entropy-coded data, within which restart markers are skipped.
    """
    if not in_scan and b"\xff\0" < encoded[at : at + 2] < b"\xff\xff":
        return at
    size = FIRST_PIECE_BYTES
    while at + 1 < len(encoded):
        # With one byte of the next piece, as a marker has two.
        piece = np.frombuffer(encoded, np.uint8, min(size + 1, len(encoded) - at), at)
        codes = piece[1:]
        found = (piece[:-1] == 0xFF) & (codes != 0) & (codes != 0xFF)
        if in_scan:
            found &= (codes & 0xF8) != 0xD0
        first = int(found.argmax())
        if found[first]:
            return at + first
        at, size = at + size, min(2 * size, PIECE_BYTES)
    return len(encoded)


def has_one_scan(encoded: bytes, components: int, header_end: int, progressive: bool) -> bool:
    """Return whether decoders read one scan only: of all components, and not progressive.

    That is how nearly all JPEGs are. Decoders ignore further scans of such a file.

    Args:
        encoded: The file.
        components: How many its frame header has.
        header_end: Where the header of its first scan ends.
        progressive: Whether its frame header says so.
    """
    if progressive:
        return False
    length = 6 + 2 * components
    header = struct.pack(">BBHB", 0xFF, _SCAN, length, components)
    return encoded.startswith(header, max(0, header_end - length - 2))


def fraction(size: tuple[int, int], resized: tuple[int, int]) -> int:
    """Return at which fraction a large JPEG is decoded: 2, 4 or 8 for a half to an eighth, or 1.

    Args:
        size: Its height and width.
        resized: The size that it is resized to.
    """
    times = min(
        side // (MIN_SCALED_MULTIPLE * new) for side, new in zip(size, resized, strict=True)
    )
    return next((part for part in FRACTIONS if part <= times), 1)


def scaled(side: int, part: int) -> int:
    """Return the length of a side once decoded at 1 / `part`; libjpeg rounds up."""
    return -(-side // part)


def coefficient_bytes(size: tuple[int, int], sampling: list[tuple[int, int]]) -> int:
    """Return what libjpeg keeps while it decodes a JPEG of several scans, in bytes.

    Args:
        size: Its height and width.
        sampling: The factors of each component, across and down.
    """
    samples = size[0] * size[1] * sum(across * down for across, down in sampling)
    largest = max((across for across, _ in sampling), default=1)
    largest *= max((down for _, down in sampling), default=1)
    return COEFFICIENT_BYTES * samples // max(1, largest)


def decode_jpeg(
    encoded: bytes,
    size: tuple[int, int],
    part: int,
    on_truncated: Callable[[], None] | None = None,
) -> NDArray[np.uint8] | None:
    """Decode a JPEG in RGB or grey, also one that lacks its end (EOI) but none of its data.

    Args:
        encoded: The file, from the start of the image on.
        size: Its height and width.
        part: Decode at 1 / `part` of that.
        on_truncated: Called if it lacks data and is decoded all the same; None to decode no such.

    Returns:
        uint8 [height, width, 3], as stored; None if libjpeg complains. Unusual files
        are left to Pillow: it reads some that break the standard a little, and says what is wrong
        with the others.
    """
    try:
        return _decode(encoded, size, part)
    except ValueError:
        layout = read_layout(encoded)
    if layout.ended or not layout.data_end:
        return None
    try:
        pixels, complaint = _decode_with_end(encoded, layout, size, part)
    except ValueError:
        return None
    if not layout.complete or (complaint and not _ONLY_THE_END.search(complaint)):
        if on_truncated is None:
            return None
        on_truncated()
    return pixels


def _decode_with_end(
    encoded: bytes, layout: Layout, size: tuple[int, int], part: int
) -> tuple[NDArray[np.uint8], str]:
    """Decode a JPEG that lacks its end with one, and return libjpeg's first complaint, if any.

    That says whether pixels are missing: it complains of nothing, or of bytes between the last
    pixel and the end, or first of the pixels that are missing.
    """
    whole = b"".join((memoryview(encoded)[: layout.data_end], END))
    try:
        return _decode(whole, size, part), ""
    except ValueError as error:
        return _decode(whole, size, part, strict=False), str(error)


def _decode(
    encoded: bytes, size: tuple[int, int], part: int, strict: bool = True
) -> NDArray[np.uint8]:
    # It takes the smallest of libjpeg's fractions whose image is at least so large; 0 for any.
    height, width = (scaled(side, part) if part > 1 else 0 for side in size)
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
        encoded, "RGB", min_height=height, min_width=width, strict=strict
    )
    return pixels
