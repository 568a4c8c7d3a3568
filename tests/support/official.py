"""Write torchvision's facts about its ResNet50 weights to the server's copy of them.

python -m tests.support.official
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from torchvision.models import ResNet50_Weights
from torchvision.models.quantization import ResNet50_QuantizedWeights

COPY = Path(__file__).resolve().parents[2] / "server/resnet50_server/variants/official.json"


def plain_text(documentation: str) -> str:
    """Return torchvision's reStructuredText as one line without markup."""
    text = re.sub(r"`([^`<]+?)\s*<[^>]+>`_+", r"\1", " ".join(documentation.split()))
    return text.replace("`", "")


def facts_of(member: Any) -> dict[str, Any]:
    preset = member.transforms()
    (resize,), (crop,) = preset.resize_size, preset.crop_size
    dataset, accuracy = next(iter(member.meta["_metrics"].items()))
    return {
        "description": plain_text(member.meta["_docs"]),
        "url": member.url,
        "size_mb": member.meta["_file_size"],
        "parameters": member.meta["num_params"],
        "backend": member.meta.get("backend"),
        "accuracy": {
            "dataset": dataset,
            "acc_at_1": accuracy["acc@1"],
            "acc_at_5": accuracy["acc@5"],
        },
        "transform": {
            "resize": resize,
            "crop": crop,
            "mean": list(preset.mean),
            "std": list(preset.std),
            "interpolation": preset.interpolation.value,
        },
    }


def published() -> dict[str, Any]:
    """Return the content of the copy, from the installed torchvision."""
    members = (*ResNet50_Weights, *ResNet50_QuantizedWeights)
    (categories,) = {tuple(member.meta["categories"]) for member in members}
    return {
        "default": ResNet50_Weights.DEFAULT.name,
        "variants": {member.name: facts_of(member) for member in members},
        "categories": list(categories),
    }


if __name__ == "__main__":
    COPY.write_text(json.dumps(published(), indent=1, ensure_ascii=False) + "\n")
