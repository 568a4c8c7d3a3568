"""HEIC and AVIF: what is decoded, and what their guards refuse before a decoder sees the file."""

from __future__ import annotations

import io
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pillow_heif
import pytest
from PIL import AvifImagePlugin, Image, ImageOps

from resnet50_server.errors import InvalidImage
from resnet50_server.images import heif
from resnet50_server.images.decode import decode
from resnet50_server.images.formats import check_header
from resnet50_server.images.iso_media import Item
from resnet50_server.images.limits import ImageLimits
from resnet50_server.images.transform import Transform
from tests.support import hostile_heif as attacks
from tests.support import pictures
from tests.support.pictures import encode, photo_like

SIDE = 64
SQUARE = Transform(resize=SIDE, crop=SIDE, mean=(0, 0, 0), std=(1, 1, 1))
LIMITS = ImageLimits(max_pixels=2_000_000)
PHOTO = photo_like(SIDE, SIDE)


def shown(encoded: bytes, color=None, limits: ImageLimits = LIMITS) -> np.ndarray:
    return decode(encoded, replace(SQUARE, background=color), limits)


def avif(image: Image.Image = PHOTO, **options) -> bytes:
    return encode(image, "AVIF", quality=95, **options)


def heic(image: Image.Image = PHOTO, **options) -> bytes:
    return pictures.heic(image, quality=95, **options)


ENCODERS = {"AVIF": avif, "HEIC": heic}


def distance(found: np.ndarray, wanted: Image.Image) -> float:
    return float(np.abs(found.astype(int) - np.asarray(wanted.convert("RGB"), dtype=int)).mean())


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
@pytest.mark.parametrize("name", ENCODERS)
def test_picture_is_decoded(name, mode):
    image = PHOTO.convert(mode)
    found = shown(ENCODERS[name](image))
    assert found.shape == (SIDE, SIDE, 3)
    assert distance(found, image) < 6


def test_avif_is_what_pillow_shows():
    encoded = avif()
    assert np.array_equal(shown(encoded), np.asarray(Image.open(io.BytesIO(encoded))))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_avif_is_applied_once(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = avif(exif=exif)
    turned = Image.new("RGB", (SIDE, SIDE))
    turned.paste(PHOTO)
    turned.getexif()[0x0112] = orientation
    assert distance(shown(encoded), ImageOps.exif_transpose(turned)) < 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_heic_is_applied_once(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = PHOTO.copy()
    turned.getexif()[0x0112] = orientation
    encoded = heic(exif=exif.tobytes())
    assert distance(shown(encoded), ImageOps.exif_transpose(turned)) < 6


@pytest.mark.parametrize("bits", [10, 12])
def test_deep_heic_is_decoded_to_8_bits(bits, monkeypatch):
    monkeypatch.setattr(pillow_heif.options, "SAVE_HDR_TO_12_BIT", bits == 12)
    deep = np.asarray(PHOTO, dtype=np.uint16) * 257
    buffer = io.BytesIO()
    pillow_heif.from_bytes("RGB;16", PHOTO.size, deep.tobytes()).save(buffer, quality=95)
    encoded = buffer.getvalue()
    assert pillow_heif.open_heif(encoded, convert_hdr_to_8bit=False).info["bit_depth"] == bits
    assert distance(shown(encoded), PHOTO) < 6


def av1_video(bits: int) -> bytes:
    """Return a key frame of a video encoder, whose header is not that of a still picture."""
    frame = av.VideoFrame.from_image(PHOTO).reformat(
        format="yuv420p10le" if bits == 10 else "yuv420p",
        dst_colorspace="ITU601",
        dst_color_range="JPEG",
    )
    encoder = av.CodecContext.create("libsvtav1", "w")
    encoder.width, encoder.height = PHOTO.size
    encoder.pix_fmt, encoder.time_base = frame.format.name, Fraction(1, 25)
    encoder.framerate = Fraction(25)
    encoder.options = {"preset": "12", "crf": "10", "svtav1-params": "logical-processors=1"}
    return b"".join(bytes(packet) for one in (frame, None) for packet in encoder.encode(one))


@pytest.mark.parametrize("bits", [8, 10])
def test_avif_of_a_video_frame_is_decoded_to_8_bits(bits):
    configuration = attacks.box(b"av1C", bytes([0x81, 0, 0x4C if bits == 10 else 0x0C, 0]))
    colours = attacks.box(b"colr", b"nclx", bytes([0, 2, 0, 2, 0, 6, 0x80]))
    depth = attacks.full(b"pixi", 0, bytes([3, bits, bits, bits]))
    item = attacks.Item(b"av01", av1_video(bits), PHOTO.size, configuration, more=(colours, depth))
    assert distance(shown(attacks.heif([item], b"mif1", b"miaf")), PHOTO) < 6


@pytest.mark.parametrize("name", ENCODERS)
def test_alpha_is_composited(name):
    clear = PHOTO.copy()
    holes = Image.new("L", PHOTO.size, 255)
    holes.paste(0, (0, SIDE // 2, SIDE, SIDE))
    clear.putalpha(holes)
    found = shown(ENCODERS[name](clear), (250, 10, 20))
    assert np.abs(found[SIDE // 2 + 8 :].astype(int) - (250, 10, 20)).max() <= 3
    assert distance(found[: SIDE // 2 - 8], PHOTO.crop((0, 0, SIDE, SIDE // 2 - 8))) < 6


def test_primary_picture_of_an_animation_is_taken():
    frames = [PHOTO, Image.new("RGB", PHOTO.size, (0, 0, 255))]
    encoded = encode(frames[0], "AVIF", save_all=True, append_images=frames[1:], quality=95)
    assert encoded[8:12] == b"avis"
    assert distance(shown(encoded), PHOTO) < 6


def test_grid_of_tiles_is_decoded():
    wide = photo_like(1200, 900)
    encoded = heic(wide)
    found = decode(encoded, replace(SQUARE, resize=900, crop=900), LIMITS)
    assert distance(found, wide.crop((150, 0, 1050, 900))) < 6


def test_general_brand_is_decoded():
    encoded = heic()
    brands = encoded[16 : int.from_bytes(encoded[:4], "big")]
    assert b"heic" in brands or encoded[8:12] == b"heic"
    general = encoded[:8] + b"mif1" + encoded[12:]
    if b"heic" in brands:
        assert np.array_equal(shown(general), shown(encoded))


@pytest.mark.parametrize("name", ENCODERS)
def test_cut_off_file_is_refused(name):
    whole = ENCODERS[name](photo_like(200, 150))
    for length in range(12, len(whole) - 20, len(whole) // 9):
        with pytest.raises(InvalidImage) as refused:
            shown(whole[:length])
        assert refused.value.kind in ("truncated", "unreadable")


SMALL, HUGE = (64, 64), (16384, 16384)
TOO_MANY, CODED = "max_image_pixels", "coded as 268435456 pixels"
HOSTILE = {
    "avif that declares too much": (attacks.avif((60_000, 60_000), SMALL), TOO_MANY),
    "heic that declares too much": (attacks.heic((60_000, 60_000), SMALL), TOO_MANY),
    "avif of a larger picture": (attacks.avif(SMALL, HUGE), CODED),
    "avif of a larger frame": (attacks.avif(SMALL, SMALL, own_size=True), "4294967296 pixels"),
    "heic of a larger picture": (attacks.heic(SMALL, HUGE), CODED),
    "avif of many frames": (attacks.avif((1000, 1000), (1000, 1000), 9), "coded as 9000000"),
    "heic of many pictures": (attacks.heic((1000, 1000), (1000, 1000), 9), "coded as 9000000"),
    "grid of one tile many times": (
        attacks.avif_grid((1000, 1000), (1000, 1000), (1000, 1000), 9),
        "coded as 9000000",
    ),
    "grid that is larger than declared": (
        attacks.avif_grid(SMALL, (16384, 16384), SMALL, 1),
        CODED,
    ),
    "grid of another flag": (
        attacks.heif(
            [
                attacks.Item(
                    b"grid",
                    attacks.grid_content(HUGE, 1, 1, flags=2),
                    SMALL,
                    references=[(b"dimg", [2])],
                ),
                attacks.Item(b"av01", attacks.av1(SMALL), SMALL),
            ],
            b"mif1",
        ),
        CODED,
    ),
    "alpha that is larger": (
        attacks.heif(
            [attacks.Item(b"av01", attacks.av1(SMALL), SMALL), attacks.alpha_of(1, HUGE)], b"mif1"
        ),
        "coded as 268439552",
    ),
    "alpha of a tile that is larger": (
        attacks.heif(
            [
                attacks.Item(
                    b"grid",
                    attacks.grid_content(SMALL, 1, 1),
                    SMALL,
                    references=[(b"dimg", [2])],
                ),
                attacks.Item(b"av01", attacks.av1(SMALL), SMALL),
                attacks.alpha_of(2, HUGE),
            ],
            b"mif1",
        ),
        "coded as 268439552",
    ),
    "grid of grids": (
        attacks.heif(
            [
                attacks.Item(
                    b"grid",
                    attacks.grid_content(SMALL, 1, 1),
                    SMALL,
                    references=[(b"dimg", [2])],
                ),
                attacks.Item(
                    b"grid",
                    attacks.grid_content(SMALL, 1, 1),
                    SMALL,
                    references=[(b"dimg", [1])],
                ),
            ],
            b"mif1",
        ),
        "picture of type",
    ),
    "picture of another codec": (
        attacks.heif([attacks.Item(b"unci", bytes(99), SMALL)], b"mif1"),
        "picture of type b'unci'",
    ),
    "jpeg in heif": (
        attacks.heif([attacks.Item(b"jpeg", bytes(99), SMALL)], major=b"heic"),
        "picture of type b'jpeg'",
    ),
    "more items than are read": (
        attacks.heif([attacks.Item(b"av01", b"", SMALL)] * 1001, b"mif1"),
        "more than 1000 pictures",
    ),
    "very many boxes": (
        attacks.box(b"ftyp", b"avif", bytes(4)) + attacks.box(b"free") * 50_000,
        "more than 40000 boxes",
    ),
    "very many units": (
        attacks.heif([attacks.Item(b"av01", attacks.av1(SMALL) + b"\x12\0" * 50_000, SMALL)]),
        "more than 40000 boxes",
    ),
    "exif whose tags share": (attacks.exif_that_shares(SMALL), "tags .* without metadata"),
    "pictures that share": (attacks.pictures_that_share(SMALL, 30), "pictures that say they have"),
    "sequence without a picture": (
        attacks.heif([attacks.Item(b"av01", attacks.av1(SMALL), SMALL)], primary=None),
        "image sequence without a still picture",
    ),
    "no list of pictures": (
        attacks.box(b"ftyp", b"avis", bytes(4), b"avis") + attacks.box(b"moov", bytes(100)),
        "without a list of pictures",
    ),
    "two lists of pictures": (
        attacks.avif(SMALL, SMALL) + attacks.full(b"meta", 0),
        "two lists of pictures",
    ),
    "two lists of properties": (
        attacks.heif(
            [attacks.Item(b"av01", attacks.av1(SMALL), SMALL)],
            beside=attacks.box(b"ipco", attacks.ispe(HUGE)),
        ),
        "two lists of properties",
    ),
    "two sizes": (
        attacks.heif(
            [attacks.Item(b"av01", attacks.av1(SMALL), SMALL, more=(attacks.ispe(HUGE),))]
        ),
        "2 properties of type ispe",
    ),
    "two places": (
        attacks.heif(
            [attacks.Item(b"av01", attacks.av1(SMALL), SMALL)],
            inside=attacks.full(b"iloc", 0, b"\x44\0\0\0"),
        ),
        "two boxes of type iloc",
    ),
    "no width": (attacks.avif((0, 64), SMALL), "declares 0 x 64 pixels"),
    "list of pictures to the end": (
        attacks.box(b"ftyp", b"avif", bytes(4)) + bytes(4) + b"meta" + bytes(99),
        "without a list of pictures",
    ),
    "no size": (attacks.heif([attacks.Item(b"av01", attacks.av1(SMALL))]), "has no size"),
    "no pixels": (attacks.avif(SMALL, SMALL), "truncated or broken"),
}


@pytest.mark.parametrize(("encoded", "text"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_file_is_refused(encoded, text):
    with pytest.raises(InvalidImage, match=text) as refused:
        shown(encoded)
    assert refused.value.field == "image.encoded"


def test_alpha_that_is_named_again_and_again_is_looked_up_once(monkeypatch):
    picture, alpha = attacks.Item(b"av01", attacks.av1(SMALL), SMALL), attacks.alpha_of(1, SMALL)
    alpha.references = [(b"auxl", [1] * 15_000)]
    reads: list[bytes] = []
    read = Item.read_property

    def counted(item: Item, kind: bytes) -> bytes | None:
        reads.append(kind)
        return read(item, kind)

    monkeypatch.setattr(Item, "read_property", counted)
    with pytest.raises(InvalidImage):
        shown(attacks.heif([picture, alpha], b"mif1"))
    assert reads.count(b"auxC") <= 2


def test_size_of_hevc_is_read_behind_a_header_with_zeros():
    parameters = attacks.hvcc(attacks.hevc_parameters((5000, 3000), zeros=True))
    item = attacks.Item(b"hvc1", attacks.slices(1), SMALL, parameters)
    with pytest.raises(InvalidImage, match="coded as 15000000 pixels"):
        shown(attacks.heif([item], major=b"heic"))


@pytest.mark.parametrize("sub_layers", range(7))
def test_size_of_hevc_is_read_behind_any_profile(sub_layers):
    item = attacks.Item(
        b"hvc1",
        attacks.slices(1),
        SMALL,
        attacks.hvcc(attacks.hevc_parameters((5000, 3000), sub_layers)),
    )
    with pytest.raises(InvalidImage, match="coded as 15000000 pixels"):
        shown(attacks.heif([item], major=b"heic"))


def test_size_is_checked_while_a_file_arrives():
    whole = attacks.avif((60_000, 60_000), SMALL)
    with pytest.raises(InvalidImage, match="max_image_pixels"):
        check_header(whole[: whole.index(b"mdat")], SQUARE, LIMITS)
    for name, make in ENCODERS.items():
        encoded = make()
        assert not check_header(encoded[:40], SQUARE, LIMITS), name
        assert check_header(encoded[: len(encoded) // 2], SQUARE, LIMITS) or len(encoded) < 2000
        assert check_header(encoded, SQUARE, LIMITS), name


def test_heic_without_its_decoder_names_the_extra(monkeypatch):
    encoded = heic()
    monkeypatch.setattr(heif, "pillow_heif", None)
    with pytest.raises(
        InvalidImage, match=r"install resnet50-serving with the extra \[heif\]"
    ) as refused:
        shown(encoded)
    assert refused.value.kind == "unsupported"


def test_avif_without_its_decoder_says_so(monkeypatch):
    encoded = avif()
    monkeypatch.setattr(AvifImagePlugin, "SUPPORTED", False)
    with pytest.raises(InvalidImage, match="Pillow was built without AVIF"):
        shown(encoded)


def test_other_users_of_pillow_do_not_get_heic_from_us():
    assert "HEIF" not in Image.OPEN


def test_one_picture_takes_one_thread():
    assert AvifImagePlugin.DEFAULT_MAX_THREADS == 1
    assert pillow_heif.options.DECODE_THREADS == 1
