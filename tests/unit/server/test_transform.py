"""Each preprocessing that a variant can have, compared with torchvision doing the same."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms import functional as F

from resnet50_server.errors import InvalidImage
from resnet50_server.images.decode import decode, pixels_without_decoding
from resnet50_server.images.limits import ImageLimits
from resnet50_server.images.source import PixelFormat, RawImage
from resnet50_server.images.transform import KNOWN_SIZES, LongerSide, Transform
from tests.support.pictures import encode, photo_like

LIMITS = ImageLimits()
PLAIN: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
SIZES = [(320, 240), (240, 320), (97, 211), (64, 48), (500, 31), (224, 224)]


def ours(picture: Image.Image, transform: Transform) -> np.ndarray:
    """Return what the network gets of a PNG file: uint8 [height, width, 3]."""
    return decode(encode(picture), transform, LIMITS)


def raw(picture: Image.Image) -> RawImage:
    return RawImage(*picture.size, PixelFormat.RGB, 0, picture.tobytes())


def square(picture: Image.Image, fill: tuple[int, int, int]) -> Image.Image:
    """Pad to a square as training code does, with torchvision's `pad`."""
    side, (width, height) = max(picture.size), picture.size
    left, top = (side - width) // 2, (side - height) // 2
    return F.pad(picture, [left, top, side - width - left, side - height - top], fill=list(fill))


def assert_alike(found: np.ndarray, expected: Any) -> None:
    """Hold pixels against a Pillow image or a tensor [3, H, W] of torchvision's."""
    if isinstance(expected, torch.Tensor):
        expected = expected.permute(1, 2, 0).numpy()
    expected = np.asarray(expected).astype(int)
    assert found.shape == expected.shape
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 1
    assert difference.mean() <= 0.4


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("target", [(96, 96), (64, 112)], ids=str)
@pytest.mark.parametrize("method", ["bilinear", "bicubic", "lanczos", "hamming", "box"])
def test_squash_is_torchvisions_on_pillow_images(size, target, method):
    picture = photo_like(*size)
    transform = Transform(resize=target, crop=None, interpolation=method, **PLAIN)
    expected = F.resize(picture, list(target), InterpolationMode(method))
    assert_alike(ours(picture, transform), expected)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_resize_without_antialias_is_torchvisions_on_tensors(size, method):
    picture = photo_like(*size)
    transform = Transform(
        resize=(80, 72), crop=None, interpolation=method, antialias=False, **PLAIN
    )
    expected = F.resize(
        F.pil_to_tensor(picture), [80, 72], InterpolationMode(method), antialias=False
    )
    assert_alike(ours(picture, transform), expected)
    smooth = ours(picture, replace(transform, antialias=True)).astype(int)
    if min(size) > 160:
        assert np.abs(smooth - ours(picture, transform)).max() > 1


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_nearest_takes_the_pixel_of_tensors_or_of_pillow(size):
    picture = photo_like(*size)
    near = Transform(resize=(80, 72), crop=None, interpolation="nearest", **PLAIN)
    exact = replace(near, interpolation="nearest-exact")
    nearest = InterpolationMode.NEAREST
    of_tensor = F.resize(F.pil_to_tensor(picture), [80, 72], nearest).permute(1, 2, 0).numpy()
    of_pillow = np.asarray(F.resize(picture, [80, 72], nearest))
    assert np.array_equal(ours(picture, near), of_tensor)
    assert np.array_equal(ours(picture, exact), of_pillow)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("fill", [(0, 0, 0), (114, 20, 255)], ids=str)
@pytest.mark.parametrize("resize", [64, (64, 48), LongerSide(64)], ids=str)
def test_padding_to_a_square_is_torchvisions(size, fill, resize):
    picture = photo_like(*size)
    transform = Transform(resize=resize, crop=None, pad_to_square=True, fill=fill, **PLAIN)
    target = list(resize) if isinstance(resize, tuple) else [64, 64]
    assert_alike(ours(picture, transform), F.resize(square(picture, fill), target))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("fill", [(0, 0, 0), (114, 114, 114)], ids=str)
def test_letterbox_is_torchvisions_longer_side_and_padding(size, fill):
    picture = photo_like(*size)
    transform = Transform(resize=LongerSide(96), crop=96, fill=fill, **PLAIN)
    resized = v2.Resize(None, max_size=96)(picture)
    assert_alike(ours(picture, transform), square(resized, fill))


@pytest.mark.parametrize("size", SIZES[:3], ids=str)
@pytest.mark.parametrize("crop", [96, (72, 100), (29, 31), (30, 33)], ids=str)
@pytest.mark.parametrize("resize", [None, 30, 100], ids=str)
def test_crop_is_torchvisions(size, crop, resize):
    picture = photo_like(*size)
    transform = Transform(resize=resize, crop=crop, **PLAIN)
    expected = F.center_crop(
        picture if resize is None else F.resize(picture, [resize]),
        [crop] if isinstance(crop, int) else list(crop),
    )
    assert_alike(ours(picture, transform), expected)


@pytest.mark.parametrize("side", range(20, 32))
def test_odd_padding_around_a_small_image_is_torchvisions(side):
    picture = photo_like(side, side + 1)
    transform = Transform(resize=None, crop=32, **PLAIN)
    assert np.array_equal(ours(picture, transform), np.asarray(F.center_crop(picture, [32])))


TRANSFORMS = [
    Transform(resize=(64, 48), crop=None, **PLAIN),
    Transform(resize=LongerSide(64), crop=64, fill=(9, 9, 9), **PLAIN),
    Transform(resize=64, crop=None, pad_to_square=True, **PLAIN),
    Transform(resize=64, crop=56, antialias=False, **PLAIN),
    Transform(resize=64, crop=(32, 64), interpolation="lanczos", **PLAIN),
    Transform(resize=None, crop=64, **PLAIN),
]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_raw_pixels_give_what_their_file_gives(transform, size):
    picture = photo_like(*size)
    assert np.array_equal(decode(raw(picture), transform, LIMITS), ours(picture, transform))


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("layout", [PixelFormat.NV12, PixelFormat.I420], ids=lambda one: one.name)
def test_planar_frames_are_near_their_conversion_to_rgb(transform, layout):
    grey = np.asarray(photo_like(320, 240).convert("L")).astype(float)
    luma = np.rint(16 + grey * 219 / 255).astype(np.uint8)
    pixels = luma.tobytes() + bytes([128]) * (320 * 240 // 2)
    found = decode(RawImage(320, 240, layout, 0, pixels), transform, LIMITS)
    picture = Image.fromarray(np.rint(grey).astype(np.uint8)).convert("RGB")
    assert np.abs(found.astype(int) - ours(picture, transform)).max() <= 3


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("size", [(64, 64), (48, 64), (64, 48)], ids=str)
def test_frames_that_are_only_copied_are_those_not_resized(transform, size):
    frame = raw(photo_like(*size))
    width, height = size
    unchanged = transform.resized(height, width) == (height, width)
    padded = transform.pad_to_square and width != height
    ready = pixels_without_decoding(frame, transform) is not None
    assert ready is (unchanged and not padded)


def test_very_long_image_is_padded_in_little_memory():
    """Its square would have 4.3 billion pixels."""
    thin = Image.new("RGB", (65_000, 1), (200, 0, 0))
    transform = Transform(resize=64, crop=None, pad_to_square=True, fill=(0, 0, 9), **PLAIN)
    found = ours(thin, transform)
    assert found.shape == (64, 64, 3)
    assert (found[:30] == (0, 0, 9)).all()


@pytest.mark.parametrize(
    "transform",
    [
        Transform(resize=8000, crop=224, pad_to_square=True, **PLAIN),
        Transform(resize=None, crop=224, pad_to_square=True, **PLAIN),
        Transform(resize=232, crop=224, antialias=False, **PLAIN),
    ],
    ids=str,
)
def test_long_image_that_would_grow_enormous_is_refused(transform):
    thin = encode(Image.new("L", (1_000_000, 1)))
    with pytest.raises(InvalidImage, match=r"is 1000000 x 1 pixels, and .* send a less elongated"):
        decode(thin, transform, LIMITS)


@pytest.mark.parametrize(
    ("transform", "problem"),
    [
        ({"crop": None}, "crop is missing: images of different shapes"),
        ({"crop": None, "resize": LongerSide(300)}, "such as 300"),
        ({"crop": None, "resize": None}, "crop is missing"),
        ({"crop": None, "resize": None, "pad_to_square": True}, "crop is missing"),
        ({"crop": (0, 224)}, "crop is 0, must be 1 to 4096"),
        ({"resize": (224, 9000)}, "resize is 9000, must be 1 to 8192"),
        ({"resize": LongerSide(0)}, "resize is 0, must be 1 to 8192"),
        ({"crop": None, "resize": (5000, 224)}, "resize is 5000 without a crop, must be 1 to 4096"),
        ({"interpolation": "area"}, "must be nearest, nearest-exact, bilinear,"),
        ({"interpolation": "lanczos", "antialias": False}, "antialias is false, which lanczos"),
        ({"fill": (0, 0, 256)}, "fill is [0, 0, 256], must be 0 to 255"),
        ({"mean": (103.9, 116.8, 123.7)}, 'add "input_range": [0, 255]'),
    ],
    ids=str,
)
def test_transform_that_cannot_be_done_says_why(transform, problem):
    (found,) = Transform(**{"resize": 232, "crop": 224, **PLAIN, **transform}).problems()
    assert problem in found


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
def test_transforms_of_training_code_have_no_problems(transform):
    assert transform.problems() == []


def test_affine_is_the_normalisation_in_rgb_order():
    caffe = Transform(
        resize=256,
        crop=224,
        mean=(103.939, 116.779, 123.68),
        std=(1.0, 2.0, 4.0),
        channel_order="BGR",
        input_range=(0, 255),
    )
    scale, shift = map(np.array, caffe.affine())
    pixel = np.array([10.0, 20.0, 30.0])  # red, green, blue
    blue_first = (pixel[::-1] - caffe.mean) / caffe.std
    assert np.allclose(pixel * scale + shift, blue_first[::-1])


def test_upright_photo_is_squashed_not_the_stored_one():
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = photo_like(320, 240)
    transform = Transform(resize=(64, 48), crop=None, **PLAIN)
    turned = decode(encode(picture, exif=exif), transform, LIMITS)
    upright = Image.open(io.BytesIO(encode(picture))).transpose(Image.Transpose.ROTATE_270)
    assert np.array_equal(turned, ours(upright, transform))


def test_crop_of_a_size_is_found_though_another_thread_clears_the_known_ones():
    transform = Transform(resize=None, crop=8, **PLAIN)

    class Interrupted(int):
        """A number at whose every use as a key other threads crop images of many sizes."""

        def __hash__(self) -> int:
            for number in range(KNOWN_SIZES + 1):
                transform.only_crop(8 + number, 9)
            return super().__hash__()

    assert transform.only_crop(Interrupted(20), 12) == (slice(6, 14), slice(2, 10))
