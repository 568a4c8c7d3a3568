"""Transforms read from the text of torchvision's own ones give their pixels."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torchvision.models import ResNet50_Weights
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms import transforms as v1
from torchvision.transforms._presets import ImageClassification

from resnet50_server.errors import WeightsError
from resnet50_server.images.decode import decode
from resnet50_server.images.limits import ImageLimits
from resnet50_server.images.transform import LongerSide, Transform
from resnet50_server.variants.spec import parse_variant
from resnet50_server.variants.transform_file import transform_json
from resnet50_server.variants.transform_text import parse_transform_text
from tests.support import weights
from tests.support.pictures import encode, photo_like

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
BICUBIC, NEAREST = InterpolationMode.BICUBIC, InterpolationMode.NEAREST
FLOAT = torch.float32

SHOWN = {
    "preset": ImageClassification(crop_size=72, resize_size=80),
    "bicubic preset": ImageClassification(crop_size=72, resize_size=80, interpolation=BICUBIC),
    "v1": v1.Compose(
        [v1.Resize(80), v1.CenterCrop(72), v1.ToTensor(), v1.Normalize(tuple(MEAN), tuple(STD))]
    ),
    "v1 squash": v1.Compose([v1.Resize((72, 64)), v1.ToTensor(), v1.Normalize(MEAN, STD)]),
    "v1 without normalisation": v1.Compose([v1.Resize([72, 72]), v1.ToTensor()]),
    "v1 nearest": v1.Compose([v1.Resize((72, 64), NEAREST), v1.ToTensor()]),
    "v1 of tensors": v1.Compose(
        [
            v1.PILToTensor(),
            v1.Resize(80, BICUBIC, antialias=False),
            v1.CenterCrop((72, 64)),
            v1.ConvertImageDtype(torch.float),
            v1.Normalize([0.5], [0.25]),
        ]
    ),
    "v1 within v1": v1.Compose([v1.Compose([v1.Resize(80), v1.CenterCrop(72)]), v1.ToTensor()]),
    "v2": v2.Compose(
        [
            v2.ToImage(),
            v2.ToDtype(torch.uint8, scale=True),
            v2.Resize(80, antialias=True),
            v2.CenterCrop(72),
            v2.ToDtype(FLOAT, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    ),
    "v2 letterbox": v2.Compose(
        [v2.Resize(None, max_size=72), v2.CenterCrop(72), v2.ToImage(), v2.ToDtype(FLOAT, True)]
    ),
    "v2 of 0 to 255": v2.Compose(
        [
            v2.Resize((72, 72)),
            v2.PILToTensor(),
            v2.ToDtype(FLOAT),
            v2.Normalize([123.68, 116.779, 103.939], [1, 1, 1]),
        ]
    ),
    "sequential": torch.nn.Sequential(
        v2.Resize(80), v2.CenterCrop(72), v2.ToImage(), v2.ToDtype(FLOAT, scale=True)
    ),
}


def normalised(pixels: np.ndarray, transform: Transform) -> np.ndarray:
    """Return the network's input as training code makes it: [3, H, W]."""
    scale, shift = map(np.array, transform.affine())
    return (pixels * scale + shift).transpose(2, 0, 1)


@pytest.mark.parametrize("size", [(200, 150), (90, 211)], ids=str)
@pytest.mark.parametrize("name", SHOWN)
def test_text_of_a_transform_gives_the_input_that_it_gives(name, size):
    picture = photo_like(*size)
    transform = parse_transform_text(repr(SHOWN[name]))
    expected = SHOWN[name](picture).numpy()
    pixels = decode(encode(picture), transform, ImageLimits())
    levels = np.array(transform.std)[:, None, None] * 255 / transform.input_range[1]
    difference = np.abs(normalised(pixels, transform) - expected) * levels
    assert difference.max() <= 1.01
    assert difference.mean() <= 0.3


@pytest.mark.parametrize("name", SHOWN)
def test_variant_json_of_a_transform_gives_it_back(tmp_path, name):
    transform = parse_transform_text(repr(SHOWN[name]))
    written = json.loads(json.dumps(transform_json(transform)))
    directory = weights.custom_variant(tmp_path / "mine", {}, transform=written)
    assert parse_variant(f"mine={directory}").transform == transform


@pytest.mark.parametrize("member", list(ResNet50_Weights), ids=lambda member: member.name)
def test_text_of_torchvisions_weights_gives_their_transform(member):
    expected = Transform.of(member.transforms())
    for text in (repr(member.transforms()), repr(member.value.transforms)):
        assert parse_transform_text(text) == expected


SOURCES = {
    "transforms.Compose([transforms.Resize((224, 224)), transforms.ToTensor()])": {
        "resize": (224, 224)
    },
    "val = T.Compose([T.Resize(256),  # short side\n T.CenterCrop(224), T.ToTensor(),])": {
        "resize": 256,
        "crop": 224,
    },
    "Compose([Resize(256, interpolation=2), CenterCrop(224), ToTensor()])": {"resize": 256},
    "Compose([Resize(256, interpolation=PIL.Image.BICUBIC), CenterCrop(224), ToTensor()])": {
        "interpolation": "bicubic"
    },
    "Compose(\n Resize(size=235, interpolation=bicubic, max_size=None, antialias=warn)\n"
    " CenterCrop(size=(224, 224))\n MaybeToTensor()\n"
    " Normalize(mean=tensor([0.4850, 0.4560, 0.4060]), std=tensor([0.2290, 0.2240, 0.2250]))\n)": {
        "interpolation": "bicubic",
        "antialias": True,
        "mean": tuple(MEAN),
    },
    "Compose([ToTensor(), Resize(256, antialias=None), CenterCrop(224)])": {"antialias": False},
    "v2.Compose([v2.Resize(max_size=224), v2.CenterCrop(224), v2.ToImage(),"
    " v2.ToDtype(torch.float32, scale=True)])": {"resize": LongerSide(224), "crop": 224},
}


@pytest.mark.parametrize(("text", "fields"), SOURCES.items(), ids=range(len(SOURCES)))
def test_source_code_of_a_transform_is_read(text, fields):
    transform = parse_transform_text(text)
    assert {name: getattr(transform, name) for name in fields} == fields


REFUSED = {
    "Compose([RandomResizedCrop(224), ToTensor()])": "RandomResizedCrop is random: it belongs to",
    "Compose([ColorJitter(0.4), ToTensor()])": "ColorJitter is random",
    "Compose([Resize(256), TenCrop(224), ToTensor()])": "TenCrop makes several images of one",
    "Compose([<__main__.SquarePad object at 0x7f10>, Resize(224), ToTensor()])": "SquarePad: the",
    "Compose([Lambda(), ToTensor()])": "'Lambda' is not a step",
    "Compose([<function <lambda> at 0x7f10>, ToTensor()])": "'<lambda>' is not a step",
    "Compose([Resize(256), ToTensor()])": "crop is missing",
    "Compose([Resize(256), CenterCrop(224)])": "no step says whether pixels are scaled",
    "Compose([CenterCrop(224), Resize(256), ToTensor()])": "Resize comes after CenterCrop",
    "Compose([Resize(9), Resize(9), ToTensor()])": "Resize is there twice",
    "Compose([Resize(256, max_size=300), CenterCrop(224), ToTensor()])": "size and max_size=300",
    "Compose([Resize(99999), CenterCrop(224), ToTensor()])": "resize is 99999, must be 1 to 8192",
    "Compose([Resize('a'), ToTensor()])": "size is 'a', must be one whole number",
    "Compose([Resize(8, 'area'), ToTensor()])": "interpolation is 'area'",
    "Compose([Resize((8, 8)), ToTensor(), Normalize([1, 2], [1, 2])])": "mean is [1, 2], must be",
    "Compose([Resize((8, 8), colour=3), ToTensor()])": "Resize has 'colour'",
    "Compose([ToDtype(scale=True), Resize((8, 8)), ToDtype(scale=False)])": "ToDtype that scales",
    "Compose([Grayscale(3), ToTensor()])": "Grayscale: the server does not convert to grey",
    "Compose([Resize((8, 8)), ToTensor(), Normalize([123.7], [58])])": "input_range",
    "Compose([3])": "contains 3, which is not a transform",
    "Compose([Resize((8, 8)), ToTensor()": "line 1: it ends too early",
    "Compose([\nNormalize([1/255])])": "line 2: '/' is not expected here",
    "import os; os.system('true')": "line 1: 'os' is not expected here; paste what print(",
    "__import__('os').system('true')": "line 1: '.' is not expected here",
    "[" * 1000: "more than 16 brackets",
    "x" * 70_000: "has 70000 characters, at most 65536",
    "": "it ends too early",
    "Compose": "is not a transform such as",
}


@pytest.mark.parametrize(("text", "reason"), REFUSED.items(), ids=range(len(REFUSED)))
def test_text_that_is_no_usable_transform_is_refused(text, reason):
    with pytest.raises(WeightsError, match=r"^transform text: ") as refused:
        parse_transform_text(text)
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)
