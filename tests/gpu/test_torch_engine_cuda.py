"""The torch engine on CUDA against torchvision on the CPU.

Written on a machine without CUDA, where they are skipped: they have never run. Their tolerances
come from the same engine on the CPU: in fp16 probabilities were at most 0.04 and cosines 0.0002
away from torchvision's fp32, in bf16 0.16 and 0.004. Each has about twice that here.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models import ResNet50_Weights

from resnet50.v1 import variant_pb2, variant_pb2_grpc
from resnet50_server.engines.torch_engine import TorchEngine
from resnet50_server.images.transform import Transform
from resnet50_server.lifecycle.engine_builder import choose_device
from resnet50_server.settings import Settings
from resnet50_server.variants.network import Network, fold_batchnorm
from resnet50_server.variants.spec import parse_variant
from tests.support import weights
from tests.support.serving import connected, serving

pytestmark = pytest.mark.gpu

TRANSFORM = Transform.of(ResNet50_Weights.DEFAULT.transforms())
CATEGORIES = 1000


@pytest.fixture(scope="module")
def pixels() -> list[np.ndarray]:
    """Photos as engines get them: uint8 [224, 224, 3]."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (TRANSFORM.mean, TRANSFORM.std))
    levels = ((weights.photos() * std + mean) * 255).round().to(torch.uint8)
    return [np.ascontiguousarray(one) for one in levels.permute(0, 2, 3, 1).numpy()]


@pytest.fixture(scope="module")
def reference(pixels) -> tuple[Tensor, Tensor]:
    """torchvision's probabilities and embeddings, in fp32 on the CPU."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (TRANSFORM.mean, TRANSFORM.std))
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    images = (images.float() / 255 - mean) / std
    probabilities, embeddings = weights.run(
        weights.torchvision_model(weights.trained_like()), images
    )
    weights.assert_telling(probabilities, embeddings)
    return probabilities, embeddings


def engine(precision: str) -> TorchEngine:
    model = weights.torchvision_model(weights.trained_like())
    fold_batchnorm(model)
    return TorchEngine(Network(model), TRANSFORM, torch.device("cuda:0"), precision)


def answers(engine: TorchEngine, images: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Return probabilities [N, categories] by index, and embeddings [N, 2048]."""
    output = engine.run(images, CATEGORIES, True)
    assert output.embeddings.dtype == output.probabilities.dtype == np.float32
    found = torch.full((len(images), CATEGORIES), torch.nan)
    found.scatter_(1, torch.from_numpy(output.indices), torch.from_numpy(output.probabilities))
    return found, torch.from_numpy(output.embeddings)


@pytest.mark.parametrize(
    ("precision", "probability", "cosine"),
    [
        # cuDNN convolves fp32 in TF32 unless told otherwise: a mantissa as short as fp16's.
        ("fp32", 0.08, 0.9995),
        ("fp16", 0.08, 0.9995),
        ("bf16", 0.3, 0.993),
    ],
)
def test_engine_answers_as_torchvision(pixels, reference, precision, probability, cosine):
    probabilities, embeddings = answers(engine(precision), pixels)
    assert (probabilities - reference[0]).abs().max() < probability
    assert torch.cosine_similarity(embeddings, reference[1]).min() > cosine


def test_fp32_without_tf32_matches_torchvision(pixels, reference, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    probabilities, embeddings = answers(engine("fp32"), pixels)
    assert (probabilities - reference[0]).abs().max() < 1e-4
    assert torch.cosine_similarity(embeddings, reference[1]).min() > 0.9999


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 0.08), ("fp16", 0.08)])
def test_picture_is_answered_alike_alone_and_in_a_batch(pixels, precision, tolerance):
    one = engine(precision)
    together, vectors = answers(one, pixels)
    for number, image in enumerate(pixels):
        alone, vector = answers(one, [image])
        assert (alone[0] - together[number]).abs().max() < tolerance
        assert torch.cosine_similarity(vector[0], vectors[number], dim=0) > 0.9995


def test_int8_weights_stay_on_the_cpu():
    settings = Settings(variants=["IMAGENET1K_FBGEMM_V2"], device="cuda:0")
    assert choose_device(parse_variant("IMAGENET1K_FBGEMM_V2"), settings) == ("cpu", "int8")


async def test_server_takes_the_gpu_and_fp16_by_itself():
    async with (
        serving(variants=["x=random:0"], engine="auto", max_batch_size=4) as server,
        connected(server) as channel,
    ):
        stub = variant_pb2_grpc.VariantServiceStub(channel)
        (variant,) = (await stub.ListVariants(variant_pb2.ListVariantsRequest())).variants
    assert (variant.engine, variant.device, variant.precision) == ("cuda-graphs", "cuda:0", "fp16")
