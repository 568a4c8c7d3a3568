"""HEIC and AVIF: open a file once its pictures, by their own headers, are within the limits.

libheif and libavif believe the size that a file declares, and their decoders the size that each
picture's own header gives: a file of 300 bytes may declare 64 x 64 pixels and hold a picture of
16,384 x 16,384. All of them are read and summed here before a decoder sees the file.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from PIL import AvifImagePlugin, Image

from resnet50_server.errors import InvalidImage

from . import av1, hevc
from .decode_guard import FIELD, BudgetedReader, check_tiff_tags
from .iso_media import Item, Pictures, StepLimit, read_pictures
from .signatures import Format

# Decoding is parallel over images.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1


def _load_pillow_heif() -> Any:
    """Return the decoder of HEIC; None without the extra [heif]."""
    try:
        import pillow_heif
    except ImportError:
        return None
    pillow_heif.options.DECODE_THREADS = 1
    # Only the picture itself is read.
    pillow_heif.options.THUMBNAILS = False
    pillow_heif.options.DEPTH_IMAGES = False
    pillow_heif.options.AUX_IMAGES = False
    return pillow_heif


pillow_heif = _load_pillow_heif()

# All pictures, tiles and alpha of an image may have so many times its pixels, or so many.
MAX_CODED_TIMES, MIN_CODED_PIXELS = 4, 2**20
# Memory of each coded pixel at most, three planes of 2 bytes, and of each shown one: in RGBA, in
# Pillow and in numpy. Measured in all: 19 bytes a pixel for AVIF with alpha in 4:4:4, 15 for HEIC,
# 11 and 9 as they usually are (`python -m benchmarks.expensive_images`).
_CODED_PIXEL_BYTES, _SHOWN_PIXEL_BYTES = 6, 14
_CODED_PIXELS = "coded pixels"
_CODECS: dict[Format, bytes] = {"HEIC": b"hvc1", "AVIF": b"av01"}
_NAMED: dict[Format, str] = {"HEIC": "a HEIC", "AVIF": "an AVIF"}


def decodes(name: Format) -> bool:
    """Return whether this installation decodes a format."""
    if name == "HEIC":
        return pillow_heif is not None
    return name != "AVIF" or AvifImagePlugin.SUPPORTED


def missing_decoder(name: Format) -> InvalidImage:
    """Return the error of an image that this installation does not decode."""
    reason = (
        "is a HEIC image; install resnet50-serving with the extra [heif] on the server, or send a"
        " JPEG"
        if name == "HEIC"
        else "is an AVIF image; Pillow was built without AVIF on the server; install Pillow's"
        " own wheel, or send a JPEG"
    )
    return InvalidImage(FIELD, reason, kind="unsupported")


def declared_size(start: bytes) -> tuple[int, int] | None:
    """Return width and height as a file declares them; None if that is not there yet."""
    pictures = read_pictures(start, StepLimit())
    return None if pictures is None else _primary(pictures).size


def open_heif(file: BudgetedReader, content: bytes, name: Format) -> Image.Image:
    """Read the header of a HEIC or AVIF file.

    Args:
        file: Reads it.
        content: The whole of it.
        name: Which of the two.

    Returns:
        The primary picture, not decoded yet. EXIF says how AVIF is to be turned; libheif turns HEIC
        itself, and its EXIF says so.

    Raises:
        InvalidImage: Its pictures are too large by their own headers, or of another codec.
    """
    coded = _Guard(content, name).check()
    if name == "AVIF":
        if content[8:12] != b"avif":
            # libavif would decode a sequence's first frame instead of the picture.
            file.seek(8)
            file.write(b"avif")
            file.seek(0)
        opened: Image.Image = AvifImagePlugin.AvifImageFile(file)
    else:
        assert pillow_heif is not None  # see `decodes`
        opened = pillow_heif.HeifImageFile(file)
    opened.info[_CODED_PIXELS] = coded
    return opened


def decoding_bytes(opened: Image.Image) -> int | None:
    """Return how much memory decoding takes at most; None for other formats."""
    coded = opened.info.get(_CODED_PIXELS)
    if coded is None:
        return None
    return int(coded) * _CODED_PIXEL_BYTES + opened.width * opened.height * _SHOWN_PIXEL_BYTES


class _Guard:
    """Sums the pictures of a file.

    Args:
        content: The whole of it.
        name: Its format.
    """

    def __init__(self, content: bytes, name: Format) -> None:
        self._content = memoryview(content)
        self._name = name
        self._limit = StepLimit()
        self._pictures = read_pictures(content, self._limit)
        self._pixels: dict[int, int] = {}

    def check(self) -> int:
        """Return the pixels of all pictures to decode.

        Raises:
            InvalidImage: As `open_heif`.
        """
        if self._pictures is None:
            raise InvalidImage(
                FIELD,
                f"is {_NAMED[self._name]} file without a list of pictures: cut off, or an image"
                " sequence; send the whole file of a still picture",
                kind="truncated",
            )
        self._check_lengths(self._pictures)
        primary = _primary(self._pictures)
        declared = primary.size
        if declared is None:
            raise InvalidImage(FIELD, f"is {_NAMED[self._name]} file whose picture has no size")
        shown = [primary, *(self._item(number) for number in self._alpha(primary))]
        coded = sum(self._coded_pixels(item) for item in shown)
        # Tiles may have alpha each, instead of the picture that they make.
        for part, times in Counter(primary.parts).items():
            coded += times * sum(map(self._picture_pixels, self._alpha(self._item(part))))
        limit = max(MAX_CODED_TIMES * declared[0] * declared[1], MIN_CODED_PIXELS)
        if coded > limit:
            raise InvalidImage(
                FIELD,
                f"is {_NAMED[self._name]} image of {declared[0]} x {declared[1]} pixels, coded as"
                f" {coded} pixels, the limit is {limit}; save it anew as one picture",
                kind="too_complex",
            )
        return coded

    def _check_lengths(self, pictures: Pictures) -> None:
        """Refuse pictures that share their bytes, and EXIF whose tags do."""
        total, length = 0, len(self._content)
        for item in pictures.items.values():
            total += sum(max(0, min(end, length) - start) for start, end in item.extents)
            if item.kind == b"Exif" and total <= 2 * length:
                exif = bytes(self._bytes(item))
                start = 4 + int.from_bytes(exif[:4], "big")
                check_tiff_tags(exif[start:].removeprefix(b"Exif\0\0"))
        if total > 2 * length:
            raise InvalidImage(
                FIELD,
                f"has {length} bytes, and pictures that say they have {total}; save it"
                " anew as one picture",
                kind="too_complex",
            )

    def _coded_pixels(self, item: Item) -> int:
        """Return the pixels that a decoder makes of an item.

        Raises:
            InvalidImage: It is of another codec, or derived in another way than as a grid.
        """
        if item.kind == b"iden":
            return sum(self._picture_pixels(number) for number in item.parts)
        if item.kind == b"grid":
            tiles = sum(self._picture_pixels(number) for number in item.parts)
            return max(tiles, _grid_pixels(bytes(self._bytes(item)[:12])))
        if item.kind != _CODECS[self._name]:
            raise InvalidImage(
                FIELD,
                f"is an HEIF file with a picture of type {item.kind!r}; pictures of type"
                f" {_CODECS[self._name]!r}, and grids of them, are decoded; save it as a JPEG",
                kind="unsupported",
            )
        content = self._bytes(item)
        if self._name == "AVIF":
            return av1.coded_pixels(content, self._limit)
        return hevc.coded_pixels(item.read_property(b"hvcC") or b"", content, self._limit)

    def _picture_pixels(self, number: int) -> int:
        """Return the pixels of a part, which is no grid itself."""
        if number not in self._pixels:
            item = self._item(number)
            if item.kind != _CODECS[self._name]:
                item = Item()  # refused by its empty type
            self._pixels[number] = self._coded_pixels(item)
        return self._pixels[number]

    def _alpha(self, item: Item) -> list[int]:
        """Return the numbers of the items that hold an item's alpha, each once."""
        others = dict.fromkeys(item.auxiliary)
        return [number for number in others if _is_alpha(self._item(number))]

    def _item(self, number: int) -> Item:
        assert self._pictures is not None
        return self._pictures.items.get(number) or Item()

    def _bytes(self, item: Item) -> memoryview:
        parts = [self._content[start:end] for start, end in item.extents]
        return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))


def _primary(pictures: Pictures) -> Item:
    item = None if pictures.primary is None else pictures.items.get(pictures.primary)
    if item is None:
        raise InvalidImage(
            FIELD,
            "is an image sequence without a still picture; send one of its pictures",
            kind="unsupported",
        )
    return item


def _is_alpha(item: Item) -> bool:
    """Return whether an auxiliary picture is alpha, and no gain map or depth, which stay as is."""
    kind = item.read_property(b"auxC") or b""
    return b":alpha" in kind or b":auxid:1" in kind


def _grid_pixels(content: bytes) -> int:
    """Return width x height of a grid (ISO/IEC 23008-12 section 6.6.2.3)."""
    length = 4 if content[1:2] and content[1] & 1 else 2
    width = int.from_bytes(content[4 : 4 + length], "big")
    return width * int.from_bytes(content[4 + length : 4 + 2 * length], "big")
