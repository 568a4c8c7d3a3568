"""Variants with other preprocessing than torchvision's presets, served and compared with torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as F
from torchvision.transforms import v2

from resnet50.v1 import image_pb2, inference_pb2, inference_pb2_grpc, variant_pb2, variant_pb2_grpc
from tests.support import weights
from tests.support.pictures import PHOTOS, encode, photo_like
from tests.support.serving import connected, serving

# One event loop for all tests here, so that they can share a server.
pytestmark = pytest.mark.asyncio(loop_scope="module")

CATEGORIES = 12
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
NORMAL: dict[str, Any] = {"mean": MEAN, "std": STD}
# Of a probability: pixels may be one level of 255 from those of Pillow's resize.
TOLERANCE = 0.03


def letterboxed(picture: Image.Image) -> Image.Image:
    """Resize the longer side to 96, and pad with grey, as detectors do."""
    small = v2.Resize(None, max_size=96)(picture)
    left, top = (96 - small.width) // 2, (96 - small.height) // 2
    right, bottom = 96 - small.width - left, 96 - small.height - top
    return F.pad(small, [left, top, right, bottom], fill=[114, 114, 114])


SCALED = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
CAFFE_MEAN, CAFFE_STD = [103.53, 116.28, 123.675], [57.375, 57.12, 58.395]
CAFFE = v2.Compose(
    [
        v2.Resize(104),
        v2.CenterCrop(96),
        v2.PILToTensor(),
        v2.Lambda(lambda pixels: pixels.flip(0)),
        v2.ToDtype(torch.float32),
        v2.Normalize(CAFFE_MEAN, CAFFE_STD),
    ]
)

# By name: the variant.json of a variant, and what its training code does.
TRAINED: dict[str, tuple[dict[str, Any], Callable[[Image.Image], Tensor]]] = {
    "squash": ({"resize": [96, 96]} | NORMAL, v2.Compose([v2.Resize((96, 96)), SCALED])),
    "wide": ({"resize": [64, 128]} | NORMAL, v2.Compose([v2.Resize((64, 128)), SCALED])),
    "letterbox": (
        {"resize": {"longer_side": 96}, "crop": 96, "fill": 114} | NORMAL,
        lambda picture: SCALED(letterboxed(picture)),
    ),
    "caffe": (
        {
            "resize": 104,
            "crop": 96,
            "mean": CAFFE_MEAN,
            "std": CAFFE_STD,
            "channel_order": "BGR",
            "input_range": [0, 255],
        },
        CAFFE,
    ),
}
# The same by a wrong transform: the comparison must tell them apart.
WRONG = v2.Compose([v2.Resize(104), v2.CenterCrop(96), SCALED])


@pytest.fixture(scope="module")
def state() -> weights.StateDict:
    return weights.calm(5, CATEGORIES)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    photos = [Image.open(path).convert("RGB") for path in PHOTOS]
    return [*photos, photo_like(320, 150, 3), photo_like(120, 330, 4)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def channel(tmp_path_factory, state):
    folder = tmp_path_factory.mktemp("variants")
    for name, (transform, _) in TRAINED.items():
        weights.custom_variant(
            folder / name, state, CATEGORIES, "weights.safetensors", transform=transform
        )
    arguments = [f"{name}={folder / name}" for name in TRAINED]
    async with (
        serving(variants=arguments, engine="torch", device="cpu", max_batch_size=4) as server,
        connected(server) as channel,
    ):
        yield channel


async def classify(channel, name: str, image: image_pb2.Image) -> Tensor:
    """Return the probability of each category, by its index."""
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    options = inference_pb2.ClassifyOptions(variant=name, top_k=CATEGORIES)
    reply = await stub.Classify(inference_pb2.ClassifyRequest(options=options, image=image))
    found = torch.full((CATEGORIES,), torch.nan)
    for category in reply.classification.categories:
        found[category.index] = category.probability
    return found


def expected(state: weights.StateDict, transform, picture: Image.Image) -> Tensor:
    return weights.run(weights.torchvision_model(state), transform(picture)[None])[0][0]


@pytest.mark.parametrize("name", TRAINED)
async def test_served_answers_are_those_of_the_training_code(channel, state, pictures, name):
    transform, differs = TRAINED[name][1], 0.0
    for picture in pictures:
        right = expected(state, transform, picture)
        raw = image_pb2.RawImage(
            width=picture.width,
            height=picture.height,
            pixel_format=image_pb2.PIXEL_FORMAT_RGB,
            pixels=picture.tobytes(),
        )
        for image in (image_pb2.Image(encoded=encode(picture)), image_pb2.Image(raw=raw)):
            found = await classify(channel, name, image)
            assert (found - right).abs().max() < TOLERANCE
        differs = max(differs, (expected(state, WRONG, picture) - right).abs().max().item())
    assert differs > 3 * TOLERANCE


@pytest.mark.parametrize("name", TRAINED)
async def test_clients_can_do_the_transform_by_its_description(channel, pictures, name):
    stub = variant_pb2_grpc.VariantServiceStub(channel)
    found = (await stub.GetVariant(variant_pb2.GetVariantRequest(name=name))).variant.transform
    for picture in pictures:
        done = by_description(found, picture)
        right = TRAINED[name][1](picture)
        assert done.shape == right.shape
        assert (done - right).abs().max() <= 1.01 / (255 * 0.22)


def by_description(transform: variant_pb2.Transform, picture: Image.Image) -> Tensor:
    """Follow the comments of the contract, with torchvision."""
    assert not transform.pad_to_square
    size = [transform.resize] if transform.resize else None
    if transform.HasField("resize_to"):
        size = [transform.resize_to.height, transform.resize_to.width]
    longer = transform.resize_longer_side or None
    picture = v2.Resize(size, v2.InterpolationMode(transform.interpolation), longer)(picture)
    height, width = transform.input_size.height, transform.input_size.width
    across, down = max(0, width - picture.width), max(0, height - picture.height)
    sides = [across // 2, down // 2, across - across // 2, down - down // 2]
    picture = F.center_crop(F.pad(picture, sides, fill=list(transform.fill)), [height, width])
    pixels = np.asarray(picture).astype(np.float32) / 255 * transform.input_range[1]
    if transform.channel_order == "BGR":
        pixels = pixels[..., ::-1]
    pixels = (pixels - np.array(transform.mean)) / np.array(transform.std)
    return torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32))
