"""JPEG as cameras, phones and servers write it."""

from __future__ import annotations

import io
import random
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from resnet50_server.errors import InvalidImage
from resnet50_server.images import jpeg
from resnet50_server.images.decode import decode
from resnet50_server.images.formats import check_header
from resnet50_server.images.limits import ImageLimits
from resnet50_server.images.pixel_budget import BudgetFull
from resnet50_server.images.signatures import JPEG_START as START
from resnet50_server.images.transform import Transform
from resnet50_server.settings import Settings
from tests.support import hostile
from tests.support.pictures import PHOTOS, encode, photo_like

LIMITS = ImageLimits()
SQUARE = Transform(resize=32, crop=32, mean=(0, 0, 0), std=(1, 1, 1))
PHOTO = photo_like(320, 240)
BASELINE = encode(PHOTO, "JPEG")
PROGRESSIVE = encode(PHOTO, "JPEG", progressive=True)
RESTARTS = encode(PHOTO, "JPEG", restart_marker_rows=1)
GREY = encode(PHOTO.convert("L"), "JPEG")
KINDS = {"baseline": BASELINE, "progressive": PROGRESSIVE, "restarts": RESTARTS, "grey": GREY}
THUMBNAIL = encode(photo_like(160, 120), "JPEG", progressive=True)
# As MP4 does, it holds the bytes of every marker; none of them belongs to the photo.
VIDEO = b"MotionPhoto_Data" + b"\xff\xda" * 200 + random.Random(0).randbytes(300_000)


def decoded(encoded: bytes, limits: ImageLimits = LIMITS) -> np.ndarray:
    return decode(encoded, SQUARE, limits)


def refusal(encoded: bytes, limits: ImageLimits = LIMITS) -> InvalidImage:
    with pytest.raises(InvalidImage) as refused:
        decoded(encoded, limits)
    return refused.value


def without_huffman_tables(whole: bytes, *, jfif: bool = True) -> bytes:
    """Return a frame as cameras stream it (MJPEG): decoders are to know its tables."""
    at, kept = 2, whole[:2]
    while whole[at + 1] != 0xDA:
        length = 2 + int.from_bytes(whole[at + 2 : at + 4], "big")
        if whole[at + 1] != 0xC4 and (jfif or whole[at + 1] != 0xE0):
            kept += whole[at : at + length]
        at += length
    return kept + whole[at:]


def quirks(whole: bytes) -> dict[str, bytes]:
    """Return a JPEG with what must make no difference to its pixels."""
    thumbnail = hostile.segment(0xE2, b"thumbnail" + THUMBNAIL)
    exif = hostile.segment(0xE1, b"Exif\0\0" + hostile.exif() + THUMBNAIL)
    return {
        "a video behind the end": whole + VIDEO,
        "zeros behind the end": whole + bytes(5000),
        "a second picture behind the end": whole + THUMBNAIL,
        "a thumbnail in APP2": whole[:2] + thumbnail + whole[2:],
        "a thumbnail in EXIF": whole[:2] + exif + whole[2:],
        "no end": whole[:-2],
        "half an end": whole[:-1],
        "no end and a trailer": whole[:-2] + b"\0\0\xa1\x0a" + VIDEO,
        "no end and zeros": whole[:-2] + bytes(5000),
        "zeros before the start": bytes(16) + whole,
        "an end of line before the start": b"\r\n" + whole,
        "fill bytes before the start": b"\xff\xff" + whole,
        "fill bytes between segments": whole[:2] + b"\xff\xff\xff" + whole[2:],
        "padding, a thumbnail and a video": bytes(3) + whole[:2] + thumbnail + whole[2:] + VIDEO,
    }


QUIRKS = sorted(quirks(BASELINE))


@pytest.mark.parametrize("quirk", QUIRKS)
@pytest.mark.parametrize("kind", KINDS)
def test_quirk_of_cameras_leaves_the_pixels_as_they_are(kind, quirk):
    assert (decoded(quirks(KINDS[kind])[quirk]) == decoded(KINDS[kind])).all()


@pytest.mark.parametrize("quirk", QUIRKS)
@pytest.mark.parametrize("kind", KINDS)
def test_upload_of_a_quirk_is_not_refused_while_it_arrives(kind, quirk):
    content = quirks(KINDS[kind])[quirk]
    read = [check_header(content[:length], SQUARE, LIMITS) for length in (12, 24, 48, 2**15)]
    assert read[-1]


def test_first_picture_of_several_is_taken():
    """MPO, as cameras with two lenses and phones write it."""
    mpo = encode(PHOTO, "MPO", save_all=True, append_images=[photo_like(320, 240, seed=1)])
    assert Image.open(io.BytesIO(mpo)).n_frames == 2
    assert np.abs(decoded(mpo).astype(int) - decoded(BASELINE)).max() <= 1


@pytest.mark.parametrize("jfif", [True, False])
def test_frame_of_a_camera_needs_no_huffman_tables(jfif):
    frame = without_huffman_tables(BASELINE, jfif=jfif)
    assert b"\xff\xc4" not in frame
    assert (decoded(frame) == decoded(BASELINE)).all()


def test_frame_of_an_avi_is_read():
    avi = hostile.segment(0xE0, b"AVI1" + bytes(10))
    frame = without_huffman_tables(BASELINE, jfif=False)
    assert (decoded(frame[:2] + avi + frame[2:]) == decoded(BASELINE)).all()


def test_scan_header_that_breaks_the_standard_is_read():
    """Some phones declare the spectral range of a progressive scan in a sequential one."""
    at = BASELINE.index(b"\xff\xda")
    length = 2 + int.from_bytes(BASELINE[at + 2 : at + 4], "big")
    odd = BASELINE[: at + length - 3] + b"\0\0\0" + BASELINE[at + length :]
    assert (decoded(odd) == decoded(BASELINE)).all()


def cut(whole: bytes, left_out: int) -> bytes:
    return whole[: len(whole) - left_out]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("left_out", "tail"), [(4, b""), (50, b""), (50, bytes(20)), (2000, b""), (2000, bytes(20))]
)
def test_missing_data_is_refused_as_truncated(kind, left_out, tail):
    refused = refusal(cut(KINDS[kind], left_out) + tail)
    assert refused.kind == "truncated"


def test_progressive_jpeg_without_its_last_scans_is_refused():
    """Each of its scans is whole, and yet the finest detail is not there."""
    last = PROGRESSIVE.rindex(b"\xff\xda")
    layout = jpeg.read_layout(PROGRESSIVE[:last])
    assert (layout.scans, layout.complete) == (9, False)
    assert refusal(PROGRESSIVE[:last]).kind == "truncated"


def test_component_without_a_scan_is_refused():
    alone = hostile.scans_of_one_component(1)
    assert not jpeg.read_layout(alone[:-2]).complete
    assert refusal(alone[:-2]).kind == "truncated"


@pytest.mark.parametrize("kind", KINDS)
def test_layout_of_the_first_image_is_read(kind):
    whole, scans = KINDS[kind], 10 if kind == "progressive" else 1
    for behind in (b"", VIDEO, whole, bytes(100)):
        expected = jpeg.Layout(scans, data_end=len(whole) - 2, ended=True, complete=True)
        assert jpeg.read_layout(whole + behind) == expected
    thumbnail = quirks(whole)["a thumbnail in APP2"]
    assert jpeg.read_layout(thumbnail).data_end == len(thumbnail) - 2
    assert jpeg.read_layout(thumbnail).scans == scans


@pytest.mark.parametrize(
    ("start", "padding"),
    [
        (b"", 0),
        (START, 0),
        (b"\0\0" + START, 2),
        (b"\xff\xff" + START, 2),
        (b"\r\n\xff\xd8", 4),  # more may follow
        (bytes(64) + START, 64),
        (bytes(65) + START, None),
        (bytes(1000), None),
        (b"a" + START, None),
        (b"\x89PNG\r\n\x1a\n", None),
    ],
)
def test_padding_before_a_jpeg_is_counted(start, padding):
    assert jpeg.padding(start) == padding


@pytest.mark.parametrize("padding", [bytes(65), b"junk", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_other_bytes_before_a_jpeg_are_refused(padding):
    assert refusal(padding + BASELINE).kind == "unsupported"


# Scans


def test_thumbnail_does_not_count_as_scans():
    """A progressive photo of as many pixels as are allowed."""
    limits = ImageLimits(max_pixels=320 * 240, max_jpeg_pixels=2 * 320 * 240)
    whole = quirks(PROGRESSIVE)["a thumbnail in APP2"] + VIDEO
    assert (decoded(whole, limits) == decoded(PROGRESSIVE)).all()
    assert "in 11 scans" in refusal(hostile.progressive(320, 240, 11), limits).reason


HEADER = hostile.progressive(64, 64, 10)
HEADER = HEADER[: HEADER.index(b"\xff\xda")]
SCAN = b"\xff\xda\0\x08\x01\x01\0\0\x3f\0"
FLOODS = {
    "stuffed bytes": (SCAN + b"\xff\0" * 2**20, "scans", 1),
    "restart markers": (SCAN + b"\xff\xd0" * 2**20, "scans", 1),
    "fill bytes": (SCAN + b"\xff" * 2**21, "scans", 1),
    "scans without data": (SCAN * 2**18, "scans", 101),
    "segments": (SCAN + b"\xff\xe0\0\2" * 2**19, "more than 10000 segments", None),
    "markers without a length": (SCAN + b"\xff\1" * 2**20, "more than 10000 segments", None),
    "segments apart": (SCAN + b"\xff\xe0\0\2\0" * 2**19, "more than 10000 segments", None),
}


@pytest.mark.parametrize(("flood", "says", "scans"), FLOODS.values(), ids=FLOODS)
def test_flood_of_markers_takes_no_loop_over_its_bytes(monkeypatch, flood, says, scans):
    """Its pieces are searched by numpy, in a number that the length bounds."""
    pieces = []
    frombuffer = np.frombuffer

    def counted(content, kind, count, at):
        pieces.append(count)
        return frombuffer(content, kind, count, at)

    monkeypatch.setattr(np, "frombuffer", counted)
    if scans is None:
        with pytest.raises(InvalidImage, match=says):
            jpeg.read_layout(HEADER + flood)
    else:
        assert jpeg.read_layout(HEADER + flood).scans == scans
    assert sum(pieces) <= 2 * len(flood) + jpeg.MAX_SEGMENTS * jpeg.FIRST_PIECE_BYTES
    assert len(pieces) <= jpeg.MAX_SEGMENTS + 100


# Large photos


LARGE_PHOTO = photo_like(1200, 900)
LARGE = {
    "baseline": encode(LARGE_PHOTO, "JPEG", quality=90),
    "progressive": encode(LARGE_PHOTO, "JPEG", progressive=True),
    "4:4:4": encode(LARGE_PHOTO, "JPEG", subsampling=0),
    "grey": encode(LARGE_PHOTO.convert("L"), "JPEG"),
    "cmyk": encode(LARGE_PHOTO.convert("CMYK"), "JPEG"),
    "no end": encode(LARGE_PHOTO, "JPEG")[:-2],
}
SCALED = ImageLimits(max_pixels=300_000, max_jpeg_pixels=2_200_000, exact_jpeg_pixels=100_000)


@pytest.mark.parametrize("kind", LARGE)
def test_large_jpeg_is_decoded_scaled_and_looks_the_same(kind):
    exact, scaled = decoded(LARGE[kind]).astype(int), decoded(LARGE[kind], SCALED).astype(int)
    assert np.abs(exact - scaled).mean() <= 2
    assert (exact != scaled).any()  # else nothing was scaled


@pytest.mark.parametrize("photo", PHOTOS, ids=lambda path: path.name)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_scaled_photo_is_upright(photo, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(Image.open(photo), "JPEG", exif=exif, quality=95)
    exact = decoded(encoded).astype(int)
    scaled = decoded(encoded, replace(LIMITS, exact_jpeg_pixels=1)).astype(int)
    assert np.abs(exact - scaled).mean() <= 3


@pytest.mark.parametrize("name", KINDS)
def test_jpeg_under_the_threshold_has_the_same_pixels(name):
    limits = replace(LIMITS, exact_jpeg_pixels=320 * 240)
    assert (decoded(KINDS[name], limits) == decoded(KINDS[name])).all()


def test_scaled_jpeg_keeps_three_times_the_resized_sides():
    assert [jpeg.fraction((side, 2 * side), (32, 64)) for side in (191, 192, 383, 384, 768)] == [
        *(1, 2, 2, 4, 8)
    ]
    assert jpeg.fraction((512, 64), (32, 32)) == 1  # squashed: the other side counts, too
    assert jpeg.fraction((40_000, 40_000), (32, 32)) == 8


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        (replace(SCALED, max_jpeg_pixels=1_079_999), "max_jpeg_pixels\\) is 1079999"),
        (replace(SCALED, max_pixels=16_000), "16950 once decoded at 1/8"),
        (replace(SCALED, exact_jpeg_pixels=2_000_000), "max_image_pixels\\) is 300000"),
    ],
)
def test_pixels_of_a_jpeg_are_limited_declared_and_decoded(limits, says):
    with pytest.raises(InvalidImage, match=says) as refused:
        decoded(LARGE["baseline"], limits)
    assert refused.value.kind == "too_many_pixels"
    with pytest.raises(InvalidImage, match=says):
        check_header(LARGE["baseline"], SQUARE, limits)


def test_coefficients_of_a_progressive_jpeg_count_as_memory():
    """libjpeg keeps them for the whole image, however small it is decoded."""
    reserved: list[int] = []

    def reserve(pixels):
        reserved.append(pixels)
        raise BudgetFull(pixels)

    limits = replace(SCALED, max_pixels=1_000_000)
    for kind in ("baseline", "progressive", "4:4:4"):
        with pytest.raises(BudgetFull):
            decode(LARGE[kind], SQUARE, limits, reserve)
    plain, progressive, full = reserved
    assert max(plain, full) < 50_000
    assert progressive - plain == pytest.approx(1200 * 900 * 1.5 * 2 / 22, rel=0.1)
    tight = replace(SCALED, max_pixels=progressive - 1, exact_jpeg_pixels=1)
    with pytest.raises(InvalidImage, match=r"several scans, which takes 3 MiB") as refused:
        decoded(LARGE["progressive"], tight)
    assert refused.value.kind == "too_complex"


@pytest.mark.parametrize(("asked", "pixels"), [(None, 5_000_000), (3_000_000, 3_000_000)])
def test_jpegs_may_declare_five_times_the_pixels_by_default(asked, pixels):
    settings = Settings(variants=["x=random:0"], max_image_pixels=1_000_000, max_jpeg_pixels=asked)
    assert ImageLimits.of(settings).max_jpeg_pixels == pixels
