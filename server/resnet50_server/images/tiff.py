"""TIFF files: the samples that are decoded, and which of their values are black and white."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin

from resnet50_server.errors import InvalidImage

from .decode_guard import FIELD
from .packed_samples import PackedSamples

# Tags of TIFF 6.0.
_SUBFILE_TYPE, _BITS, _PHOTOMETRIC = 254, 258, 262
_STRIP_LENGTHS, _TILE_WIDTH, _TILE_LENGTH, _TILE_LENGTHS = 279, 322, 323, 325
_SUB_IFDS, _SAMPLE_FORMAT, _LEAST_SAMPLE, _LARGEST_SAMPLE = 330, 339, 340, 341
_DNG_VERSION = 50706
_MIN_IS_WHITE = 0
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
_DEPTHS = (
    "1 to 16 bits grey, 2 to 16 bits RGB, 8 and 16 bits RGBA and CMYK, unsigned and without"
    " a predictor"
)

# Grey that Pillow lacks: `grey_levels` says which value is white.
_KEY = (b"MM", _MIN_IS_WHITE, (_UNSIGNED,), 1, (16,), ())
TiffImagePlugin.OPEN_INFO.setdefault(_KEY, ("I;16B", "I;16B"))


class Tiff(TiffImagePlugin.TiffImageFile):
    """A TIFF, of which samples that are not decoded are refused by their name."""

    _packed: PackedSamples | None = None  # of the rows in `im`

    def load(self) -> Any:
        """Decode the pixels."""
        loaded = super().load()
        if self._packed is None:
            return loaded
        self._unpack()  # a truncated file, whose `load_end` is not called
        return Image.Image.load(self)

    def load_prepare(self) -> None:
        """Make room for the rows, whose bytes Pillow would count as pixels."""
        if self._packed is not None and self._im is None:
            self.im = Image.new(self.mode, self._tile_size).im
        super().load_prepare()

    def load_end(self) -> None:
        """Unpack the rows before they are turned."""
        self._unpack()
        super().load_end()

    def _unpack(self) -> None:
        packed, self._packed = self._packed, None
        if packed is None:
            return
        self._size = self.im.size
        unpacked = Image.fromarray(packed.pixels(np.asarray(self)))
        self.im, self._mode = unpacked.im, unpacked.mode
        self._size = self._tile_size = unpacked.size

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
            packed = PackedSamples.of(tags)
            if packed is None:
                raise _unknown_samples(tags) from error
            self._setup_packed(packed)

    def _setup_packed(self, packed: PackedSamples) -> None:
        """Have the rows read as bytes, of an image that has its size in pixels."""
        assert isinstance(self.fp, io.BytesIO)
        with self.fp.getbuffer() as content:
            packed.describe_as_bytes(self.tag_v2, content)
        super()._setup()
        self._packed = packed
        width, height = packed.width, self._tile_size[1]
        turned = self.tag_v2.get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        self._size = (height, width) if turned else (width, height)


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
