"""JPEGs decoded by nvJPEG against libjpeg-turbo. Written without CUDA: these have never run.

How close the two come is not known; the limits are what a decoder of another rounding and another
chroma upsampling should keep to. `benchmarks/gpu.py` prints what it is.
"""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torchvision.models import ResNet50_Weights

from resnet50_server.engines.cuda.nvjpeg import NvJpegDecoder
from resnet50_server.images.decode import decode
from resnet50_server.images.formats import ImageLimits
from resnet50_server.images.transform import Transform
from tests.support.pictures import PHOTOS, photo_like

pytestmark = [
    pytest.mark.gpu,
    # torchvision warns that its decoder will go.
    pytest.mark.filterwarnings("default"),
]

TRANSFORM = Transform.of(ResNet50_Weights.DEFAULT.transforms())


@pytest.fixture(scope="module")
def decoder() -> NvJpegDecoder:
    return NvJpegDecoder(torch.device("cuda:0"))


def jpeg(seed: int, **options) -> bytes:
    file = io.BytesIO()
    photo_like(400, 300, seed).save(file, "JPEG", quality=90, **options)
    return file.getvalue()


def difference(decoder: NvJpegDecoder, encoded: bytes) -> np.ndarray:
    ours = decoder.decode(encoded, TRANSFORM)
    assert ours.shape == (224, 224, 3)
    assert ours.dtype == np.uint8
    return np.abs(ours.astype(int) - decode(encoded, TRANSFORM, ImageLimits()))


@pytest.mark.parametrize("path", PHOTOS, ids=lambda path: str(path).rpartition("/")[2])
def test_photo_comes_out_close_to_libjpeg_turbos(decoder, path):
    with open(path, "rb") as file:
        assert difference(decoder, file.read()).mean() < 2


@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 2}, {"progressive": True}])
def test_every_kind_of_jpeg_is_decoded(decoder, options):
    assert difference(decoder, jpeg(1, **options)).mean() < 2


def test_threads_get_their_own_pictures(decoder):
    files = [jpeg(seed) for seed in range(32)]
    alone = [decoder.decode(file, TRANSFORM) for file in files]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            together = list(pool.map(lambda file: decoder.decode(file, TRANSFORM), files))
            assert all(np.array_equal(*pair) for pair in zip(alone, together, strict=True))


def test_broken_file_fails_alone(decoder):
    good, broken = jpeg(0), jpeg(1)[:40]
    with pytest.raises(ValueError, match="nvJPEG does not decode it"):
        decoder.decode(broken, TRANSFORM)
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(decoder.decode, file, TRANSFORM) for file in [good, broken] * 8]
    failed = [future.exception() is not None for future in futures]
    assert failed == [False, True] * 8
