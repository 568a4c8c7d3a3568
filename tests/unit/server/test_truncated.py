"""Images whose data ends early: refused, or answered from the part that is there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from resnet50_server.errors import InvalidImage
from resnet50_server.images.decode import decode
from resnet50_server.images.limits import ImageLimits
from resnet50_server.images.source import ImageWarning
from resnet50_server.images.transform import Transform
from resnet50_server.settings import Settings
from tests.support import hostile
from tests.support.pictures import encode, photo_like

REFUSE = ImageLimits()
ACCEPT = replace(REFUSE, accept_truncated=True)
SQUARE = Transform(resize=64, crop=64, mean=(0, 0, 0), std=(1, 1, 1))
PHOTO = photo_like(64, 64)
WHOLE = {
    "jpeg": encode(PHOTO, "JPEG", quality=95),
    "progressive jpeg": encode(PHOTO, "JPEG", quality=95, progressive=True),
    "grey jpeg": encode(PHOTO.convert("L"), "JPEG", quality=95),
    "cmyk jpeg": encode(PHOTO.convert("CMYK"), "JPEG", quality=95),
    "png": encode(PHOTO),
    "palette png": encode(PHOTO.quantize(64)),
    "16-bit png": encode(Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 15)),
    "gif": encode(PHOTO.quantize(64), "GIF", interlace=False),
    "bmp": encode(PHOTO.transpose(Image.Transpose.FLIP_TOP_BOTTOM), "BMP"),
    "tiff": encode(PHOTO, "TIFF"),
}
# Decoders of these say nothing of the rows that they have decoded.
REFUSED = {
    "webp": encode(PHOTO, "WEBP"),
    "lzw tiff": encode(PHOTO, "TIFF", compression="tiff_lzw"),
}


def decoded(encoded: bytes, limits: ImageLimits) -> tuple[np.ndarray, list[ImageWarning]]:
    warnings: list[ImageWarning] = []
    return decode(encoded, SQUARE, limits, warn=warnings.append), warnings


def part(whole: bytes) -> bytes:
    return whole[: len(whole) * 4 // 5]


@pytest.mark.parametrize("kind", WHOLE)
def test_truncated_image_is_refused_with_the_name_of_the_setting(kind):
    with pytest.raises(InvalidImage, match=r"truncated.*\(truncated_images\)") as refused:
        decoded(part(WHOLE[kind]), REFUSE)
    assert refused.value.kind == "truncated"


@pytest.mark.parametrize("kind", WHOLE)
def test_accepted_truncated_image_has_its_first_rows_and_a_warning(kind):
    expected, none = decoded(WHOLE[kind], ACCEPT)
    found, warnings = decoded(part(WHOLE[kind]), ACCEPT)
    assert none == []
    assert warnings == [ImageWarning.TRUNCATED]
    rows = slice(0, 64) if kind == "progressive jpeg" else slice(0, 32)
    if kind == "bmp":  # from the bottom up
        rows = slice(40, 64)
    apart = np.abs(found[rows].astype(int) - expected[rows])
    assert apart.mean() <= (12 if kind == "progressive jpeg" else 0)
    assert (found != expected).any()


@pytest.mark.parametrize("kind", WHOLE)
def test_whole_image_is_the_same_whether_truncated_ones_are_accepted(kind):
    assert (decoded(WHOLE[kind], ACCEPT)[0] == decoded(WHOLE[kind], REFUSE)[0]).all()


@pytest.mark.parametrize("kind", REFUSED)
def test_format_without_partial_decoding_is_refused_all_the_same(kind):
    with pytest.raises(InvalidImage, match="truncated or broken"):
        decoded(part(REFUSED[kind]), ACCEPT)


@pytest.mark.parametrize("left", [3, 20, 200, 400])
def test_image_without_pixel_data_is_refused_all_the_same(left):
    header = WHOLE["jpeg"].index(b"\xff\xda")
    with pytest.raises(InvalidImage) as refused:
        decoded(WHOLE["jpeg"][: min(left, header)], ACCEPT)
    assert refused.value.kind == "truncated"


def test_jpeg_that_lacks_only_its_end_has_no_warning():
    assert decoded(WHOLE["jpeg"][:-2], ACCEPT)[1] == []


def test_large_truncated_jpeg_is_decoded_scaled():
    large = encode(photo_like(600, 600), "JPEG")
    limits = replace(ACCEPT, exact_jpeg_pixels=1, max_pixels=100_000)
    found, warnings = decoded(part(large), limits)
    expected, _ = decoded(large, limits)
    assert warnings == [ImageWarning.TRUNCATED]
    assert (found[:32] == expected[:32]).all()


@pytest.mark.parametrize(
    "content",
    [
        hostile.marker_flood(b"\xff\0", 100_000),
        hostile.marker_flood(b"\xff\xd0", 100_000),
        hostile.progressive(64, 64, 101)[:-2],
        hostile.jpeg_of(65_000, 65_000)[:-2],
        hostile.png(60_000, 60_000)[:-20],
        b"not an image",
    ],
)
def test_limits_hold_for_truncated_images(content):
    try:
        found, warnings = decoded(content, replace(ACCEPT, max_pixels=10_000))
    except InvalidImage:
        return
    assert found.shape == (64, 64, 3)
    assert warnings == [ImageWarning.TRUNCATED]


def test_setting_becomes_the_limit():
    settings = Settings(variants=["IMAGENET1K_V2"], truncated_images="accept")
    assert ImageLimits.of(settings).accept_truncated
    assert not ImageLimits.of(Settings(variants=["IMAGENET1K_V2"])).accept_truncated
