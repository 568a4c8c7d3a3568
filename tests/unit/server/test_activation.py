"""Sigmoid heads and networks without a head, in every engine: as plain torch computes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from resnet50_server.engines.cuda.engine import CudaEngine
from resnet50_server.engines.reference_check import ReferenceOutput
from resnet50_server.engines.stub_engines import NullEngine
from resnet50_server.errors import WeightsError
from resnet50_server.lifecycle.engine_builder import (
    build_engine,
    check_reference,
    prepare_variant,
    warm_up,
)
from resnet50_server.settings import Settings
from resnet50_server.variants.network import build_network, read_weights
from resnet50_server.variants.spec import parse_variant
from tests.support import weights
from tests.support.host_device import HostDevice
from tests.support.pictures import encode, photo_like

COUNT, CROP = 10, 64
ENGINES = ("torch", "onnxruntime", "openvino")
TRANSFORM = weights.TRANSFORM | {"resize": CROP, "crop": CROP}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds a variant with a sigmoid head, and one without a head, of the same weights."""
    folder = tmp_path_factory.mktemp("variants")
    state = weights.calm(3, COUNT)
    weights.custom_variant(folder / "tags", state, COUNT, transform=TRANSFORM, activation="sigmoid")
    backbone = {key: value for key, value in state.items() if not key.startswith("fc.")}
    weights.custom_variant(folder / "vectors", backbone, 0, transform=TRANSFORM)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A graph cache, so that each graph is exported once."""
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return [np.asarray(photo_like(CROP, CROP, 100 + seed)) for seed in range(3)]


@pytest.fixture(scope="module")
def expected(images) -> tuple[np.ndarray, np.ndarray]:
    """Sigmoid probabilities and embeddings by torchvision's own network."""
    model = weights.torchvision_model(weights.calm(3, COUNT))
    mean, std = (torch.tensor(TRANSFORM[key]).view(3, 1, 1) for key in ("mean", "std"))
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
    pooled: list[torch.Tensor] = []
    model.avgpool.register_forward_hook(lambda *call: pooled.append(call[2]))
    with torch.inference_mode():
        probabilities = model((pixels - mean) / std).sigmoid().numpy()
    return probabilities, pooled[0].flatten(1).numpy()


def in_order(output) -> np.ndarray:
    found = np.full_like(output.probabilities, np.nan)
    np.put_along_axis(found, output.indices, output.probabilities, axis=1)
    return found


def opened(argument: str, cache, **options):
    settings = Settings(variants=[argument], device="cpu", graph_cache_dir=cache, **options)
    spec = parse_variant(argument)
    prepared = prepare_variant(spec, settings)
    built = build_engine(prepared, settings)
    # As the loader does, before a variant serves.
    warm_up(built.engine, spec, 2)
    check_reference(prepared, built)
    return built


@pytest.mark.parametrize("engine", [*ENGINES, "auto"])
def test_sigmoid_head_answers_as_plain_torch(folder, cache, images, expected, engine):
    built = opened(f"tags={folder / 'tags'}", cache, engine=engine)
    output = built.engine.run(images, COUNT, True)
    assert np.abs(in_order(output) - expected[0]).max() < 1e-4
    assert (expected[0].sum(axis=1) > 1.5).any()  # so that softmax would not pass
    assert (np.diff(output.probabilities, axis=1) <= 0).all()


@pytest.mark.parametrize("engine", [*ENGINES, "auto"])
def test_network_without_head_embeds_as_plain_torch(folder, cache, images, expected, engine):
    built = opened(f"vectors={folder / 'vectors'}", cache, engine=engine)
    output = built.engine.run(images, 0, True)
    assert output.indices.shape == output.probabilities.shape == (len(images), 0)
    assert np.abs(output.embeddings - expected[1]).max() < 1e-4 * expected[1].max()


@pytest.mark.parametrize("name", ["tags", "vectors"])
def test_cuda_engine_computes_both_on_the_host(folder, images, expected, name):
    spec = parse_variant(f"{name}={folder / name}")
    network = build_network(spec, read_weights(spec, folder, download=False))
    engine = CudaEngine(
        network, spec.transform, HostDevice(), "fp32", max_batch_size=4, compile_network=False
    )
    output = engine.run(images, len(spec.categories), True)
    if spec.categories:
        assert np.abs(in_order(output) - expected[0]).max() < 1e-4
    assert np.abs(output.embeddings - expected[1]).max() < 1e-4 * expected[1].max()


@pytest.mark.parametrize("name", ["tags", "vectors"])
def test_int8_made_by_the_server_keeps_them(folder, cache, tmp_path, images, expected, name):
    calibration = tmp_path / "calibration"
    calibration.mkdir()
    for seed in range(16):
        (calibration / f"{seed}.png").write_bytes(encode(photo_like(CROP, CROP, seed)))
    built = opened(
        f"{name}={folder / name}",
        cache,
        engine="onnxruntime",
        precision="int8",
        calibration_dir=calibration,
        min_int8_agreement=0.0,
    )
    output = built.engine.run(images, COUNT if name == "tags" else 0, True)
    if name == "tags":
        # Of random weights: a logit near 0 may move much.
        assert np.abs(in_order(output) - expected[0]).mean() < 0.1
    for one, two in zip(output.embeddings, expected[1], strict=True):
        assert one @ two / np.linalg.norm(one) / np.linalg.norm(two) > 0.95


def test_graph_of_another_activation_is_not_reused(folder, cache, tmp_path, images):
    other = weights.custom_variant(
        tmp_path / "plain", weights.calm(3, COUNT), COUNT, transform=TRANSFORM
    )
    sigmoid = opened(f"tags={folder / 'tags'}", cache, engine="onnxruntime")
    softmax = opened(f"plain={other}", cache, engine="onnxruntime")
    assert sigmoid.digest == softmax.digest
    sums = softmax.engine.run(images, COUNT, False).probabilities.sum(axis=1)
    assert np.abs(sums - 1).max() < 1e-4


def test_engine_with_the_wrong_activation_never_serves(folder, tmp_path):
    spec = parse_variant(f"tags={folder / 'tags'}")
    network_weights = read_weights(spec, tmp_path, download=False)
    plain = parse_variant(f"tags={folder / 'tags'}")
    object.__setattr__(plain, "activation", "softmax")
    reference = ReferenceOutput.compute(plain, network_weights)
    built = opened(f"tags={folder / 'tags'}", tmp_path, engine="torch")
    with pytest.raises(WeightsError, match="does not match these weights"):
        reference.check(built.engine, spec, "fp32")


def test_stub_engine_answers_by_the_activation():
    one = NullEngine(3, "sigmoid").run([np.zeros((4, 4, 3), np.uint8)], 3, False)
    assert np.allclose(one.probabilities, 1 / (1 + np.exp(np.arange(3))))
    none = NullEngine(0).run([np.zeros((4, 4, 3), np.uint8)], 0, True)
    assert none.probabilities.shape == (1, 0)
