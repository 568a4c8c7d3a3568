"""Depth and photometric meaning by a file's own tags; docs/reference/formats.md has the table."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from resnet50_server.errors import InvalidImage
from resnet50_server.images.decode import decode
from resnet50_server.images.formats import check_header, open_checked
from resnet50_server.images.limits import ImageLimits
from resnet50_server.images.transform import Transform
from tests.support import hostile
from tests.support.pictures import encode, picture

SIDE = 32
SQUARE = Transform(resize=SIDE, crop=SIDE, mean=(0, 0, 0), std=(1, 1, 1))
WIDE = Transform(resize=(20, 32), crop=None, mean=(0, 0, 0), std=(1, 1, 1))
RAMP = np.linspace(0, 1, SIDE * SIDE).reshape(SIDE, SIDE)


def shown(encoded: bytes) -> np.ndarray:
    return decode(encoded, SQUARE, ImageLimits())


def packed(values: np.ndarray, bits: int, order: str) -> bytes:
    """Return samples as a TIFF stores them: rows of whole bytes, the highest bit first."""
    if bits == 16:
        return values.astype(order + "u2").tobytes()
    width = 16 - bits
    every = np.unpackbits(values.astype(">u2")[..., None].view(np.uint8), axis=-1)[..., width:]
    return np.packbits(every.reshape(values.shape[0], -1), axis=1).tobytes()


COMPRESSIONS = {
    1: bytes,
    8: zlib.compress,
    32773: lambda content: b"".join(
        bytes([len(part) - 1]) + part
        for part in (content[at : at + 128] for at in range(0, len(content), 128))
    ),
}


def tiff(
    values: np.ndarray,
    bits: int,
    photometric: int = 1,
    *,
    order: str = "<",
    declared_bits: int | None = None,
    compression: int = 1,
    sample_format: int | None = None,
    extra: list[tuple[int, int, int, int]] | None = None,
    big: bool = False,
) -> bytes:
    """Return a TIFF of one strip, grey or RGB, whose depth is that of each sample."""
    content = COMPRESSIONS[compression](packed(values.reshape(len(values), -1), bits, order))
    height, width = values.shape[:2]
    tags = [(256, 3, width), (257, 3, height), (258, 3, declared_bits or bits)]
    tags += [(259, 3, compression), (262, 3, photometric), (277, 3, values[0, 0].size)]
    tags += [(278, 3, height), (279, 4, len(content))]
    if sample_format is not None:
        tags.append((339, 3, sample_format))
    tags += [(number, kind, value) for number, kind, _, value in extra or ()]
    count = len(tags) + 1
    at = 16 + 8 + 20 * count + 8 if big else 8 + 2 + 12 * count + 4
    tags.append((273, 4, at))
    mark = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42)
    field = 8 if big else 4
    number = "Q" if big else "I"

    def entry(tag: int, kind: int, value: int) -> bytes:
        form = {3: "H", 4: "I", 8: "h"}[kind]
        return struct.pack(order + "HH" + number, tag, kind, 1) + struct.pack(
            order + form, value
        ).ljust(field, b"\0")

    directory = b"".join(entry(*tag) for tag in sorted(tags))
    if big:
        head = mark + struct.pack(order + "HHQ", 8, 0, 16) + struct.pack(order + "Q", count)
    else:
        head = mark + struct.pack(order + "I", 8) + struct.pack(order + "H", count)
    return head + directory + bytes(field) + content


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("photometric", [0, 1], ids=["0 is white", "0 is black"])
@pytest.mark.parametrize("bits", range(1, 17))
def test_grey_tiff_of_every_depth_goes_from_black_to_white(bits, photometric, order):
    white = 2**bits - 1
    values = np.rint(RAMP * white).astype(np.uint16)
    wanted = values / white * 255
    if photometric == 0:
        wanted = 255 - wanted
    found = shown(tiff(values, bits, photometric, order=order))
    assert np.abs(found - wanted[..., None]).max() <= 0.51


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [4, 10, 12, 14, 15])
def test_rgb_tiff_of_every_depth_goes_from_black_to_white(bits, order):
    white = 2**bits - 1
    values = np.rint(np.stack([RAMP, RAMP.T, 1 - RAMP], axis=-1) * white).astype(np.uint16)
    found = shown(tiff(values, bits, 2, order=order))
    assert np.abs(found - values / white * 255).max() <= 0.51


@pytest.mark.parametrize("width", [1, 7, 8, 9, 31, 33])
@pytest.mark.parametrize("bits", [3, 10, 13])
def test_rows_of_packed_samples_begin_with_a_byte(bits, width):
    white = 2**bits - 1
    values = np.arange(SIDE * width).reshape(SIDE, width).astype(np.uint16) * 7 & white
    assert np.abs(decoded(tiff(values, bits)) - values / white * 255).max() <= 0.51


def decoded(encoded: bytes) -> np.ndarray:
    """Return grey pixels as they are decoded, not resized."""
    with open_checked(encoded, SQUARE, ImageLimits()) as file:
        file.image.load()
        assert file.image.mode == "L"
        return np.asarray(file.image)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("order", ["<", ">"])
def test_packed_samples_may_be_compressed(compression, order, big):
    if big and order == ">":
        return  # not decoded at any depth
    values = np.rint(RAMP * 1023).astype(np.uint16)
    found = decoded(tiff(values, 10, order=order, compression=compression, big=big))
    assert np.abs(found - values / 1023 * 255).max() <= 0.51


def test_packed_samples_may_lie_in_tiles():
    values = np.rint(RAMP * 16383).astype(np.uint16)
    tiles = [
        packed(np.ascontiguousarray(part), 14, "<")
        for half in np.split(values, 2)
        for part in np.split(half, 2, axis=1)
    ]
    tags = [(256, 3, 1, SIDE), (257, 3, 1, SIDE), (258, 3, 1, 14), (259, 3, 1, 1), (262, 3, 1, 1)]
    tags += [(277, 3, 1, 1), (322, 3, 1, SIDE // 2), (323, 3, 1, SIDE // 2)]
    at = 8 + 2 + 12 * 10 + 4
    tags += [(324, 4, 4, at), (325, 4, 4, at + 16)]
    size, pixels = len(tiles[0]), at + 32
    numbers = [*(pixels + size * number for number in range(4)), *[size] * 4]
    encoded = b"II*\0\x08\0\0\0" + hostile.directory(tags) + struct.pack("<8I", *numbers)
    found = decoded(encoded + b"".join(tiles))
    assert np.abs(found - values / 16383 * 255).max() <= 0.51


@pytest.mark.parametrize("orientation", range(1, 9))
def test_packed_samples_are_turned_upright(orientation):
    values = np.rint(RAMP[:20] * 1023).astype(np.uint16)
    levels = np.rint(values / 1023 * 255).astype(np.uint16)
    tag = [(274, 3, 1, orientation)]
    found = decode(tiff(values, 10, extra=tag), WIDE, ImageLimits())
    assert np.array_equal(found, decode(tiff(levels, 8, extra=tag), WIDE, ImageLimits()))


def test_packed_samples_are_limited_by_pixels_rather_than_bytes(monkeypatch):
    values = np.zeros((SIDE, SIDE, 3), dtype=np.uint16)
    limits = ImageLimits(max_pixels=SIDE * SIDE)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", SIDE * SIDE)
    assert decode(tiff(values, 14, 2), SQUARE, limits).shape == (SIDE, SIDE, 3)
    with pytest.raises(InvalidImage, match=rf"declares {SIDE} x {SIDE + 1} "):
        decode(tiff(np.zeros((SIDE + 1, SIDE), np.uint16), 10), SQUARE, limits)


def test_truncated_packed_samples_are_refused_or_black():
    values = np.full((SIDE, SIDE), 1023, dtype=np.uint16)
    cut = tiff(values, 10)[: -SIDE * 10 // 8 * (SIDE // 2)]
    with pytest.raises(InvalidImage, match="truncated"):
        shown(cut)
    found = decode(cut, SQUARE, ImageLimits(accept_truncated=True))
    assert (found[: SIDE // 2 - 1] == 255).all()
    assert (found[SIDE // 2 + 1 :] == 0).all()


@pytest.mark.parametrize("extra", [(317, 3, 1, 2), (284, 3, 1, 2), (338, 3, 1, 1), (339, 3, 1, 2)])
def test_packed_samples_of_other_kinds_are_refused_by_their_name(extra):
    values = np.zeros((SIDE, SIDE), dtype=np.uint16)
    with pytest.raises(InvalidImage, match=r"TIFF of 10-bit .*without a predictor"):
        shown(tiff(values, 10, extra=[extra]))


def test_twelve_bit_white_is_white():
    white = np.full((SIDE, SIDE), 4095, dtype=np.uint16)
    assert (shown(tiff(white, 12)) == 255).all()


@pytest.mark.parametrize("photometric", [0, 1])
def test_sixteen_bit_zero_is_what_the_file_says(photometric):
    zero = np.zeros((SIDE, SIDE), dtype=np.uint16)
    assert (shown(tiff(zero, 16, photometric)) == (255 if photometric == 0 else 0)).all()


@pytest.mark.parametrize("bits", [24, 32])
def test_depth_that_is_not_decoded_is_refused_by_its_name(bits):
    with pytest.raises(InvalidImage, match=rf"TIFF of {bits}-bit unsigned samples") as refused:
        shown(tiff(np.zeros((SIDE, SIDE), np.uint16), 16, declared_bits=bits, photometric=0))
    assert refused.value.kind == "unsupported"


def test_half_floats_are_refused_by_their_name():
    with pytest.raises(InvalidImage, match="16-bit floating-point samples"):
        shown(tiff(np.ones((SIDE, SIDE), np.uint16), 16, sample_format=3))


def test_signed_samples_without_their_range_are_refused():
    with pytest.raises(InvalidImage, match=r"signed 16-bit pixels .* which value is white"):
        shown(tiff(np.ones((SIDE, SIDE), np.uint16), 16, sample_format=2))


def test_signed_samples_are_scaled_by_the_range_that_the_file_gives():
    values = np.rint(RAMP * 2000 - 1000).astype(np.int16)
    extra = [(340, 8, 1, -1000), (341, 8, 1, 1000)]
    found = shown(tiff(values.view(np.uint16), 16, sample_format=2, extra=extra))
    assert np.abs(found - (values[..., None] + 1000) / 2000 * 255).max() <= 0.51


@pytest.mark.parametrize("bits", [8, 16])
def test_big_tiff_is_decoded(bits):
    white = 2**bits - 1
    values = np.rint(RAMP * white).astype(np.uint16)
    found = shown(tiff(values, bits, big=True))
    assert np.abs(found - (values / white * 255)[..., None]).max() <= 0.51


def test_big_tiff_in_the_other_byte_order_is_refused_by_its_name():
    values = np.zeros((SIDE, SIDE), dtype=np.uint16)
    with pytest.raises(InvalidImage, match="is a BigTIFF in big-endian byte order"):
        shown(tiff(values, 8, order=">", big=True))


def test_big_tiff_whose_tags_share_their_bytes_is_refused():
    entries = b"".join(struct.pack("<HHQQ", 1000 + n, 7, 1000, 8) for n in range(100))
    head = b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, 100)
    with pytest.raises(InvalidImage, match=r"tags .* save it anew without metadata"):
        shown(head + entries + bytes(2000))


@pytest.mark.parametrize("extra", [[(50706, 4, 1, 0x0101)], [(254, 4, 1, 1), (330, 4, 1, 8)]])
def test_camera_raw_is_refused_instead_of_its_preview(extra):
    with pytest.raises(InvalidImage, match="camera raw file"):
        shown(tiff(np.ones((SIDE, SIDE), np.uint16), 8, extra=extra))


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bit_colour_is_within_one_level(format, alpha):
    channels = 4 if alpha else 3
    values = np.linspace(0, 65535, SIDE * SIDE * channels).astype(np.uint16)
    values = values.reshape(SIDE, SIDE, channels)
    if alpha:
        values[..., 3] = 65535
    if format == "PNG":
        lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
        encoded = hostile.png(SIDE, SIDE, lines=lines, depth=16, colour=6 if alpha else 2)
    else:
        encoded = colour_tiff(values)
    assert np.abs(shown(encoded) - values[..., :3] / 257).max() <= 1.0


def colour_tiff(values: np.ndarray) -> bytes:
    """Return a 16-bit RGB or RGBA TIFF of one strip."""
    height, width, channels = values.shape
    content = values.astype("<u2").tobytes()
    tags = [(256, 3, 1, width), (257, 3, 1, height), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(277, 3, 1, channels), (278, 3, 1, height), (279, 4, 1, len(content))]
    if channels == 4:
        tags.append((338, 3, 1, 2))
    count = len(tags) + 2
    depths = 8 + 2 + 12 * count + 4
    tags += [(258, 3, channels, depths), (273, 4, 1, depths + 8)]
    directory = hostile.directory(sorted(tags))
    return b"II*\0\x08\0\0\0" + directory + struct.pack("<4H", 16, 16, 16, 16) + content


@pytest.mark.parametrize("significant", [12, 16])
def test_significant_bits_of_a_png_change_nothing(significant):
    """By the standard its samples use all 16 bits, however many the original had."""
    values = np.rint(RAMP * 65535).astype(np.uint16)
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunk = hostile.chunk(b"sBIT", bytes([significant]))
    encoded = hostile.png(SIDE, SIDE, chunk, lines=lines, depth=16, colour=0)
    assert np.abs(shown(encoded) - (values / 257)[..., None]).max() <= 0.51


def test_premultiplied_grey_of_a_tiff_is_decoded():
    image = picture(SIDE, SIDE, "LA")
    content = np.asarray(image.convert("La")).tobytes()
    tags = [(256, 3, 1, SIDE), (257, 3, 1, SIDE), (258, 3, 2, 8 | 8 << 16), (259, 3, 1, 1)]
    tags += [(262, 3, 1, 1), (277, 3, 1, 2), (278, 3, 1, SIDE), (279, 4, 1, len(content))]
    tags += [(338, 3, 1, 1), (273, 4, 1, 8 + 2 + 12 * 10 + 4)]
    encoded = b"II*\0\x08\0\0\0" + hostile.directory(sorted(tags)) + content
    assert np.abs(shown(encoded) - np.asarray(image)[..., :1].astype(int)).max() <= 1


TEXT = {
    "zTXt": hostile.png_text_bomb(b"zTXt", 1, 2 * 2**20),
    "many zTXt": hostile.png_text_bomb(b"zTXt", 64, 2**20),
    "iTXt": hostile.png_text_bomb(b"iTXt", 1, 8 * 2**20),
    "iCCP": hostile.png_text_bomb(b"iCCP", 1, 8 * 2**20),
    "tEXt": hostile.png(
        8, 8, hostile.chunk(b"tEXt", b"k\0" + bytes(5 * 2**20)), lines=bytes(25 * 8)
    ),
}


@pytest.mark.parametrize("encoded", TEXT.values(), ids=TEXT)
def test_long_text_and_profiles_of_a_png_are_skipped(encoded):
    assert np.array_equal(shown(encoded), shown(hostile.png(8, 8, lines=bytes(25 * 8))))


def test_text_behind_the_pixels_of_a_png_is_skipped():
    whole = encode(picture(SIDE, SIDE))
    text = hostile.chunk(b"zTXt", b"k\0\0" + hostile.empty_blocks(2**20))
    assert np.array_equal(shown(whole[:-12] + text + whole[-12:]), shown(whole))


def test_exif_text_of_a_png_still_turns_it():
    exif = b"Exif\0\0" + hostile.exif((0x0112, 3, 1, 6))
    text = b"Raw profile type exif\0\nexif\n%d\n%s" % (len(exif), exif.hex().encode())
    upright = picture(SIDE, SIDE)
    plain = encode(upright)
    turned = plain[:33] + hostile.chunk(b"tEXt", text) + plain[33:]
    assert np.array_equal(shown(turned), np.rot90(np.asarray(upright), -1))


def test_tiff_is_not_refused_before_the_values_of_its_tags_have_arrived():
    values = np.zeros((SIDE, SIDE, 3), dtype=np.uint16)
    for encoded in (colour_tiff(values), encode(picture(SIDE, SIDE), "TIFF")):
        for length in range(12, len(encoded), 7):
            check_header(encoded[:length], SQUARE, ImageLimits())


def test_palette_and_bilevel_images_are_what_pillow_shows():
    for mode in ("1", "P", "L"):
        image = Image.new(mode, (SIDE, SIDE)) if mode != "L" else picture(SIDE, SIDE, "L")
        encoded = encode(image)
        assert np.array_equal(shown(encoded), np.asarray(image.convert("RGB")))
