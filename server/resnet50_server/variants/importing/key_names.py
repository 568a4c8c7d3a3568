"""Names of a ResNet's tensors in other libraries, and their names in torchvision."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Wrappers of training code that add a part to the names, and nothing to the network.
WRAPPERS = {
    "module": "DataParallel",
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "_forward_module": "Lightning's strategy",
}
# Positions in torch.nn.Sequential(*resnet50().children()).
_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
_BATCHNORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_BLOCKS = (3, 4, 6, 3)
_HF_STEM = {"convolution": "conv1", "normalization": "bn1"}
_HF_LAYER = re.compile(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(.*)")
_HF_PART = re.compile(r"layer\.(\d+)\.(convolution|normalization)\.(\w+)")
_HF_SHORTCUT = re.compile(r"shortcut\.(convolution|normalization)\.(\w+)")


@dataclass(frozen=True)
class Scheme:
    """How a library names a ResNet's tensors.

    Attributes:
        name: The library, or the way it builds the network; empty for torchvision's own names.
        anchor: Matches one key of each ResNet; its group is the prefix of the others.
    """

    name: str
    anchor: re.Pattern[str]


TORCHVISION = Scheme("", re.compile(r"((?:.*\.)?)layer1\.0\.conv1\.weight"))
HUGGING_FACE = Scheme(
    "Hugging Face's ResNet",
    re.compile(r"((?:.*\.)?)encoder\.stages\.0\.layers\.0\.layer\.0\.convolution\.weight"),
)
CHILDREN = Scheme(
    "Sequential(*resnet50().children())", re.compile(r"((?:.*\.)?)4\.0\.conv1\.weight")
)
SCHEMES = (TORCHVISION, HUGGING_FACE, CHILDREN)


def without_wrappers(tensors: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return a state dict without the parts that wrappers add to its names.

    Returns:
        The state dict, and the wrappers that were found: "'module.' (DataParallel)".
    """
    renamed = {
        ".".join(part for part in key.split(".") if part not in WRAPPERS): value
        for key, value in tensors.items()
    }
    if len(renamed) < len(tensors):  # two tensors would have one name
        return dict(tensors), []
    parts = {part for key in tensors for part in key.split(".")}
    return renamed, [f"'{part}.' ({name})" for part, name in WRAPPERS.items() if part in parts]


def find_networks(tensors: Mapping[str, Any]) -> list[tuple[str, Scheme]]:
    """Return the prefix and the scheme of each ResNet among the tensors, in their order."""
    found = []
    for key in tensors:
        for scheme in SCHEMES:
            match = scheme.anchor.fullmatch(key)
            if match is not None and (scheme is not CHILDREN or f"{match[1]}0.weight" in tensors):
                found.append((match[1], scheme))
    return found


def torchvision_name(key: str, scheme: Scheme) -> str:
    """Return a tensor's name in torchvision; names that the scheme does not know are unchanged.

    Args:
        key: Its name after the prefix.
        scheme: The scheme of the network.
    """
    if scheme is CHILDREN:
        first, _, rest = key.partition(".")
        return f"{_CHILDREN[first]}.{rest}" if first in _CHILDREN else key
    if scheme is HUGGING_FACE:
        return _from_hugging_face(key)
    return key


@functools.cache
def resnet50_names() -> dict[str, None]:
    """Return the names of ResNet50's tensors in torchvision, in order, without the head's."""
    names = ["conv1.weight", *(f"bn1.{one}" for one in _BATCHNORM)]
    for layer, blocks in enumerate(_BLOCKS, 1):
        for block in range(blocks):
            start = f"layer{layer}.{block}"
            for number in (1, 2, 3):
                names.append(f"{start}.conv{number}.weight")
                names += [f"{start}.bn{number}.{one}" for one in _BATCHNORM]
            if block == 0:
                names.append(f"{start}.downsample.0.weight")
                names += [f"{start}.downsample.1.{one}" for one in _BATCHNORM]
    return dict.fromkeys(names)


def _from_hugging_face(key: str) -> str:
    parts = key.split(".")
    if parts[:2] == ["embedder", "embedder"] and len(parts) == 4 and parts[2] in _HF_STEM:
        return f"{_HF_STEM[parts[2]]}.{parts[3]}"
    layer = _HF_LAYER.fullmatch(key)
    if layer is None:
        return key
    block = f"layer{int(layer[1]) + 1}.{layer[2]}"
    if part := _HF_PART.fullmatch(layer[3]):
        kind = "conv" if part[2] == "convolution" else "bn"
        return f"{block}.{kind}{int(part[1]) + 1}.{part[3]}"
    if shortcut := _HF_SHORTCUT.fullmatch(layer[3]):
        return f"{block}.downsample.{0 if shortcut[1] == 'convolution' else 1}.{shortcut[2]}"
    return key
