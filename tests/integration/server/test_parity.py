"""Results of a real server, compared with the same weights run directly in torchvision."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
import pytest_asyncio
import torch
from PIL import Image
from torch import Tensor
from torchvision.models import ResNet50_Weights
from torchvision.models.quantization import ResNet50_QuantizedWeights
from torchvision.transforms._presets import ImageClassification

from resnet50.v1 import image_pb2, inference_pb2, inference_pb2_grpc, result_pb2
from tests.support import weights
from tests.support.pictures import PHOTOS, encode
from tests.support.serving import connected, serving

# One event loop for all tests here, so that they can share a server.
pytestmark = [pytest.mark.asyncio(loop_scope="module"), *weights.ignore_torchs_plans_for_int8]

V2 = ResNet50_Weights.IMAGENET1K_V2
INT8 = ResNet50_QuantizedWeights.IMAGENET1K_FBGEMM_V1
CATEGORIES = 37
# Of a probability near 0.5: rounding in float32 moves it by up to 6e-5 in torchvision itself, by
# number of threads and by layout (against float64), and by as much in the server; bfloat16 by 1e-2.
TOLERANCE = 3e-4


@dataclass
class Variant:
    """A variant that is served, and what torchvision itself says of its pictures.

    Attributes:
        transform: torchvision's.
        state: The weights.
        pictures: Their shorter side is what the transform resizes to: nothing is resampled, so
            that the network's input is the same to the last bit.
        probabilities: float32 [N, categories], torchvision's for the pictures.
        embeddings: float32 [N, 2048], torchvision's for the pictures.
    """

    transform: ImageClassification
    state: weights.StateDict

    def __post_init__(self) -> None:
        self.pictures = [scaled(one, self.transform.resize_size[0]) for one in originals()]
        self.probabilities, self.embeddings = self.reference(self.pictures)
        weights.assert_telling(self.probabilities, self.embeddings)

    def reference(self, pictures: list[Image.Image]) -> tuple[Tensor, Tensor]:
        images = torch.stack([self.transform(picture) for picture in pictures])
        return weights.run(weights.torchvision_model(self.state), images)


def originals() -> list[Image.Image]:
    """Two photos, and a detail of each: four pictures that differ."""
    photos = [Image.open(path).convert("RGB") for path in PHOTOS]
    return [*photos, *(photo.crop((0, 0, 300, 300)) for photo in photos)]


def scaled(picture: Image.Image, short_side: int) -> Image.Image:
    scale = short_side / min(picture.size)
    return picture.resize([round(length * scale) for length in picture.size])


NAMES = ("mine", "IMAGENET1K_V2", "IMAGENET1K_FBGEMM_V1")


@pytest.fixture(scope="module")
def variants() -> dict[str, Variant]:
    return {
        "mine": Variant(
            ImageClassification(crop_size=224, resize_size=224), weights.trained_like(2, CATEGORIES)
        ),
        "IMAGENET1K_V2": Variant(V2.transforms(), weights.trained_like(1)),
        "IMAGENET1K_FBGEMM_V1": Variant(INT8.transforms(), weights.trained_like_int8()),
    }


@pytest.fixture(scope="module")
def settings(tmp_path_factory, variants) -> Iterator[dict[str, object]]:
    """Serve all three from files of the real formats."""
    folder: Path = tmp_path_factory.mktemp("parity")
    directory = weights.custom_variant(
        folder / "mine", variants["mine"].state, CATEGORIES, checkpoint="weights.safetensors"
    )
    with pytest.MonkeyPatch.context() as monkeypatch:
        for member in (V2, INT8):
            weights.publish(monkeypatch, member, variants[member.name].state, folder)
        yield {
            "variants": [f"mine={directory}", "IMAGENET1K_V2", "IMAGENET1K_FBGEMM_V1"],
            "engine": "torch",
            "device": "cpu",
            "weights_dir": folder,
            "max_batch_size": 4,
        }
    shutil.rmtree(folder)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stub(settings) -> inference_pb2_grpc.InferenceServiceStub:
    async with serving(**settings) as server, connected(server) as channel:
        yield inference_pb2_grpc.InferenceServiceStub(channel)


def png(picture: Image.Image) -> image_pb2.Image:
    return image_pb2.Image(encoded=encode(picture))


def raw(picture: Image.Image) -> image_pb2.Image:
    return image_pb2.Image(
        raw=image_pb2.RawImage(
            width=picture.width,
            height=picture.height,
            pixel_format=image_pb2.PIXEL_FORMAT_RGB,
            pixels=picture.tobytes(),
        )
    )


def classify(
    stub: inference_pb2_grpc.InferenceServiceStub, image: image_pb2.Image, **options
) -> grpc.aio.UnaryUnaryCall:
    return stub.Classify(
        inference_pb2.ClassifyRequest(options=inference_pb2.ClassifyOptions(**options), image=image)
    )


def embed(
    stub: inference_pb2_grpc.InferenceServiceStub, image: image_pb2.Image, **options
) -> grpc.aio.UnaryUnaryCall:
    return stub.Embed(
        inference_pb2.EmbedRequest(options=inference_pb2.EmbedOptions(**options), image=image)
    )


def probabilities(reply: inference_pb2.ClassifyResponse, categories: int) -> Tensor:
    """Return the probability of each category, by its index; NaN for those that did not come."""
    found = torch.full((categories,), torch.nan)
    for category in reply.classification.categories:
        found[category.index] = category.probability
    return found


def vector(embedding: result_pb2.Embedding) -> Tensor:
    half = embedding.type == result_pb2.EMBEDDING_TYPE_FLOAT16
    values = np.frombuffer(embedding.values, "<f2" if half else "<f4")
    return torch.from_numpy(values.astype(np.float32))


def assert_probabilities(reply, expected: Tensor) -> None:
    """Hold all of a picture's probabilities against torchvision's."""
    found = probabilities(reply, len(expected))
    assert (found - expected).abs().max() < TOLERANCE  # also false if one is missing
    order = [category.probability for category in reply.classification.categories]
    assert order == sorted(order, reverse=True)
    assert reply.classification.categories[0].index == expected.argmax()


def assert_embedding(found: Tensor, expected: Tensor) -> None:
    assert torch.cosine_similarity(found, expected, dim=0) > 0.9999
    assert (found - expected).abs().max() <= 1e-3 * expected.abs().max()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", [png, raw])
async def test_single_image_matches_torchvision(stub, variants, name, form):
    variant = variants[name]
    for number, picture in enumerate(variant.pictures):
        reply = await classify(
            stub,
            form(picture),
            variant=name,
            top_k=variant.probabilities.shape[1],
            include_embedding=True,
        )
        assert (reply.timing.batch_size, reply.variant.name) == (1, name)
        assert_probabilities(reply, variant.probabilities[number])
        assert_embedding(vector(reply.classification.embedding), variant.embeddings[number])


async def test_mixed_batches_of_variants_match_torchvision(settings, variants):
    # Nothing starts before its batch is full, so four calls of a variant are one batch for certain.
    async with (
        serving(**settings, max_queue_delay_ms=10_000) as server,
        connected(server) as channel,
    ):
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        calls = []
        for name, variant in variants.items():
            one, two, three, four = map(png, variant.pictures)
            count = variant.probabilities.shape[1]
            half = result_pb2.EMBEDDING_TYPE_FLOAT16
            calls += [
                classify(stub, one, variant=name, top_k=count),
                classify(stub, two, variant=name, top_k=1, include_embedding=True),
                embed(stub, three, variant=name),
                embed(stub, four, variant=name, l2_normalize=True, type=half),
            ]
        replies = await asyncio.gather(*calls)
    for number, (name, variant) in enumerate(variants.items()):
        mine = replies[4 * number : 4 * number + 4]
        assert [reply.variant.name for reply in mine] == [name] * 4
        assert [reply.timing.batch_size for reply in mine] == [4] * 4
        one, two, three, four = mine
        assert_probabilities(one, variant.probabilities[0])
        assert not one.classification.HasField("embedding")
        (top,) = two.classification.categories
        assert top.index == variant.probabilities[1].argmax()
        expected = variant.probabilities[1].max().item()
        assert top.probability == pytest.approx(expected, abs=TOLERANCE)
        assert_embedding(vector(two.classification.embedding), variant.embeddings[1])
        assert_embedding(vector(three.embedding), variant.embeddings[2])
        assert four.embedding.type == result_pb2.EMBEDDING_TYPE_FLOAT16
        assert_embedding(
            vector(four.embedding), torch.nn.functional.normalize(variant.embeddings[3], dim=0)
        )


# Not the int8 variant: rounding to 8 bits makes more of one level than this tolerance holds.
@pytest.mark.parametrize("name", ["mine", "IMAGENET1K_V2"])
@pytest.mark.parametrize("photo", PHOTOS, ids=lambda path: path.name)
async def test_photo_file_matches_torchvision(stub, variants, name, photo):
    # The resize may differ by one level of 255 from Pillow's, so this is near and not equal.
    expected = variants[name].reference([Image.open(photo).convert("RGB")])
    image = image_pb2.Image(encoded=photo.read_bytes())
    reply = await classify(stub, image, variant=name, include_embedding=True)
    found = vector(reply.classification.embedding)
    assert torch.cosine_similarity(found, expected[1][0], dim=0) >= 0.999
    top = reply.classification.categories[0]
    assert top.index == expected[0][0].argmax()


async def test_each_variant_has_its_own_labels_digest_and_space(stub, variants):
    seen = set()
    for name, variant in variants.items():
        reply = await classify(stub, png(variant.pictures[0]), variant=name, include_embedding=True)
        top = reply.classification.categories[0]
        labels = INT8.meta["categories"] if name != "mine" else [f"kind {i}" for i in range(37)]
        assert top.label == labels[top.index]
        assert len(reply.classification.categories) == 5
        space = reply.classification.embedding.space
        assert space == f"{name}@{reply.variant.digest[:12]}"
        seen.add(reply.variant.digest)
    assert len(seen) == len(variants)
