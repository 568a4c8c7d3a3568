"""Network, images and right answers of the comparison, and the check that peers give them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.models import ResNet50_Weights, resnet50

from benchmarks.compare.wires import Answer
from benchmarks.overhead import photo
from resnet50_server.images.transform import Transform
from resnet50_server.variants.transform_file import transform_json

IMAGES = 8
TOLERANCE = 1e-3


class WrongAnswer(Exception):
    """A peer answers otherwise than PyTorch."""


def make_images(folder: Path) -> tuple[str, ...]:
    """Write JPEGs of 512 x 384 that differ in colours and position; return their names."""
    pixels = np.asarray(Image.open(io.BytesIO(photo())), dtype=np.float64)
    draw = np.random.default_rng(1)
    names = []
    for number in range(IMAGES):
        tinted = np.roll(0.5 * pixels + 0.5 * draw.uniform(0, 255, 3), 64 * number, axis=1)
        path = folder / f"{number}.jpg"
        Image.fromarray(tinted.astype(np.uint8)).save(path, quality=95)
        names.append(str(path))
    return tuple(names)


def make_variant(folder: Path, names: tuple[str, ...]) -> Path:
    """Write a variant's directory; return its state dict.

    The weights are random. The last layer's bias removes the mean of the images' logits, so that
    the images have different categories, as they do for a trained network.
    """
    torch.manual_seed(0)
    model = resnet50(weights=None).eval()
    transform = ResNet50_Weights.IMAGENET1K_V2.transforms()
    images = torch.stack([transform(Image.open(name).convert("RGB")) for name in names])
    with torch.no_grad():
        model.fc.bias -= model(images).mean(dim=0)
    folder.mkdir(exist_ok=True)
    torch.save(model.state_dict(), folder / "weights.pth")
    described = {
        "categories": [f"category {index}" for index in range(1000)],
        "transform": transform_json(Transform.of(transform)),
    }
    (folder / "variant.json").write_text(json.dumps(described))
    return folder / "weights.pth"


def reference(weights: Path, names: tuple[str, ...]) -> list[list[float]]:
    """Return the probabilities of each image by plain PyTorch, one image at a time."""
    model = resnet50(weights=None)
    model.load_state_dict(torch.load(weights, weights_only=True))
    model.eval()
    transform = ResNet50_Weights.IMAGENET1K_V2.transforms()
    with torch.inference_mode():
        return [
            model(transform(Image.open(name).convert("RGB"))[None]).softmax(dim=1)[0].tolist()
            for name in names
        ]


def check(answers: list[Answer], expected: list[list[float]]) -> float:
    """Compare a peer's answers with the right ones; return the largest difference.

    Categories whose probabilities are closer than the tolerance may change places.

    Args:
        answers: One per image.
        expected: Probabilities of all categories, per image.

    Raises:
        WrongAnswer: A category is not among the five most probable, or a probability differs by
            more than `TOLERANCE`.
    """
    if len(answers) != len(expected):
        raise WrongAnswer(f"{len(answers)} answers to {len(expected)} images")
    largest = 0.0
    for number, (answer, right) in enumerate(zip(answers, expected, strict=True)):
        best = sorted(right, reverse=True)[: len(answer.indices)]
        if len(answer.indices) != 5 or len(set(answer.indices)) != 5:
            raise WrongAnswer(f"image {number}: categories {answer.indices}, not five")
        for index, probability, at_rank in zip(
            answer.indices, answer.probabilities, best, strict=True
        ):
            difference = max(abs(probability - right[index]), abs(probability - at_rank))
            if not difference <= TOLERANCE:
                raise WrongAnswer(
                    f"image {number}: category {index} has probability {probability:.4f};"
                    f" PyTorch: {right[index]:.4f}, and {at_rank:.4f} at this rank"
                )
            largest = max(largest, difference)
    return largest
