"""What of decoding on the GPU needs none; tests/gpu/test_nvjpeg.py has the rest."""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torchvision.io
from PIL import Image, ImageOps
from torchvision.models import ResNet50_Weights

from resnet50_server.engines.cuda import nvjpeg
from resnet50_server.engines.cuda.gathering import Gathering
from resnet50_server.images import decode
from resnet50_server.images.transform import Transform
from tests.support.pictures import photo_like

TRANSFORM = Transform.of(ResNet50_Weights.DEFAULT.transforms())


def planes(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)


@pytest.mark.parametrize("size", [(320, 240), (240, 333), (232, 232), (40, 700)])
def test_geometry_is_that_of_the_cpu_within_a_level(size):
    pixels = np.array(photo_like(*size, 3))
    ours = nvjpeg.resize_and_crop(planes(pixels), TRANSFORM).numpy()
    theirs = decode.resize_and_crop(pixels, TRANSFORM)
    assert ours.shape == theirs.shape == (224, 224, 3)
    assert ours.flags.c_contiguous
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.max() <= 1
    assert difference.mean() < 0.05


@pytest.mark.parametrize("interpolation", ["nearest", "bicubic"])
def test_geometry_takes_every_interpolation(interpolation):
    transform = Transform(96, 96, TRANSFORM.mean, TRANSFORM.std, interpolation)
    pixels = np.array(photo_like(320, 240, 3))
    ours = nvjpeg.resize_and_crop(planes(pixels), transform).numpy()
    assert np.abs(ours.astype(int) - decode.resize_and_crop(pixels, transform)).max() <= 2


def test_crop_larger_than_the_image_is_padded_with_black():
    transform = Transform(50, 64, TRANSFORM.mean, TRANSFORM.std)
    pixels = np.array(photo_like(100, 100, 3))
    ours = nvjpeg.resize_and_crop(planes(pixels), transform).numpy()
    assert not ours[:7].any()
    assert ours[32].any()
    assert np.abs(ours.astype(int) - decode.resize_and_crop(pixels, transform)).max() <= 1


@pytest.mark.parametrize("orientation", range(2, 9))
def test_exif_orientation_is_undone_as_pillow_does(orientation):
    picture = photo_like(20, 12, 5)
    exif = picture.getexif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    picture.save(file, "PNG", exif=exif)
    upright = np.array(ImageOps.exif_transpose(Image.open(file)).convert("RGB"))
    ours = nvjpeg.UPRIGHT[orientation](planes(np.array(picture)))
    assert np.array_equal(ours.permute(1, 2, 0).numpy(), upright)


def test_torchvision_without_its_decoder_is_named(monkeypatch):
    monkeypatch.delattr(torchvision.io, "decode_jpeg")
    with pytest.raises(RuntimeError, match=r"no longer has .*--decode cpu"):
        nvjpeg.NvJpegDecoder(torch.device("cuda:0"))


def test_missing_device_is_named():
    with pytest.raises(RuntimeError, match=r"sees \d+, not cuda:99; use --decode cpu"):
        nvjpeg.NvJpegDecoder(torch.device("cuda:99"))


def test_items_that_come_while_a_call_runs_are_taken_by_the_next_one():
    calls: list[list[int]] = []
    first_runs, may_end = threading.Event(), threading.Event()

    def together(items: Sequence[int]) -> list[int]:
        calls.append(list(items))
        first_runs.set()
        assert may_end.wait(10)
        return [item * 10 for item in items]

    gathering: Gathering[int, int] = Gathering(together, limit=3)
    results: dict[int, int] = {}

    def call(item: int) -> None:
        results[item] = gathering.call(item)

    threads = [threading.Thread(target=call, args=(item,)) for item in range(6)]
    threads[0].start()
    assert first_runs.wait(10)
    for thread in threads[1:]:
        thread.start()
    while len(gathering._waiting) < 5:
        assert all(thread.is_alive() for thread in threads)
    may_end.set()
    for thread in threads:
        thread.join()
    assert [len(one) for one in calls] == [1, 3, 2]
    assert results == {item: item * 10 for item in range(6)}


def test_item_that_fails_fails_alone():
    def together(items: Sequence[int]) -> list[int | Exception]:
        return [ValueError(str(item)) if item == 1 else item for item in items]

    gathering: Gathering[int, int] = Gathering(together, limit=8)
    assert gathering.call(0) == 0
    with pytest.raises(ValueError, match="1"):
        gathering.call(1)


def test_call_that_raises_fails_all_of_its_items_and_no_other():
    def together(items: Sequence[int]) -> list[int]:
        if 1 in items:
            raise RuntimeError("broken")
        return list(items)

    gathering: Gathering[int, int] = Gathering(together, limit=8)
    with pytest.raises(RuntimeError, match="broken"):
        gathering.call(1)
    assert gathering.call(2) == 2
