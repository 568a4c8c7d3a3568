"""A custom variant, from training to a directory that the server takes: handwritten digits.

    python examples/digits.py OUT [--size 48] [--backbone auto|random|IMAGENET1K_V1|IMAGENET1K_V2]
        [--images FOLDER]
    resnet50-server serve --variants digits=OUT

It builds a whole ResNet50 in seconds, on any machine and without a network: the backbone is frozen,
only the head is fitted, by ridge regression, on the 8 x 8 digits that scikit-learn ships. Where
torchvision's ImageNet weights are present they are the backbone, and this is how a fine-tuned
checkpoint is served; elsewhere the backbone is random but seeded, its BatchNorm statistics taken
from the digits, which is enough for them.

`write` makes the files of a variant: weights.safetensors and variant.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.linear_model import Ridge
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torchvision.models import ResNet, ResNet50_Weights, resnet50
from torchvision.models.resnet import Bottleneck
from torchvision.transforms._presets import ImageClassification

CATEGORIES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
BATCH = 64


class Digits(NamedTuple):
    """The data set, split: 8 x 8 grey pictures and which digit each one is."""

    train: list[Image.Image]
    train_labels: np.ndarray
    held_out: list[Image.Image]
    held_out_labels: np.ndarray


def digits() -> Digits:
    """Return scikit-learn's 1797 digits, 400 of them held out, always the same ones."""
    data = load_digits()
    images = [Image.fromarray(np.rint(image * 255 / 16).astype(np.uint8)) for image in data.images]
    train, held_out, train_labels, held_out_labels = train_test_split(
        images, data.target, test_size=400, random_state=0, stratify=data.target
    )
    return Digits(train, train_labels, held_out, held_out_labels)


def backbone(choice: str) -> tuple[ResNet, str]:
    """Return a frozen ResNet50 and what it is; "auto" takes ImageNet weights if they are here."""
    here = Path(torch.hub.get_dir()) / "checkpoints"
    members = {weights.name: weights for weights in ResNet50_Weights}
    if choice == "auto":
        present = [name for name, one in members.items() if (here / Path(one.url).name).exists()]
        choice = max(present, default="random")
    torch.manual_seed(0)
    if choice != "random":
        return resnet50(weights=members[choice]), choice
    model = resnet50(weights=None)
    for module in model.modules():
        if isinstance(module, Bottleneck):
            # At full strength 16 random residual branches scramble the picture beyond recognition
            # (34% of the held-out digits against 97%).
            nn.init.constant_(module.bn3.weight, 0.1)
    return model, choice


def transform_of(images: list[Image.Image], size: int) -> ImageClassification:
    """Return the preprocessing: no cropping, and the mean and spread of these very images."""
    pixels = np.stack([np.asarray(image) for image in images]) / 255.0
    mean, std = [float(pixels.mean())] * 3, [float(pixels.std())] * 3
    return ImageClassification(crop_size=size, resize_size=size, mean=mean, std=std)


def prepare(images: list[Image.Image], transform: ImageClassification) -> Tensor:
    """Return the network's input: float32 [N, 3, size, size]."""
    return torch.stack([transform(image.convert("RGB")) for image in images])


@torch.inference_mode()
def calibrate(model: ResNet, inputs: Tensor) -> None:
    """Set each BatchNorm's statistics to those of these inputs, without touching a weight."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # a plain average over all batches
    model.train()
    for batch in inputs.split(BATCH):
        model(batch)
    model.eval()


@torch.inference_mode()
def embed(model: ResNet, inputs: Tensor) -> np.ndarray:
    """Return what the head sees: float32 [N, 2048]."""
    head, model.fc = model.fc, nn.Identity()
    try:
        return np.concatenate([model(batch).numpy() for batch in inputs.split(BATCH)])
    finally:
        model.fc = head


def fit_head(model: ResNet, vectors: np.ndarray, labels: np.ndarray) -> None:
    """Replace the head by one that tells the digits apart."""
    mean, spread = vectors.mean(axis=0), vectors.std(axis=0) + 1e-6
    wanted = np.eye(len(CATEGORIES))[labels]
    ridge = Ridge(alpha=300.0).fit((vectors - mean) / spread, wanted)
    # The regression's outputs lie between 0 and 1; times 10, softmax makes probabilities of them.
    weight = 10.0 * ridge.coef_ / spread
    bias = 10.0 * ridge.intercept_ - weight @ mean
    model.fc = nn.Linear(vectors.shape[1], len(CATEGORIES))
    with torch.no_grad():
        model.fc.weight.copy_(torch.from_numpy(weight))
        model.fc.bias.copy_(torch.from_numpy(bias))


def write(
    out: Path, model: ResNet, transform: ImageClassification, description: str, accuracy: float
) -> None:
    """Write what the server needs of a variant."""
    out.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    weights = out / "weights.safetensors"
    save_file(state, weights)
    weights.chmod(0o644)  # safetensors makes it for its owner only
    facts = {
        "categories": CATEGORIES,
        "transform": {
            "resize": transform.resize_size[0],
            "crop": transform.crop_size[0],
            "mean": transform.mean,
            "std": transform.std,
            "interpolation": transform.interpolation.value,
        },
        "description": description,
        "published_accuracy": {
            "dataset": "scikit-learn digits, 400 held out",
            "acc_at_1": round(100 * accuracy, 2),
        },
    }
    (out / "variant.json").write_text(json.dumps(facts, indent=2) + "\n")


def build(out: Path, size: int = 48, choice: str = "auto") -> float:
    """Build the variant in the directory `out`; return its accuracy on held-out digits, 0 to 1."""
    data = digits()
    model, choice = backbone(choice)
    transform = transform_of(data.train, size)
    train = prepare(data.train, transform)
    if choice == "random":
        calibrate(model, train)
    model.eval()
    fit_head(model, embed(model, train), data.train_labels)
    with torch.inference_mode():
        batches = prepare(data.held_out, transform).split(BATCH)
        answers = torch.cat([model(batch).argmax(dim=1) for batch in batches]).numpy()
    accuracy = float((answers == data.held_out_labels).mean())
    kind = "random, seeded" if choice == "random" else choice
    write(out, model, transform, f"Handwritten digits. Backbone: {kind}.", accuracy)
    return accuracy


def save_held_out(folder: Path) -> None:
    """Write the held-out digits as FOLDER/CATEGORY/NUMBER.png, for `resnet50 evaluate`."""
    data = digits()
    for number, (image, label) in enumerate(zip(data.held_out, data.held_out_labels, strict=True)):
        path = folder / CATEGORIES[label] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="the directory to write")
    parser.add_argument("--size", type=int, default=48, help="side of the network's input")
    parser.add_argument("--backbone", default="auto", help="auto, random, or ImageNet weights")
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER", help="write the held-out digits to this folder"
    )
    options = parser.parse_args()
    if options.images is not None:
        save_held_out(options.images)
    accuracy = build(options.out, options.size, options.backbone)
    print(f"{options.out}: {100 * accuracy:.1f}% of 400 held-out digits")
    print(f"serve it: resnet50-server serve --variants digits={options.out}")


if __name__ == "__main__":
    main()
