"""Guards against hostile files: bounded reads, time and metadata.

Pillow reads headers in Python, piece by piece, and believes most of what they say. The attacks are
listed in docs/how-to/secure.md.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import re
import struct
import time
import warnings
from collections.abc import Mapping
from pathlib import Path

from PIL import Image, PngImagePlugin

from resnet50_server.errors import InvalidImage

FIELD = "image.encoded"
# Headers of real files take some hundreds of reads, with the tags of scanners some thousands.
MAX_HEADER_READS = 10_000
# PNG writers cut pixels into pieces of some kilobytes, of which each takes three reads.
MIN_BYTES_A_READ = 256
# Run-length BMPs are decoded in Python with two reads for each run: about a second of them.
MAX_RUN_READS = 2**21
# Limit of a PNG's text once inflated; Pillow's own is 64 MiB.
MAX_TEXT_BYTES = 4 * 2**20
# 50 million pixels in tiles of 16 x 16 have 400,000 offsets and lengths.
MAX_TAG_NUMBERS = 2**19
# Bytes of one value, by TIFF type: bytes, text, shorts, longs, fractions, floats. All others count
# as 8: BigTIFF's numbers (16), which Pillow also reads elsewhere, and types that it does not know.
TAG_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
MAX_TAG_SIZE = 8
TAG_TEXT, TAG_WHOLE_NUMBERS = (1, 2, 7), (3, 4, 16)
# A fraction becomes an object of its own.
NUMBERS_A_FRACTION = 64

PngImagePlugin.MAX_TEXT_MEMORY = MAX_TEXT_BYTES


class BudgetedReader(io.BytesIO):
    """A file in memory that may be read a bounded number of times, for a bounded time.

    Args:
        content: The file.
        timeout_s: For how long it may be read, in seconds from now.
        skipped: Parts that are not read: their ends by their starts. A reader meets the start of
            one between two reads.
    """

    def __init__(
        self, content: bytes, timeout_s: float, skipped: Mapping[int, int] | None = None
    ) -> None:
        super().__init__(content)
        self._length = len(content)
        self._reads_left = MAX_HEADER_READS
        self._timeout_s = timeout_s
        self._ends = time.monotonic() + timeout_s
        self._skipped = skipped or {}

    def read(self, size: int | None = -1, /) -> bytes:
        """Read.

        Raises:
            InvalidImage: Too often, or too late.
        """
        self._reads_left -= 1
        if self._reads_left < 0:
            raise InvalidImage(
                FIELD,
                "is cut into too many small pieces, of its header or its pixels; save it anew"
                " without metadata and without run-length compression",
                kind="too_complex",
            )
        self.check_time()
        while self._skipped and (end := self._skipped.get(self.tell())) is not None:
            self.seek(end)
        return super().read(size)

    def grant_pixel_reads(self, file_format: str | None) -> None:
        """Add the reads that pixels take, after the header."""
        if file_format == "BMP":
            self._reads_left = min(self._length, MAX_RUN_READS)
        else:
            self._reads_left += self._length // MIN_BYTES_A_READ

    def check_time(self) -> None:
        """Stop a decoder that takes too long.

        Raises:
            InvalidImage: It does.
        """
        if time.monotonic() > self._ends:
            raise decode_timeout_error(FIELD, self._timeout_s)


def decode_timeout_error(field: str, timeout_s: float) -> InvalidImage:
    """Return the error of an image that takes too long to decode."""
    return InvalidImage(
        field,
        f"was not decoded within {timeout_s:g} s, the limit (decode_timeout_s); send a smaller or"
        " simpler image",
        kind="timeout",
    )


def check_tiff_tags(content: bytes) -> None:
    """Refuse a TIFF, or EXIF, whose tags would take far more memory than they have bytes.

    Tags may say that the same bytes are theirs: 40,000 of them times 400,000 bytes are 16 GB.

    Args:
        content: The whole of it, from its byte order on. Broken ones are left to Pillow.

    Raises:
        InvalidImage: They would.
    """
    order, length = ("<" if content[:2] == b"II" else ">"), len(content)
    big = content[2:4] == b"+\0"
    # BigTIFF has the same in larger numbers: where the directory is, its count, an entry.
    head, number, entry = ("8xQ", "Q", "HHQQ") if big else ("4xI", "H", "HHII")
    within, entry_bytes = struct.calcsize("=" + number), struct.calcsize("=" + entry)
    total = numbers = 0
    with contextlib.suppress(struct.error, OverflowError):
        (start,) = struct.unpack_from(order + head, content)
        (count,) = struct.unpack_from(order + number, content, start)
        start += within
        entries = content[start : start + entry_bytes * min(count, length)]
        whole = memoryview(entries)[: len(entries) // entry_bytes * entry_bytes]
        for _, kind, values, at in struct.iter_unpack(order + entry, whole):
            size = values * TAG_SIZES.get(kind, MAX_TAG_SIZE)
            if size > (8 if big else 4) and at + size <= length:
                total += size
                if kind not in TAG_TEXT:
                    numbers += values * (1 if kind in TAG_WHOLE_NUMBERS else NUMBERS_A_FRACTION)
    if total > 2 * length or numbers > MAX_TAG_NUMBERS:
        raise InvalidImage(
            FIELD,
            f"has {length} bytes, and tags (TIFF or EXIF) that say they have {total}, or more"
            f" numbers than {MAX_TAG_NUMBERS}; save it anew without metadata",
            kind="too_complex",
        )


def check_exif_tags(image: Image.Image) -> None:
    """Check the EXIF tags of any file before Pillow reads them.

    Raises:
        InvalidImage: As `check_tiff_tags`.
    """
    exif = image.info.get("exif")
    if isinstance(exif, bytes):
        check_tiff_tags(exif.removeprefix(b"Exif\0\0"))
    text = image.info.get("Raw profile type exif")  # as ImageMagick writes it into a PNG
    if isinstance(text, str):
        with contextlib.suppress(ValueError):
            check_tiff_tags(bytes.fromhex("".join(text.split("\n")[3:])).removeprefix(b"Exif\0\0"))


def silence_decoders() -> None:
    """Silence the warnings of the decoders, for the whole process.

    They warn of each broken tag, so that one file could fill a log; the client is told what is
    wrong with its image.
    """
    warnings.filterwarnings("ignore", module=r"PIL(\..*)?")
    logging.getLogger("PIL").setLevel(logging.CRITICAL + 1)
    libtiff = _loaded_library("libtiff")
    if libtiff is not None:
        # Without a handler it prints nothing; its own prints to stderr.
        for name in ("TIFFSetWarningHandler", "TIFFSetErrorHandler"):
            setter = getattr(libtiff, name, None)
            if setter is not None:
                setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
                setter(None)


def _loaded_library(name: str) -> ctypes.CDLL | None:
    """Return a shared library that this process has loaded already; only Linux tells."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    found = re.search(rf"\S*/{name}[-.]\S*", maps)
    return ctypes.CDLL(found[0]) if found else None
