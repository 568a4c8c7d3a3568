"""Files that packages ship, and every format in every mode: read as Pillow reads them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image, ImageOps

from resnet50_server.errors import InvalidImage
from resnet50_server.images.decode import decode
from resnet50_server.images.limits import ImageLimits
from resnet50_server.images.transform import Transform
from tests.support.pictures import PHOTOS, encode, heic, package_folder, photo_like, picture

# matplotlib ships icons with alpha, photographs, and drawings.
MATPLOTLIB = package_folder("matplotlib") / "mpl-data"
SHIPPED = sorted(
    path
    for folder in ("images", "sample_data")
    for path in (MATPLOTLIB / folder).iterdir()
    if path.suffix in (".png", ".jpg", ".gif", ".tif", ".webp")
)
DRAWN = sorted(
    path for path in (MATPLOTLIB / "images").iterdir() if path.suffix in (".pdf", ".svg")
)


def square_of(image: Image.Image) -> Transform:
    side = min(image.size)
    return Transform(resize=side, crop=side, mean=(0, 0, 0), std=(1, 1, 1))


def as_pillow_reads(encoded: bytes) -> np.ndarray:
    """Return what Pillow makes of a file, upright, its central square."""
    opened = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
    if "transparency" in opened.info and opened.mode == "P":
        opened = opened.convert("RGBA")
    transform = square_of(opened)
    top, left = transform.crop_origin(opened.height, opened.width)
    side = transform.crop
    return np.asarray(opened.convert("RGB"))[top : top + side, left : left + side]


def as_served(encoded: bytes) -> np.ndarray:
    opened = Image.open(io.BytesIO(encoded))
    return decode(encoded, square_of(opened), ImageLimits())


@pytest.mark.parametrize("path", [*PHOTOS, *SHIPPED], ids=lambda path: path.name)
def test_shipped_file_is_within_two_levels_of_pillow(path):
    encoded = path.read_bytes()
    assert np.abs(as_served(encoded).astype(int) - as_pillow_reads(encoded)).max() <= 2


@pytest.mark.parametrize("path", DRAWN, ids=lambda path: path.name)
def test_shipped_drawing_is_refused_by_its_name(path):
    square = Transform(resize=32, crop=32, mean=(0, 0, 0), std=(1, 1, 1))
    with pytest.raises(InvalidImage, match=r"is a PDF document|is an SVG drawing"):
        decode(path.read_bytes(), square, ImageLimits())


@dataclass(frozen=True)
class Case:
    """A file made here."""

    name: str
    encoded: bytes


COMPRESSIONS = (None, "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "packbits", "lzma", "zstd")
MODES = {
    "JPEG": ("L", "RGB", "CMYK", "YCbCr"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA"),
    "WEBP": ("L", "RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "GIF": ("1", "L", "P", "RGB"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"),
    "AVIF": ("L", "LA", "RGB", "RGBA"),
    "MPO": ("RGB",),
}


def in_mode(mode: str, width: int, height: int) -> Image.Image:
    image = photo_like(width, height)
    if mode in ("LA", "RGBA"):
        image.putalpha(picture(width, height, "L"))
    if mode == "LAB":
        return Image.merge("LAB", image.split())
    return image.quantize(64) if mode == "P" else image.convert(mode)


def made() -> Iterator[Case]:
    for format, modes in MODES.items():
        for mode in modes:
            for width, height in ((33, 47), (64, 48), (1, 1), (200, 3)):
                image = in_mode(mode, width, height)
                yield Case(f"{format} {mode} {width}x{height}", encode(image, format))
    for compression in COMPRESSIONS[1:]:
        for mode in ("L", "RGB", "RGBA"):
            image = in_mode(mode, 64, 48)
            options = {"compression": compression}
            yield Case(f"TIFF {mode} {compression}", encode(image, "TIFF", **options))
    for fax in ("group3", "group4", "tiff_ccitt"):
        yield Case(f"TIFF {fax}", encode(in_mode("1", 64, 48), "TIFF", compression=fax))
    for bits in (1, 2, 4):
        image = photo_like(64, 48).quantize(1 << bits)
        yield Case(f"PNG palette of {bits} bits", encode(image, "PNG", bits=bits))
    for quality in (1, 50, 100):
        for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
            options = {"quality": quality, "subsampling": subsampling}
            yield Case(
                f"JPEG {quality} {subsampling}", encode(in_mode("RGB", 65, 49), "JPEG", **options)
            )
            yield Case(
                f"AVIF {quality} {subsampling}", encode(in_mode("RGB", 65, 49), "AVIF", **options)
            )
    yield Case("BigTIFF", encode(in_mode("RGB", 64, 48), "TIFF", big_tiff=True))


CASES = list(made())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_format_and_mode_is_within_two_levels_of_pillow(case):
    found, wanted = as_served(case.encoded).astype(int), as_pillow_reads(case.encoded)
    assert np.abs(found - wanted).max() <= 2


# Pillow's reading of these is wrong by the file's own tags; `test_depth.py` has the right values.
WRONG_BY_PILLOW = {
    "PNG of 16-bit grey": (np.uint16, "PNG"),
    "TIFF of 16-bit grey": (np.uint16, "TIFF"),
}


@pytest.mark.parametrize(("kind", "format"), WRONG_BY_PILLOW.values(), ids=WRONG_BY_PILLOW)
def test_deep_grey_is_scaled_where_pillow_clips_it(kind, format):
    values = np.linspace(0, 65535, 32 * 32).astype(kind).reshape(32, 32)
    encoded = encode(Image.fromarray(values), format)
    assert np.abs(as_served(encoded)[..., 0] - values / 257).max() <= 0.51
    assert np.abs(as_pillow_reads(encoded)[..., 0] - values / 257).max() > 200


def test_heic_of_every_mode_is_decoded():
    for mode in ("L", "RGB", "RGBA"):
        image = in_mode(mode, 64, 48)
        square = Transform(resize=48, crop=48, mean=(0, 0, 0), std=(1, 1, 1))
        found = decode(heic(image, quality=100, chroma=444), square, ImageLimits())
        wanted = np.asarray(image.convert("RGB"))[:, 8:56]
        assert np.abs(found.astype(int) - wanted).mean() < 3
