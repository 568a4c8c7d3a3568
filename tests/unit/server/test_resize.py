"""Images that are much longer than wide are resized only where the crop lies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import ResNet50_Weights

from resnet50_server.errors import InvalidImage
from resnet50_server.images import resize
from resnet50_server.images.decode import decode
from resnet50_server.images.limits import ImageLimits
from resnet50_server.images.source import PixelFormat, RawImage
from resnet50_server.images.transform import Transform
from tests.support.pictures import encode

TRANSFORMS = {
    f"{resized}-{crop}-{interpolation}": Transform(
        resized, crop, (0, 0, 0), (1, 1, 1), interpolation
    )
    for resized, crop in ((232, 224), (33, 32), (20, 32))
    for interpolation in ("nearest", "bilinear", "bicubic")
}
SIZES = [(60, 900), (900, 61), (1, 500), (501, 1), (250, 2003), (232, 1500), (3000, 601)]


# Fixed-point kernels of torch and Pillow round differently, bicubic ones twice.
LEVELS = {"nearest": 0, "bilinear": 1, "bicubic": 2}


def detailed(height: int, width: int) -> np.ndarray:
    draw = np.random.default_rng(0)
    noise = draw.integers(0, 256, (-(-height // 2), -(-width // 2), 3), dtype=np.uint8)
    return np.array(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def whole(pixels: np.ndarray, transform: Transform, monkeypatch) -> np.ndarray:
    """Resize a whole image and crop it then, as torchvision does."""
    with monkeypatch.context() as changed:
        changed.setattr(resize, "ELONGATED", 10**6)
        return resize.resize_and_crop(pixels, transform)


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_elongated_image_is_as_if_it_were_resized_whole(size, transform, monkeypatch):
    assert torch.__version__
    pixels = detailed(*size)
    expected = whole(pixels, transform, monkeypatch)
    found = resize.resize_and_crop(pixels, transform)
    assert found.shape == (transform.crop, transform.crop, 3)
    assert found.flags.c_contiguous
    assert np.abs(found.astype(int) - expected).max() <= LEVELS[transform.interpolation]


@pytest.mark.parametrize("weights", list(ResNet50_Weights), ids=lambda weights: weights.name)
@pytest.mark.parametrize("size", [(200, 1203), (901, 60)], ids=str)
def test_elongated_image_is_within_one_level_of_torchvision(size, weights):
    preset = weights.transforms()
    transform = Transform.of(preset)
    pixels = detailed(*size)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preset.mean, preset.std))
    expected = (preset(Image.fromarray(pixels)) * std + mean) * 255
    found = torch.from_numpy(resize.resize_and_crop(pixels, transform)).permute(2, 0, 1)
    assert (found - expected).abs().max() <= 1.001


def test_part_of_an_image_is_the_same_part_of_the_resized_one():
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (50, 1000, 3), dtype=np.uint8)
    size = (77, 1541)
    expected = resize.resample(pixels, size, "bilinear").astype(int)
    for rows, columns in ((range(77), range(100)), (range(5, 9), range(1441, 1541))):
        found = resize.resample_part(pixels, size, rows, columns, "bilinear")
        cut = expected[rows.start : rows.stop, columns.start : columns.stop]
        assert np.abs(found - cut).max() <= 1


@pytest.mark.parametrize("size", [(20_000, 200), (200, 20_000), (60_000, 3), (1, 60_000)])
def test_panorama_is_answered_from_its_middle(size, monkeypatch):
    """However long it is, as many pixels as the crop has are made of it."""
    transform = TRANSFORMS["232-224-bilinear"]
    made = []
    by_pillow = resize.resample_by_pillow

    def counted(pixels, size, *arguments):
        made.append(pixels.size + 3 * size[0] * size[1])
        return by_pillow(pixels, size, *arguments)

    monkeypatch.setattr(resize, "resample_by_pillow", counted)
    encoded = encode(Image.new("RGB", size, (200, 100, 50)))
    found = decode(encoded, transform, ImageLimits(max_pixels=4_000_000))
    assert (found == (200, 100, 50)).all()
    assert sum(made) < 1_000_000


@pytest.mark.parametrize("name", ["RGB", "BGR", "RGBA", "GRAY", "NV12", "I420"])
def test_elongated_raw_frame_is_cropped_likewise(name, monkeypatch):
    transform = TRANSFORMS["33-32-bilinear"]
    samples = {"RGB": 3, "BGR": 3, "RGBA": 4, "GRAY": 1, "NV12": 1.5, "I420": 1.5}[name]
    smooth = np.linspace(16, 235, int(1200 * 40 * samples)).astype(np.uint8)
    raw = RawImage(1200, 40, PixelFormat[name], 0, smooth.tobytes())
    found = decode(raw, transform, ImageLimits())
    with monkeypatch.context() as changed:
        changed.setattr(resize, "ELONGATED", 10**6)
        expected = decode(raw, transform, ImageLimits())
    assert np.abs(found.astype(int) - expected).max() <= 3


def test_image_that_resizing_makes_enormous_is_refused():
    """Nothing but an unusual transform does: 4 times as long as wide, at most, is resized whole."""
    transform = Transform(8192, 224, (0, 0, 0), (1, 1, 1))
    with pytest.raises(InvalidImage, match=r"30 x 10 .*max_image_pixels\) of 50000000"):
        decode(encode(Image.new("L", (30, 10))), transform, ImageLimits())
