"""Preprocessing at the caller, held against the server's decoding of the same image."""

from __future__ import annotations

import io
import multiprocessing
import pickle
import struct
import sys
import zlib
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from resnet50.v1 import image_pb2
from resnet50_client import (
    InvalidImageError,
    InvalidRequestError,
    PreprocessedImage,
    RawImage,
    UnimplementedError,
    _variant_codec,
)
from resnet50_client.images import put_image, read_image
from resnet50_client.preprocess import Preprocessor
from resnet50_server.api.image_source import parse_image
from resnet50_server.api.variant_service import describe_transform
from resnet50_server.images.background import parse_background
from resnet50_server.images.decode import decode
from resnet50_server.images.limits import ImageLimits
from resnet50_server.images.transform import LongerSide, Transform
from tests.support.pictures import PHOTOS, encode, heic, photo_like, picture

LIMITS = ImageLimits()
PLAIN: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
DEFAULT = Transform(resize=232, crop=224, **PLAIN)
SIZES = [(500, 375), (375, 500), (224, 224), (97, 211), (64, 48), (1200, 800), (900, 40), (31, 700)]
TRANSFORMS = [
    DEFAULT,
    Transform(resize=256, crop=224, interpolation="bicubic", **PLAIN),
    Transform(resize=64, crop=56, interpolation="lanczos", **PLAIN),
    Transform(resize=64, crop=56, interpolation="hamming", **PLAIN),
    Transform(resize=64, crop=56, interpolation="box", **PLAIN),
    Transform(resize=64, crop=56, interpolation="nearest", **PLAIN),
    Transform(resize=64, crop=56, interpolation="nearest-exact", **PLAIN),
    Transform(resize=64, crop=56, antialias=False, **PLAIN),
    Transform(resize=64, crop=56, antialias=False, interpolation="bicubic", **PLAIN),
    Transform(resize=300, crop=280, antialias=False, interpolation="bicubic", **PLAIN),
    Transform(resize=(64, 48), crop=None, **PLAIN),
    Transform(resize=(48, 128), crop=(32, 100), interpolation="bicubic", **PLAIN),
    Transform(resize=LongerSide(96), crop=96, fill=(9, 114, 255), **PLAIN),
    Transform(resize=64, crop=None, pad_to_square=True, fill=(114, 20, 255), **PLAIN),
    Transform(resize=80, crop=72, pad_to_square=True, antialias=False, **PLAIN),
    Transform(resize=None, crop=(100, 72), **PLAIN),
    Transform(resize=30, crop=(29, 64), channel_order="BGR", input_range=(0, 255), **PLAIN),
]


def variant(transform: Transform, **changes: Any) -> Any:
    """Return as much of a variant as a preprocessor needs, as the server describes it."""
    described = _variant_codec.transform_of(describe_transform(transform))
    return SimpleNamespace(name="own", transform=replace(described, **changes))


def assert_alike(
    found: PreprocessedImage, content: Any, transform: Transform, most: int = 1
) -> None:
    """Require the server's own pixels of a file or a raw image, to within a level."""
    message = image_pb2.Image()
    put_image(message, read_image(content))
    expected = decode(parse_image(message, LIMITS), transform, LIMITS)
    assert found.pixels.shape == expected.shape
    assert found.pixels.dtype == np.uint8
    difference = np.abs(found.pixels.astype(int) - expected)
    assert difference.max() <= most
    assert (difference > 1).mean() <= 0.01
    assert difference.mean() <= 0.4
    # The server takes it as it is.
    put_image(message, read_image(found))
    taken = decode(parse_image(message, LIMITS), transform, LIMITS)
    assert np.array_equal(taken, found.pixels)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
def test_pixels_are_the_servers_to_within_a_level(transform, size):
    content = encode(photo_like(*size), "JPEG", quality=92)
    assert_alike(Preprocessor(variant(transform))(content), content, transform)


@pytest.mark.parametrize("path", PHOTOS, ids=lambda path: path.name)
@pytest.mark.parametrize("transform", TRANSFORMS[:6], ids=str)
def test_photos_are_the_servers_to_within_a_level(transform, path):
    assert_alike(Preprocessor(variant(transform))(path), path, transform)


FILES = {
    "png": encode(photo_like(300, 200)),
    "grey": encode(photo_like(300, 200).convert("L"), "JPEG"),
    "cmyk": encode(photo_like(300, 200).convert("CMYK"), "JPEG"),
    "progressive": encode(photo_like(300, 200), "JPEG", progressive=True),
    "webp": encode(photo_like(300, 200), "WEBP"),
    "bmp": encode(photo_like(300, 200), "BMP"),
    "gif": encode(photo_like(300, 200), "GIF"),
    "tiff": encode(photo_like(300, 200), "TIFF"),
    "avif": encode(photo_like(300, 200), "AVIF"),
    "1 bit": encode(photo_like(300, 200).convert("1")),
    "16 bits": encode(Image.fromarray((np.arange(60_000, dtype=np.uint16)).reshape(200, 300))),
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_every_format_is_read_as_the_server_reads_it(content):
    assert_alike(Preprocessor(variant(DEFAULT))(content), content, DEFAULT)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(picture(300, 200), "JPEG", exif=exif, quality=95)
    transform = Transform(resize=(64, 96), crop=None, **PLAIN)
    assert_alike(Preprocessor(variant(transform))(content), content, transform)


def test_heic_is_read_if_its_opener_is_registered(monkeypatch):
    import pillow_heif

    content = heic(photo_like(300, 200))
    for registry in ("OPEN", "ID", "MIME", "EXTENSION"):
        known = getattr(Image, registry)
        monkeypatch.setattr(Image, registry, known.copy())
    with pytest.raises(InvalidImageError, match="send the file itself"):
        Preprocessor(variant(DEFAULT))(content)
    pillow_heif.register_heif_opener()
    assert_alike(Preprocessor(variant(DEFAULT))(content), content, DEFAULT)


def transparent(mode: str) -> bytes:
    image = photo_like(300, 200).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    if mode == "P":
        image = image.quantize(16)
    return encode(image)


@pytest.mark.parametrize("mode", ["RGBA", "P"])
@pytest.mark.parametrize("background", ["none", "white", "#12a0ff"])
def test_alpha_is_composited_or_dropped_as_by_the_server(mode, background):
    content = transparent(mode)
    on = replace(DEFAULT, background=parse_background(background).color)
    assert_alike(Preprocessor(variant(on))(content), content, on)
    # A background of the caller's own is the same, under the variant's digest.
    own = Preprocessor(variant(DEFAULT), background=background)(content)
    assert np.array_equal(own.pixels, Preprocessor(variant(on))(content).pixels)
    assert own.transform_digest == DEFAULT.digest


@pytest.mark.parametrize(("depth", "mode"), [(2, "L"), (16, "RGB")])
def test_one_transparent_value_of_a_png_is_scaled_to_8_bits(depth, mode):
    white = replace(DEFAULT, background=(255, 255, 255))
    content = png_with_transparency(depth, mode)
    assert_alike(Preprocessor(variant(white))(content), content, white)


def png_with_transparency(depth: int, mode: str) -> bytes:
    """Make a PNG of one colour, which is its transparent one."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    samples = 1 if mode == "L" else 3
    header = struct.pack(">IIBBBBB", 64, 64, depth, 0 if mode == "L" else 2, 0, 0, 0)
    value = 1 if depth < 8 else 0x1234
    row = bytes([0b01010101]) * (64 * depth // 8) if depth == 2 else b"\x12\x34" * 64 * samples
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunk(b"tRNS", struct.pack(">H", value) * samples),
            chunk(b"IDAT", zlib.compress((b"\0" + row) * 64)),
            chunk(b"IEND", b""),
        )
    )


ARRAYS = {
    "rgb": RawImage(np.asarray(photo_like(300, 200)), "RGB"),
    "bgr": RawImage(np.asarray(photo_like(300, 200))[:, :, ::-1], "BGR"),
    "rgba": RawImage(np.asarray(photo_like(300, 200).convert("RGBA")), "RGBA"),
    "grey": RawImage(np.asarray(photo_like(300, 200).convert("L")), "GRAY"),
    "small": RawImage(np.asarray(photo_like(30, 20)), "RGB"),
}


@pytest.mark.parametrize("transform", TRANSFORMS[::3], ids=str)
@pytest.mark.parametrize("raw", ARRAYS.values(), ids=ARRAYS)
def test_raw_pixels_are_the_servers_to_within_a_level(raw, transform):
    assert_alike(Preprocessor(variant(transform))(raw), raw, transform)


@pytest.mark.parametrize("transform", TRANSFORMS[::4], ids=str)
@pytest.mark.parametrize("layout", ["NV12", "I420"])
@pytest.mark.parametrize("colors", [("BT601", "limited"), ("BT709", "full"), ("BT2020", "limited")])
@pytest.mark.parametrize("height", [400, 36])
def test_yuv_pixels_are_nearly_the_servers(transform, layout, colors, height):
    """Planes that are a level apart are up to three apart in RGB."""
    pixels = np.asarray(photo_like(480, height * 3 // 2).convert("L"))
    raw = RawImage(pixels, layout, *colors)
    assert_alike(Preprocessor(variant(transform))(raw), raw, transform, most=3)


def test_every_kind_of_input_gives_the_same_pixels(tmp_path):
    image = photo_like(300, 200)
    path = tmp_path / "image.png"
    path.write_bytes(encode(image))
    array = np.asarray(image)
    preprocess = Preprocessor(variant(DEFAULT))
    expected = preprocess(path).pixels
    inputs = (str(path), path.read_bytes(), path.open("rb"), image, array)
    for one in (*inputs, torch.from_numpy(array.copy()).permute(2, 0, 1), RawImage(array, "RGB")):
        assert np.array_equal(preprocess(one).pixels, expected)
    bgr = preprocess(array[:, :, ::-1], pixel_format="BGR")
    assert np.array_equal(bgr.pixels, expected)
    inputs[2].close()


@pytest.mark.parametrize("side", [1000, 1400, 1800, 2600])
def test_large_jpegs_are_decoded_at_the_servers_fraction(side):
    content = encode(photo_like(side, side * 3 // 4), "JPEG")
    transform = Transform(resize=64, crop=56, **PLAIN)
    limits = ImageLimits(exact_jpeg_pixels=500_000)
    found = Preprocessor(variant(transform, exact_jpeg_pixels=500_000))(content)
    expected = decode(content, transform, limits)
    assert np.abs(found.pixels.astype(int) - expected).max() <= 1
    assert not np.array_equal(decode(content, transform, LIMITS), expected)


# Refusals

BROKEN = {
    "no image": (b"no image", "cannot be decoded"),
    "truncated": (FILES["png"][:2000], "cannot be decoded"),
    "deep TIFF": (
        encode(Image.fromarray(np.arange(1000, dtype=np.uint16).reshape(20, 50)), "TIFF"),
        "TIFF of mode I;16",
    ),
}


@pytest.mark.parametrize(("content", "reason"), BROKEN.values(), ids=BROKEN)
def test_image_that_cannot_be_read_here_is_refused(content, reason):
    with pytest.raises(InvalidImageError, match=reason) as failed:
        Preprocessor(variant(DEFAULT))(content)
    assert "send the file itself" in failed.value.message


def test_image_is_not_preprocessed_twice():
    preprocess = Preprocessor(variant(DEFAULT))
    with pytest.raises(TypeError, match="preprocessed already"):
        preprocess(preprocess(FILES["png"]))


def test_server_without_digest_takes_no_preprocessed_images():
    with pytest.raises(UnimplementedError, match="earlier release"):
        Preprocessor(variant(DEFAULT, digest=None))


@pytest.mark.parametrize(
    "changes",
    [
        {"interpolation": "spline"},
        {"interpolation": "lanczos", "antialias": False},
        {"input_size": (0, 0)},
    ],
)
def test_transform_of_a_later_release_is_refused(changes):
    with pytest.raises(InvalidRequestError, match="upgrade the SDK"):
        Preprocessor(variant(DEFAULT, **changes))


def test_invalid_background_is_refused():
    with pytest.raises(InvalidRequestError, match="background"):
        Preprocessor(variant(DEFAULT), background="blue")


@pytest.mark.parametrize(
    ("pixels", "digest"),
    [
        (np.zeros((224, 224), np.uint8), "a"),
        (np.zeros((224, 224, 3), np.float32), "a"),
        (np.zeros((3, 224, 224), np.uint8), "a"),
        (b"pixels", "a"),
        (np.zeros((224, 224, 3), np.uint8), ""),
    ],
)
def test_malformed_preprocessed_image_is_refused(pixels, digest):
    with pytest.raises(InvalidImageError):
        read_image(PreprocessedImage(pixels, digest))


# Processes and threads


def digest_of(preprocess: Preprocessor, content: bytes) -> tuple[bytes, str]:
    found = preprocess(content)
    return found.pixels.tobytes(), found.transform_digest


def test_preprocessor_works_in_other_processes_and_threads():
    preprocess = Preprocessor(variant(DEFAULT), background="white")
    content = transparent("RGBA")
    expected = digest_of(preprocess, content)
    assert digest_of(pickle.loads(pickle.dumps(preprocess)), content) == expected
    image = pickle.loads(pickle.dumps(preprocess(content)))
    assert (image.pixels.tobytes(), image.transform_digest) == expected
    with ThreadPoolExecutor(8) as threads:
        found = threads.map(digest_of, [preprocess] * 32, [content] * 32)
        assert set(found) == {expected}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as processes:
        assert processes.submit(digest_of, preprocess, content).result(timeout=120) == expected


def test_files_are_read_without_being_changed(tmp_path):
    image = photo_like(300, 200)
    before = image.tobytes()
    Preprocessor(variant(DEFAULT))(image)
    assert image.tobytes() == before
    Preprocessor(variant(DEFAULT))(io.BytesIO(FILES["png"]))


def test_missing_pillow_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ModuleNotFoundError, match=r"Pillow.*\[images\]") as failed:
        Preprocessor(variant(DEFAULT))
    assert failed.value.name == "PIL"
