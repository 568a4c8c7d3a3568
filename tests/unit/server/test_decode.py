from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, TiffImagePlugin
from torchvision.models import ResNet50_Weights, resnet50
from torchvision.transforms.functional import center_crop, pil_to_tensor

from resnet50.v1 import image_pb2
from resnet50_server.api.image_source import parse_image
from resnet50_server.errors import InvalidImage
from resnet50_server.images.decode import decode, pixels_without_decoding
from resnet50_server.images.decode_guard import BudgetedReader, check_tiff_tags
from resnet50_server.images.limits import ImageLimits
from resnet50_server.images.source import PixelFormat, RawImage
from resnet50_server.images.transform import Transform
from tests.support import hostile
from tests.support.pictures import PHOTOS, encode, photo_like, picture

LIMITS = ImageLimits()
SQUARE = Transform(resize=32, crop=32, mean=(0, 0, 0), std=(1, 1, 1))
SIZES = [(640, 480), (480, 640), (500, 375), (233, 231), (224, 224), (100, 300), (1500, 301)]


def decoded(encoded: bytes, transform: Transform = SQUARE) -> np.ndarray:
    source = parse_image(image_pb2.Image(encoded=encoded), LIMITS)
    return decode(source, transform, LIMITS).transpose(2, 0, 1)


def reference(encoded: bytes, weights: ResNet50_Weights) -> torch.Tensor:
    """Return torchvision's preprocessing of the file: float32 [3, crop, crop], normalised."""
    return weights.transforms()(Image.open(io.BytesIO(encoded)).convert("RGB"))


def levels(normal: torch.Tensor, transform: Transform) -> torch.Tensor:
    """Undo the normalisation: pixels from 0 to 255."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (transform.mean, transform.std))
    return (normal * std + mean) * 255


@pytest.fixture(scope="module")
def backbone() -> torch.nn.Module:
    """A ResNet50 with random weights: what it makes of two pictures still tells them apart."""
    torch.manual_seed(0)
    network = resnet50(weights=None).eval()
    network.fc = torch.nn.Identity()
    return network


def normalised(pixels: np.ndarray, transform: Transform) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (transform.mean, transform.std))
    return (torch.from_numpy(pixels).float() / 255 - mean) / std


@pytest.mark.parametrize("weights", list(ResNet50_Weights), ids=lambda weights: weights.name)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_pixels_are_within_one_level_of_torchvision(weights, size, format):
    transform = Transform.of(weights.transforms())
    encoded = encode(photo_like(*size), format)
    expected = levels(reference(encoded, weights), transform)
    difference = (expected - torch.from_numpy(decoded(encoded, transform))).abs()
    assert difference.max() <= 1.001
    assert difference.mean() <= 0.05


@pytest.mark.parametrize("weights", list(ResNet50_Weights), ids=lambda weights: weights.name)
@pytest.mark.parametrize("photo", PHOTOS, ids=lambda path: path.name)
def test_photo_is_within_one_level_and_its_embedding_agrees(weights, photo, backbone):
    transform = Transform.of(weights.transforms())
    encoded = photo.read_bytes()
    pixels, theirs = decoded(encoded, transform), reference(encoded, weights)
    assert (levels(theirs, transform) - torch.from_numpy(pixels)).abs().max() <= 1.001
    with torch.inference_mode():
        ours = backbone(normalised(pixels, transform)[None])
        cosine = torch.cosine_similarity(ours, backbone(theirs[None]))
    assert cosine.item() >= 0.999


@pytest.mark.parametrize("wrong", [{"resize": 256}, {"crop": 232}], ids=str)
def test_parity_check_sees_a_wrong_geometry(wrong):
    """The two tests above are worth something only if they can fail."""
    weights = ResNet50_Weights.IMAGENET1K_V2
    transform = replace(Transform.of(weights.transforms()), **wrong)
    encoded = PHOTOS[0].read_bytes()
    theirs = levels(reference(encoded, weights), transform)[:, :224, :224]
    ours = torch.from_numpy(decoded(encoded, transform))[:, :224, :224]
    assert (theirs - ours).abs().max() > 50


def test_variants_have_torchvisions_sizes():
    sizes = {
        weights.name: Transform.of(weights.transforms()).resize for weights in ResNet50_Weights
    }
    assert sizes == {"IMAGENET1K_V1": 256, "IMAGENET1K_V2": 232}


@pytest.mark.parametrize(
    ("format", "mode", "options"),
    [
        ("PNG", "RGB", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "L", {}),
        ("PNG", "LA", {}),
        ("PNG", "P", {}),
        ("PNG", "1", {}),
        ("WEBP", "RGB", {"lossless": True}),
        ("BMP", "RGB", {}),
        ("GIF", "P", {}),
        ("TIFF", "RGB", {}),
        ("TIFF", "CMYK", {}),
        ("JPEG", "RGB", {"quality": 95}),
        ("JPEG", "L", {"quality": 95}),
        ("JPEG", "CMYK", {"quality": 95}),
    ],
)
def test_every_format_and_mode_gives_what_pillow_shows(format, mode, options):
    encoded = encode(picture(32, 32, mode), format, **options)
    expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")).transpose(2, 0, 1)
    assert np.abs(decoded(encoded).astype(int) - expected).max() <= 1


def test_sixteen_bit_greyscale_is_scaled_not_clipped():
    values = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    shown = decoded(encode(Image.fromarray(values)))
    assert np.abs(shown[0].astype(int) - values / 257).max() <= 1
    assert (shown[0] == shown[1]).all()


def test_dark_sixteen_bit_greyscale_stays_dark():
    values = np.full((32, 32), 200, dtype=np.uint16)
    assert decoded(encode(Image.fromarray(values))).max() <= 1


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_pixels_without_a_known_white_are_refused(kind):
    deep = encode(Image.fromarray(np.full((32, 32), 1000, dtype=kind)), "TIFF")
    with pytest.raises(InvalidImage, match=r"32-bit pixels.*send 8 or 16 bits"):
        decoded(deep)


def test_sixteen_bit_tiff_is_scaled_like_png():
    values = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    shown = decoded(encode(Image.fromarray(values), "TIFF"))
    assert np.abs(shown[0].astype(int) - values / 257).max() <= 1


def test_palette_with_transparency_is_read_without_a_warning():
    image = picture(32, 32).quantize(16)
    encoded = encode(image, "PNG", transparency=b"\x00\x80" + b"\xff" * 14)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decoded(encoded).shape == (3, 32, 32)


@pytest.mark.parametrize("format", ["GIF", "TIFF", "WEBP"])
def test_first_frame_is_taken(format):
    first, second = Image.new("RGB", (32, 32), (255, 0, 0)), Image.new("RGB", (32, 32), (0, 0, 255))
    encoded = encode(first, format, save_all=True, append_images=[second], quality=100)
    red, _, blue = decoded(encoded).reshape(3, -1).mean(axis=1)
    assert red > 200
    assert blue < 50


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_exif_orientation_is_applied(format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = picture(32, 32)
    encoded = encode(image, format, exif=exif, **({"quality": 100} if format == "JPEG" else {}))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
    expected = np.asarray(upright.convert("RGB")).transpose(2, 0, 1)
    assert np.abs(decoded(encoded).astype(int) - expected).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(200, 1), (1, 200), (1, 1)])
def test_exif_orientation_is_applied_to_a_single_row_or_column(size, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    encoded = encode(picture(*size), exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))).convert("RGB")
    assert np.array_equal(decoded(encoded), decoded(encode(upright)))


ORIENTED = {
    "text for a number": hostile.exif((0x0112, 2, 3, int.from_bytes(b"up\0\0", "little"))),
    "no number": hostile.exif((0x0112, 3, 0, 0)),
    "cut off": b"II*\0",
    "no EXIF": b"HI*\0\x08\0\0\0\0\0",
    "empty": b"",
}


@pytest.mark.parametrize("exif", ORIENTED.values(), ids=ORIENTED)
def test_unreadable_exif_leaves_the_stored_orientation(exif):
    """As every viewer shows it: its pixels are whole."""
    jpeg, png = encode(picture(32, 32), "JPEG"), encode(picture(32, 32))
    in_jpeg = jpeg[:2] + hostile.segment(0xE1, b"Exif\0\0" + exif) + jpeg[2:]
    in_png = png[:33] + hostile.chunk(b"eXIf", exif) + png[33:]
    text = b"Raw profile type exif\0\nexif\n%d\n%s" % (len(exif), exif.hex().encode())
    in_text = png[:33] + hostile.chunk(b"tEXt", text) + png[33:]
    for oriented, plain in ((in_jpeg, jpeg), (in_png, png), (in_text, png)):
        assert (decoded(oriented) == decoded(plain)).all()


def test_image_smaller_than_the_crop_is_padded_like_torchvision():
    transform = Transform(resize=20, crop=32, mean=(0, 0, 0), std=(1, 1, 1))
    image = picture(20, 20)
    expected = center_crop(pil_to_tensor(image), [32, 32]).numpy()
    assert (decoded(encode(image), transform) == expected).all()


JPEG = encode(photo_like(320, 240), "JPEG")
BROKEN = {
    "text": (b"hello, this is no image at all", "JPEG, PNG, WebP"),
    "one byte": (b"\xff", "JPEG, PNG, WebP"),
    "jpeg header only": (JPEG[:20], "send the whole file"),
    "half a jpeg": (JPEG[: len(JPEG) // 2], "send the whole file"),
    "half a png": (encode(picture())[:400], "send the whole file"),
    "half a webp": (encode(photo_like(64, 64), "WEBP")[:200], "send the whole file"),
    "half a gif": (encode(photo_like(64, 64), "GIF")[:900], "send the whole file"),
    "half a cmyk jpeg": (encode(picture(64, 64, "CMYK"), "JPEG")[:900], "send the whole file"),
    "all but the end of a jpeg": (JPEG[:-200], "send the whole file"),
    "pdf": (b"%PDF-1.4\n" + bytes(100), "JPEG, PNG, WebP"),
}


@pytest.mark.parametrize(("encoded", "text"), BROKEN.values(), ids=BROKEN)
def test_broken_file_is_refused_with_the_field(encoded, text):
    with pytest.raises(InvalidImage, match=text) as refused:
        decoded(encoded)
    assert refused.value.field == "image.encoded"


KINDS = {
    "empty": (lambda: parse_image(image_pb2.Image(), LIMITS), "empty"),
    "no bytes": (lambda: parse_image(image_pb2.Image(encoded=b""), LIMITS), "empty"),
    "too long": (
        lambda: parse_image(image_pb2.Image(encoded=bytes(9)), ImageLimits(max_bytes=8)),
        "too_many_bytes",
    ),
    "text": (lambda: decoded(b"hello, this is no image at all"), "unsupported"),
    "half a png": (lambda: decoded(BROKEN["half a png"][0]), "truncated"),
    "half a jpeg": (lambda: decoded(JPEG[: len(JPEG) // 2]), "truncated"),
    "huge": (lambda: decoded(hostile.png(60_000, 60_000)), "too_many_pixels"),
    "enormous once resized": (
        lambda: decoded(encode(picture(30, 10)), replace(SQUARE, resize=8192)),
        "too_many_pixels",
    ),
    "many scans": (lambda: decoded(hostile.progressive(64, 64, 101)), "too_complex"),
    "scans of one component": (
        lambda: decoded(hostile.scans_of_one_component(101)),
        "too_complex",
    ),
    "many pieces": (lambda: decoded(hostile.png_of_chunks(20_000)), "too_complex"),
    "32-bit": (
        lambda: decoded(encode(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF")),
        "unsupported",
    ),
    "slow": (lambda: decode(JPEG, SQUARE, ImageLimits(timeout_s=1e-9)), "timeout"),
    "raw": (lambda: parse_image(image_pb2.Image(raw=image_pb2.RawImage()), LIMITS), "bad_raw"),
    "huge raw": (
        lambda: parse_image(
            image_pb2.Image(raw=image_pb2.RawImage(width=60_000, height=60_000, pixel_format=1)),
            LIMITS,
        ),
        "too_many_pixels",
    ),
}


@pytest.mark.parametrize(("read", "kind"), KINDS.values(), ids=KINDS)
def test_refusal_says_in_one_word_why(read, kind):
    with pytest.raises(InvalidImage) as refused:
        read()
    assert refused.value.kind == kind


def test_large_rle_bmp_is_refused():
    runs = b"\xff\1" * 8 + b"\x08\1\0\0"
    assert decoded(hostile.bmp(2048, 8, runs * 8, 1)).shape == (3, 32, 32)
    with pytest.raises(InvalidImage, match="run-length BMP of 4196352 pixels") as refused:
        decoded(hostile.bmp(2048, 2049, runs * 2049, 1))
    assert refused.value.kind == "too_complex"


def test_reads_of_an_rle_bmp_are_limited(monkeypatch):
    monkeypatch.setattr("resnet50_server.images.decode_guard.MAX_RUN_READS", 100)
    file = BudgetedReader(bytes(1000), 60.0)
    file.grant_pixel_reads("BMP")
    for _ in range(100):
        file.read(1)
    with pytest.raises(InvalidImage, match="too many small pieces"):
        file.read(1)


def test_tags_that_share_their_bytes_are_refused_by_any_pillow():
    """Newer ones skip such tags; older ones copy the bytes for each."""
    with pytest.raises(InvalidImage, match=r"tags .* save it anew without metadata"):
        check_tiff_tags(hostile.exif(*hostile.tags_that_share(100, 1000)))
    check_tiff_tags(hostile.exif(*hostile.tags_that_share(2, 20), (282, 5, 1, 8)))


@pytest.mark.parametrize("at", [33, -12], ids=["before the pixels", "behind the pixels"])
def test_exif_of_a_png_is_checked_wherever_it_is(at):
    exif = hostile.exif((273, 4, 2**19 + 1, 8), padding=4 * 2**19)
    content = encode(picture(32, 32))
    with pytest.raises(InvalidImage, match="more numbers than 524288"):
        decoded(content[:at] + hostile.chunk(b"eXIf", exif) + content[at:])


def test_numbers_of_tags_are_limited():
    content = hostile.exif((273, 4, 2**19 + 1, 8), padding=4 * 2**19)
    with pytest.raises(InvalidImage, match="more numbers than 524288"):
        check_tiff_tags(content)


def test_declared_pixels_are_limited_before_decoding():
    # A PNG header that declares 60,000 x 60,000 pixels, and nothing behind it.
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", len(header))
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + struct.pack(">I", 0)
        + b"IDAT"
        + struct.pack(">I", zlib.crc32(b"IDAT"))
    )
    with pytest.raises(InvalidImage, match=r"max_image_pixels\) is 50000000"):
        decoded(bomb)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_image_of_exactly_the_pixel_limit_is_decoded(file_format):
    content = encode(picture(40, 40), file_format)
    limits = ImageLimits(max_pixels=1600, max_jpeg_pixels=1600)
    assert decode(content, SQUARE, limits).shape == (32, 32, 3)
    lower = ImageLimits(max_pixels=1599, max_jpeg_pixels=1599)
    with pytest.raises(InvalidImage, match="1599"):
        decode(content, SQUARE, lower)


@pytest.mark.parametrize("pixel_format", [PixelFormat.RGB, PixelFormat.GRAY])
def test_memory_is_reserved_for_raw_pixels_too(pixel_format):
    reserved = []

    @contextlib.contextmanager
    def reserve(pixels: int):
        reserved.append(pixels)
        yield

    content = bytes(64 * 48 * (3 if pixel_format == PixelFormat.RGB else 1))
    decode(RawImage(64, 48, pixel_format, 0, content), SQUARE, LIMITS, reserve)
    assert reserved == [64 * 48]


def test_encoded_length_is_limited():
    with pytest.raises(InvalidImage, match="max_image_bytes"):
        parse_image(image_pb2.Image(encoded=bytes(101)), ImageLimits(max_bytes=100))


def test_empty_image_names_its_sources():
    with pytest.raises(InvalidImage, match=r"image\.encoded, image\.raw or image\.preprocessed"):
        parse_image(image_pb2.Image(), LIMITS)


def test_jpeg_with_too_many_scans_is_refused_undecoded():
    assert decoded(hostile.progressive(64, 64, 20)).shape == (3, 32, 32)
    with pytest.raises(InvalidImage, match="more than 100 scans"):
        decoded(hostile.progressive(64, 64, 101))


def test_many_scans_of_many_pixels_are_refused():
    content = hostile.progressive(64, 64, 20)
    limits = ImageLimits(max_pixels=64 * 64, max_jpeg_pixels=64 * 64)
    with pytest.raises(InvalidImage, match="in 20 scans"):
        decode(content, SQUARE, limits)


def test_tiff_with_tiles_far_larger_than_itself_is_refused():
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in ((256, 10), (257, 10), (258, 8), (259, 1), (262, 1), (277, 1)):
        tags[tag] = value
    tags[322], tags[323], tags[324], tags[325] = 60_000, 30_000, 8, 100
    out = io.BytesIO()
    out.write(b"II*\0\x08\0\0\0")
    tags.save(out)
    with pytest.raises(InvalidImage, match="with tiles of 1800000000 pixels"):
        decoded(out.getvalue())


@pytest.mark.parametrize("compression", ["tiff_lzw", "raw"])
def test_cut_off_tiff_is_called_that(compression):
    whole = encode(photo_like(64, 64), "TIFF", compression=compression)
    with pytest.raises(InvalidImage, match="truncated or broken"):
        decoded(whole[: len(whole) // 2])


def test_missing_memory_is_not_the_images_fault(monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr("resnet50_server.images.decode.decode_with_pillow", fail)
    with pytest.raises(MemoryError):
        decoded(encode(picture()))


@pytest.mark.parametrize(
    ("format", "width", "height", "ready"),
    [
        ("RGB", 48, 32, True),
        ("GRAY", 32, 32, True),
        ("BGR", 32, 32, False),
        ("NV12", 32, 32, False),
        ("RGB", 64, 64, False),
        ("RGB", 32, 31, False),
    ],
)
def test_only_pixels_that_are_just_cropped_need_no_decoding(format, width, height, ready):
    pixel_format = image_pb2.PixelFormat.Value(f"PIXEL_FORMAT_{format}")
    raw = RawImage(width, height, pixel_format, 0, bytes(3 * width * height))
    assert (pixels_without_decoding(raw, SQUARE) is not None) is ready


def test_files_always_need_decoding():
    assert pixels_without_decoding(encode(picture(32, 32)), SQUARE) is None


@pytest.mark.parametrize("stride", [0, 120], ids=["packed", "padded"])
@pytest.mark.parametrize("side", [32, 36])
def test_cropped_rgb_is_a_view_of_the_message(side, stride):
    transform = Transform(resize=side, crop=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    row = stride or 3 * side
    content = np.random.default_rng(0).integers(0, 256, (side, row), dtype=np.uint8)
    sent = content.tobytes()[: (side - 1) * row + 3 * side]  # the last row has no padding
    raw = RawImage(side, side, PixelFormat.RGB, stride, sent)
    found = pixels_without_decoding(raw, transform)
    edge = (side - 32) // 2
    pixels = content[:, : 3 * side].reshape(side, side, 3)
    assert (found == pixels[edge : edge + 32, edge : edge + 32]).all()
    assert np.shares_memory(found, np.frombuffer(raw.pixels, dtype=np.uint8))
    assert not found.flags.writeable


def test_cropped_grey_is_no_larger_than_the_input():
    transform = Transform(resize=32, crop=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    content = np.random.default_rng(0).integers(0, 256, (32, 512), dtype=np.uint8)
    found = pixels_without_decoding(
        RawImage(512, 32, PixelFormat.GRAY, 0, content.tobytes()), transform
    )
    assert (found == content[:, 240:272, None]).all()
    assert found.base is None


def test_small_pixels_without_decoding_are_padded():
    transform = Transform(resize=24, crop=32, mean=(0.5,) * 3, std=(0.5,) * 3, fill=(1, 2, 3))
    raw = RawImage(24, 24, PixelFormat.RGB, 0, bytes(3 * 24 * 24))
    found = pixels_without_decoding(raw, transform)
    assert found.shape == (32, 32, 3)
    assert (found[0] == (1, 2, 3)).all()
    assert not found[4:28, 4:28].any()
