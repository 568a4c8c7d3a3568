"""Facts beside a checkpoint: the config.json of Hugging Face's libraries and of timm."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .categories import names_by_index
from .key_names import HUGGING_FACE, Scheme

_ASSUMED = (
    "no config.json beside it: assumed downsample_in_bottleneck=false, as in microsoft/resnet-50"
)
# Names that Hugging Face's library makes up for categories without names.
_UNNAMED = re.compile(r"LABEL_\d+")


@dataclass(frozen=True)
class ModelCard:
    """Facts about a checkpoint that a file beside it states.

    Attributes:
        categories: Names of categories, by index; empty if it does not name them.
        transform: The `transform` of a variant.json; None if it does not say.
        activation: "softmax" or "sigmoid"; None if it does not say.
        lines: Remarks for the operator.
    """

    categories: list[str] = field(default_factory=list)
    transform: dict[str, Any] | None = None
    activation: str | None = None
    lines: tuple[str, ...] = ()


def model_card(config: dict[str, Any] | None, scheme: Scheme) -> ModelCard:
    """Return the facts in the config.json beside a checkpoint.

    Args:
        config: Its content; None if there is none.
        scheme: The scheme of the checkpoint's names.

    Raises:
        ValueError: The network differs from torchvision's although its tensors have the same names
            and shapes; says in what, as the rest of a sentence whose subject is the file.
    """
    if config is None:
        return ModelCard(lines=(_ASSUMED,) if scheme is HUGGING_FACE else ())
    if scheme is HUGGING_FACE:
        _require_same(config)
    names = names_by_index(config.get("label_names") or config.get("id2label")) or []
    if all(_UNNAMED.fullmatch(name) for name in names):
        names = []
    several = config.get("problem_type") == "multi_label_classification"
    pretrained = config.get("pretrained_cfg")
    transform = _timm_transform(pretrained) if isinstance(pretrained, Mapping) else None
    lines = ("transform: from config.json",) if transform else ()
    return ModelCard(names, transform, "sigmoid" if several else None, lines)


def _require_same(config: Mapping[str, Any]) -> None:
    if config.get("downsample_in_bottleneck"):
        raise ValueError(
            "is a ResNet-50 v1, whose stride is in the 1x1 convolution (config.json:"
            " downsample_in_bottleneck), and torchvision's is in the 3x3: train with"
            " downsample_in_bottleneck=False"
        )
    if config.get("downsample_in_first_stage"):
        raise ValueError(
            "halves the image in its first stage (config.json: downsample_in_first_stage), and"
            " torchvision's resnet50 does not: train with downsample_in_first_stage=False"
        )
    if (act := config.get("hidden_act", "relu")) != "relu":
        raise ValueError(
            f"has the activation {str(act)[:32]!r} (config.json: hidden_act), and torchvision's"
            " resnet50 has relu: train with hidden_act='relu'"
        )


def _timm_transform(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return timm's preprocessing as a transform; None if it is of another kind.

    timm resizes the shorter side to floor(size / crop_pct), then crops the centre.
    """
    try:
        channels, height, width = config["input_size"]
        share, mode = float(config["crop_pct"]), config.get("crop_mode", "center")
        mean, std = ([float(one) for one in config[key]] for key in ("mean", "std"))
        interpolation = config["interpolation"]
    except (KeyError, TypeError, ValueError):
        return None
    if channels != 3 or height != width or not 0 < share <= 1 or mode != "center":
        return None
    if interpolation not in ("nearest", "bilinear", "bicubic") or len(mean) != 3 or len(std) != 3:
        return None
    return {
        "resize": math.floor(height / share),
        "crop": height,
        "mean": mean,
        "std": std,
        "interpolation": interpolation,
    }
