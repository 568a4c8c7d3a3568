"""Weights files that tests make, of the same format as the real ones.

Random weights alone would not do: their answers are near uniform and much alike for every picture,
so that nearly any fault stays within a tolerance. These networks are calibrated until two photos
have distant embeddings and a first category well above the rest.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import ResNet, ResNet50_Weights, WeightsEnum, quantization, resnet50

from resnet50_server.variants.official import official_facts
from tests.support.pictures import PHOTOS, photo_like

StateDict = dict[str, Any]

# torch warns that quantized tensors and typed storage will go; torchvision's int8 files hold both.
ignore_torchs_plans_for_int8 = [
    pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning"),
]

# Standard deviation of the logits: a first category of 0.1 to 0.9 among 1000.
SHARPNESS = 3.0
# Added to the seed of a head: with 138, photos have a first category well above the second by the
# networks of seed 0, which are quantized, and the checkpoints of `benchmarks.expected` are unlike.
HEADS = 138
# Names a folder that the processes of a test run share, see `tests/conftest.py`.
FOLDER_VARIABLE = "TEST_WEIGHTS_DIR"
# Key of the embeddings of `photos` in the files of such weights.
EMBEDDINGS = "embeddings"

TRANSFORM = {
    "resize": 224,
    "crop": 224,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}


@functools.cache
def photos() -> Tensor:
    """Photos and what resembles them, normalised: float32 [N, 3, 224, 224]."""
    transform = ResNet50_Weights.DEFAULT.transforms()
    pictures = [Image.open(path).convert("RGB") for path in PHOTOS]
    pictures += [photo_like(320, 240, seed) for seed in range(4)]
    return torch.stack([transform(picture) for picture in pictures])


def computed_once(compute: Callable[[int], StateDict]) -> Callable[[int], StateDict]:
    """Return a function whose results are computed once for all processes that run tests.

    The others map the first one's file, so that all of them share the memory.

    Args:
        compute: From the seed; its name is the file's.
    """

    @functools.cache
    def read_or_compute(seed: int) -> StateDict:
        folder = os.environ.get(FOLDER_VARIABLE)
        if folder is None:  # outside of a test run
            return compute(seed)
        path = Path(folder) / f"{compute.__name__}-{seed}.pth"
        path.parent.mkdir(exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                torch.save(compute(seed), path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # typed storage, see above
            state: StateDict = torch.load(path, mmap=True, weights_only=False)
        return state

    return read_or_compute


@computed_once
def _trained_like(seed: int) -> StateDict:
    """Return a state dict without its head, and the embeddings of `photos` by it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = resnet50(weights=None)
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = None  # the running statistics become those of the next batch
            nn.init.uniform_(norm.weight, 0.8, 1.2)
            nn.init.uniform_(norm.bias, -0.1, 0.1)
        with torch.inference_mode():
            model.train()(photos())
    return _with_embeddings(model.eval())


@computed_once
def _calm(seed: int) -> StateDict:
    """Return the same of a network whose blocks add little."""
    state = _with_head(_trained_like(seed), seed, 1)
    for key in state:
        if key.endswith(("bn3.weight", "bn3.bias")):
            state[key] = state[key] * 0.05
    return _with_embeddings(torchvision_model(state))


def _with_embeddings(model: ResNet) -> StateDict:
    state = {key: value.clone() for key, value in model.state_dict().items()}
    del state["fc.weight"], state["fc.bias"]
    return state | {EMBEDDINGS: run(model, photos())[1]}


def _with_head(body: StateDict, seed: int, categories: int) -> StateDict:
    """Return a state dict whose head is drawn, and scaled to the embeddings of photos."""
    state = dict(body)
    embeddings = state.pop(EMBEDDINGS)
    centre = embeddings.mean(dim=0)
    spread = (embeddings - centre).norm(dim=1).mean()
    generator = torch.Generator().manual_seed(seed + HEADS)
    weight = torch.randn(categories, len(centre), generator=generator) * (SHARPNESS / spread)
    return state | {"fc.weight": weight, "fc.bias": -weight @ centre}


@functools.cache
def trained_like(seed: int = 0, categories: int = 1000) -> StateDict:
    """Return a float ResNet50 state dict that answers like a trained one: decidedly.

    Args:
        seed: Of the weights.
        categories: How many the head tells apart.
    """
    return _with_head(_trained_like(seed), seed, categories)


@functools.cache
def calm(seed: int = 0, categories: int = 1000) -> StateDict:
    """Return a float state dict whose answers hardly change when numbers in between do.

    The blocks add little to what passes them by, so rounding does not grow from block to block, as
    it does in other networks of random weights.

    Args:
        seed: Of the weights.
        categories: How many the head tells apart.
    """
    return _with_head(_calm(seed), seed, categories)


def trained_like_int8(seed: int = 0) -> StateDict:
    """Return the state dict of torchvision's int8 ResNet50, of the published files' format.

    Args:
        seed: Of the float weights behind it.
    """
    return _trained_like_int8(seed)


@computed_once
def _trained_like_int8(seed: int) -> StateDict:
    return int8_of(trained_like(seed))


def int8_of(state: StateDict) -> StateDict:
    """Return a float state dict of 1000 categories in the format of torchvision's int8 files."""
    model = unfilled(lambda: quantization.resnet50(weights=None, quantize=False))
    model.load_state_dict(state)
    model.eval()
    # As torchvision's quantize_model, but calibrated with photos instead of noise.
    model.qconfig = torch.ao.quantization.QConfig(
        activation=torch.ao.quantization.default_observer,
        weight=torch.ao.quantization.default_per_channel_weight_observer,
    )
    torch.backends.quantized.engine = "fbgemm"
    model.fuse_model()
    torch.ao.quantization.prepare(model, inplace=True)
    with torch.inference_mode():
        model(photos())
    torch.ao.quantization.convert(model, inplace=True)
    return model.state_dict()  # with its _metadata: loading depends on the versions in it


def hollow(categories: int = 10) -> StateDict:
    """Return a ResNet50 state dict of ones: the right shapes, and hardly any bytes as a .pth."""
    with torch.device("meta"):
        expected = resnet50(weights=None, num_classes=categories).state_dict()
    return {
        key: torch.ones((), dtype=value.dtype).expand(value.shape)
        for key, value in expected.items()
    }


def save(state: Any, path: Path) -> Path:
    """Write a checkpoint, in the format of the path's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def custom_variant(
    directory: Path,
    state: object,
    count: int = 10,
    checkpoint: str = "weights.pth",
    **description: Any,
) -> Path:
    """Write a custom variant's directory.

    Args:
        directory: Where.
        state: State dict of its checkpoint.
        count: How many categories its variant.json names.
        checkpoint: The checkpoint's name.
        **description: Replaces keys of its variant.json; None leaves one out.
    """
    save(state, directory / checkpoint)
    file = {
        "categories": [f"kind {index}" for index in range(count)],
        "transform": TRANSFORM,
        "description": "Made by a test.",
    } | description
    kept = {key: value for key, value in file.items() if value is not None}
    (directory / "variant.json").write_text(json.dumps(kept))
    return directory


def publish(
    monkeypatch: pytest.MonkeyPatch, member: WeightsEnum, state: object, folder: Path
) -> Path:
    """Replace the URL of an official variant by that of a file of ours.

    The URL is a file:// one and its name carries the file's hash, so that all of the real loading
    happens but the network.

    Returns:
        Where the URL points to.
    """
    unnamed = save(state, folder / "unnamed.pth")
    digest = hashlib.sha256(unnamed.read_bytes()).hexdigest()
    # The name keeps its form: one published name has "_" before the hash, the others "-".
    path = unnamed.rename(folder / (Path(member.url).stem[:-8] + f"{digest[:8]}.pth"))
    fact = official_facts()["variants"][member.name]
    monkeypatch.setitem(fact, "url", path.as_uri())
    return path


def torchvision_model(state: StateDict) -> ResNet:
    """Return torchvision's own model, float or int8, with these weights."""
    if "quant.scale" in state:
        torch.backends.quantized.engine = "fbgemm"
        model = quantization.resnet50(weights=None, quantize=True)
    else:
        model = unfilled(lambda: resnet50(weights=None, num_classes=len(state["fc.bias"])))
    model.load_state_dict(state)
    return model.eval()


def unfilled(build: Callable[[], Any]) -> Any:
    """Return a network whose numbers are to be loaded; drawing them takes most of a test's time."""
    with torch.device("meta"):
        network = build()
    return network.to_empty(device="cpu")


def run(model: ResNet, images: Tensor) -> tuple[Tensor, Tensor]:
    """Run torchvision's own model, untouched.

    Args:
        model: In eval mode.
        images: float32 [N, 3, H, W], normalised.

    Returns:
        Probabilities [N, categories] and embeddings [N, 2048], float32.
    """
    pooled: list[Tensor] = []
    hook = model.avgpool.register_forward_hook(lambda *call: pooled.append(call[2].dequantize()))
    try:
        with torch.inference_mode():
            probabilities = model(images).softmax(dim=1)
    finally:
        hook.remove()
    return probabilities, pooled[0].flatten(1)


def assert_telling(probabilities: Tensor, embeddings: Tensor) -> None:
    """Make sure that equality with these answers would mean something."""
    top = probabilities.max(dim=1).values
    assert top.mean() > 0.2
    assert top.min() > 0.05
    cosines = nn.functional.normalize(embeddings) @ nn.functional.normalize(embeddings).T
    assert (cosines - 2 * torch.eye(len(cosines))).max() < 0.99
