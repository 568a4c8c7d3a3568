"""TIFF files: the samples that are decoded, and which of their values are black and white."""

from __future__ import annotations

from typing import Any

from PIL import Image, TiffImagePlugin

from resnet50_server.errors import InvalidImage

from .decode_guard import FIELD

# Tags of TIFF 6.0.
_SUBFILE_TYPE, _BITS, _PHOTOMETRIC = 254, 258, 262
_STRIP_LENGTHS, _TILE_WIDTH, _TILE_LENGTH, _TILE_LENGTHS = 279, 322, 323, 325
_SUB_IFDS, _SAMPLE_FORMAT, _LEAST_SAMPLE, _LARGEST_SAMPLE = 330, 339, 340, 341
_DNG_VERSION = 50706
_MIN_IS_WHITE, _MIN_IS_BLACK = 0, 1
_UNSIGNED, _SIGNED = 1, 2
_PHOTOMETRICS = {
    0: "grey (0 is white)",
    1: "grey",
    2: "RGB",
    3: "palette",
    5: "CMYK",
    6: "YCbCr",
    8: "CIELAB",
    32803: "colour filter array",
    34892: "linear raw",
}
_SAMPLE_FORMATS = {1: "unsigned", 2: "signed", 3: "floating-point", 5: "complex"}
_MIN_TILE_PIXELS = 2**20
_DEPTHS = "1, 2, 4, 8, 12 and 16 bits grey, 8 and 16 bits RGB, RGBA and CMYK"

# Kinds of grey that Pillow lacks, by byte order, photometric interpretation and bits: those of 12
# bits lie in both orders alike, and `grey_levels` says which value is white.
_ADDED = {
    (b"II", _MIN_IS_WHITE, 12): ("I;16", "I;12"),
    (b"MM", _MIN_IS_WHITE, 12): ("I;16", "I;12"),
    (b"MM", _MIN_IS_BLACK, 12): ("I;16", "I;12"),
    (b"MM", _MIN_IS_WHITE, 16): ("I;16B", "I;16B"),
}
for (_order, _photometric, _depth), _modes in _ADDED.items():
    _key = (_order, _photometric, (_UNSIGNED,), 1, (_depth,), ())
    TiffImagePlugin.OPEN_INFO.setdefault(_key, _modes)


class Tiff(TiffImagePlugin.TiffImageFile):
    """A TIFF, of which samples that Pillow does not know are refused by their name."""

    def _setup(self) -> None:
        tags = self.tag_v2
        if _is_camera_raw(tags):
            raise InvalidImage(
                FIELD,
                "is a camera raw file (DNG, NEF, ARW, ...), of which only a preview would be"
                " decoded; develop it to a JPEG, PNG or TIFF",
                kind="unsupported",
            )
        try:
            super()._setup()
        except SyntaxError as error:
            if "pixel mode" not in str(error):
                raise
            raise _unknown_samples(tags) from error


def _is_camera_raw(tags: Any) -> bool:
    """Return whether the first picture is the preview of a camera's raw data.

    TIFF/EP: the first directory holds a small picture, and others beside it the data.
    """
    return _DNG_VERSION in tags or (_SUB_IFDS in tags and tags.get(_SUBFILE_TYPE, 0) == 1)


def _unknown_samples(tags: Any) -> InvalidImage:
    bits = tags.get(_BITS, (1,))
    depth = "/".join(map(str, bits[:8])) if isinstance(bits, tuple) else bits
    formats = tags.get(_SAMPLE_FORMAT, (1,))
    sample_format = _SAMPLE_FORMATS.get(formats[0] if isinstance(formats, tuple) else formats, "")
    photometric = tags.get(_PHOTOMETRIC, _MIN_IS_WHITE)
    return InvalidImage(
        FIELD,
        f"is a TIFF of {depth}-bit {sample_format} samples (BitsPerSample, SampleFormat),"
        f" {_PHOTOMETRICS.get(photometric, f'photometric interpretation {photometric}')}; TIFFs of"
        f" {_DEPTHS} are decoded; save it as one of these",
        kind="unsupported",
    )


def grey_levels(opened: Image.Image) -> tuple[float, float] | None:
    """Return which values of deep grey samples are black and white, by the file's tags.

    Args:
        opened: A TIFF of mode I or I;16.

    Returns:
        Black and white; None if nothing says so: samples of 32 bits, and signed ones without
        SMinSampleValue and SMaxSampleValue.
    """
    tags: Any = getattr(opened, "tag_v2", {})
    (bits, *_), (sample_format, *_) = tags.get(_BITS, (1,)), tags.get(_SAMPLE_FORMAT, (1,))
    if bits > 16:
        return None
    black, white = 0.0, float(2**bits - 1)
    if sample_format == _SIGNED:
        try:
            ((black, *_), (white, *_)) = (
                _numbers(tags[tag]) for tag in (_LEAST_SAMPLE, _LARGEST_SAMPLE)
            )
        except (KeyError, TypeError, ValueError):
            return None
        if not black < white:
            return None
    if tags.get(_PHOTOMETRIC, _MIN_IS_WHITE) == _MIN_IS_WHITE:
        black, white = white, black
    return black, white


def _numbers(value: Any) -> tuple[float, ...]:
    return tuple(map(float, value)) if isinstance(value, tuple) else (float(value),)


def check_tiles(opened: Image.Image) -> None:
    """Refuse a TIFF with tiles far larger than itself, which are decoded whole.

    Raises:
        InvalidImage: It has.
    """
    tags = getattr(opened, "tag_v2", {})
    tile = tags.get(_TILE_WIDTH, 0) * tags.get(_TILE_LENGTH, 0)
    limit = max(4 * opened.size[0] * opened.size[1], _MIN_TILE_PIXELS)
    if tile > limit:
        raise InvalidImage(
            FIELD,
            f"is a TIFF of {opened.size[0]} x {opened.size[1]} pixels with tiles of {tile} pixels,"
            f" the limit is {limit}; write it with smaller tiles",
            kind="too_complex",
        )


def check_strips(opened: Image.Image, length: int) -> None:
    """Refuse a TIFF whose strips or tiles share their bytes, which are then decoded for each.

    Raises:
        InvalidImage: They do.
    """
    tags = getattr(opened, "tag_v2", {})
    for tag in (_STRIP_LENGTHS, _TILE_LENGTHS):
        lengths = tags.get(tag, 0)
        total = sum(lengths) if isinstance(lengths, tuple) else lengths
        if isinstance(lengths, tuple) and total > 2 * length:
            raise InvalidImage(
                FIELD,
                f"is a TIFF of {length} bytes whose {len(lengths)} strips or tiles have {total};"
                " write it without strips that share their bytes",
                kind="too_complex",
            )
