"""Compare a server's answers with torchvision's own for the same images.

    python examples/compare_torchvision.py IMAGENET1K_V2 cat.jpg dog.jpg
    python examples/compare_torchvision.py pets=pets/ cat.jpg

The first argument is what `resnet50-server serve --variants` takes. Needs torch, torchvision and
safetensors here. RESNET50_SERVER names the model server.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights, resnet50
from torchvision.transforms._presets import ImageClassification

from resnet50_client import Client


def official(name: str) -> tuple[nn.Module, Callable[[Image.Image], Tensor]]:
    """Return torchvision's network and transform of published weights."""
    weights = ResNet50_Weights[name]
    return resnet50(weights=weights).eval(), weights.transforms()


def custom(directory: Path) -> tuple[nn.Module, Callable[[Image.Image], Tensor]]:
    """Return the network and transform of a directory with variant.json."""
    facts = json.loads((directory / "variant.json").read_text())
    model = resnet50(num_classes=len(facts["categories"]))
    model.load_state_dict(load_file(directory / "weights.safetensors"))
    size = facts["transform"]
    transform = ImageClassification(
        crop_size=size["crop"], resize_size=size["resize"], mean=size["mean"], std=size["std"]
    )
    return model.eval(), transform


@torch.inference_mode()
def main() -> None:
    """Print, for each image, both answers and the largest difference of their probabilities."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("variant", help="a name from torchvision, or NAME=DIRECTORY")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    options = parser.parse_args()
    name, _, directory = options.variant.partition("=")
    model, transform = custom(Path(directory)) if directory else official(name)
    with Client.from_environment(variant=name) as client:
        for path in options.images:
            image = Image.open(path).convert("RGB")
            expected = model(transform(image)[None]).softmax(dim=1)[0]
            served = client.classify(path, top_k=5)
            gap = max(abs(one.probability - float(expected[one.index])) for one in served)
            same = int(expected.argmax()) == served.top.index
            print(f"{path}: {served.top!r}, {'as' if same else 'NOT as'} torchvision; {gap:.1e}")


if __name__ == "__main__":
    main()
