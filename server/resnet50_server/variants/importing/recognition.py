"""Find a ResNet50 in the object that training code saved, under torchvision's names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from resnet50_server.runtime.texts import escaped, listed

from .architectures import other_network
from .candidates import Choice, Network, choose, networks_in, state_dicts
from .heads import Head, find_head
from .key_names import Scheme, resnet50_names, without_wrappers
from .pickles import unknown_class

# Networks of contrastive training, whose `fc` is a projection.
_CONTRASTIVE = re.compile(
    r"(?:^|\.)(?:encoder_[qk]|base_encoder|momentum_encoder|(?:online|target)_(?:encoder|network))"
    r"(?:\.|$)"
)
# Tensors of the training that no answer depends on.
_TRAINING = re.compile(
    r"(?:^|\.)(?:criterion|loss\w*|\w*metrics?|\w*acc|\w*accuracy|confmat|n_averaged|num_updates"
    r"|decay|class_weights?|pos_weight|queue\w*)(?:\.|$)"
)
_SMOOTHING = re.compile(r"resnet(?:blur|aa)\w{1,32}")
_CAFFE = re.compile(r"""style['"]?\s*[=:]\s*['"]caffe['"]""")
# Entries of a checkpoint that usually hold the network.
_MODEL_ENTRIES = ("model", "ema", "net", "network", "state_dict", "model_state_dict")


@dataclass(frozen=True)
class Recognised:
    """A ResNet50 that was found.

    Attributes:
        state: Tensors by torchvision's names, in their own dtypes; without `fc` if it has no head.
        scheme: The scheme of its names.
        changes: The differences from a plain state dict, a line each.
    """

    state: dict[str, Tensor] = field(repr=False)
    scheme: Scheme
    changes: tuple[str, ...]

    @property
    def categories(self) -> int:
        """Number of outputs of its head; 0 if it has none."""
        return len(self.state["fc.weight"]) if "fc.weight" in self.state else 0


def recognise(root: object, choice: Choice) -> Recognised:
    """Find the ResNet50 in a checkpoint.

    Args:
        root: The object in the file: a state dict, or dicts around some.
        choice: Which one, where there are several.

    Raises:
        ValueError: There is none, or the choice is not clear; says what the file holds instead and
            what to do, as the rest of a sentence whose subject is the file.
    """
    networks = list(networks_in(root))
    if not networks:
        raise ValueError(_not_found(root))
    if isinstance(root, Mapping):
        _require_plain(root)
    network, changes = choose(networks, choice)
    inside, outside = network.inside(), network.outside()
    if other := other_network(inside | outside):
        raise ValueError(f"holds {other}: only torchvision's resnet50 is served; train that one")
    names = resnet50_names()
    state = {key: value for key, value in inside.items() if key in names}
    if missing := [key for key in names if key not in state and not key.endswith("tracked")]:
        raise ValueError(
            f"lacks {len(missing)} of ResNet50's tensors ({_some(missing)}): save the whole"
            " state_dict()"
        )
    changes += _renaming(network)
    rest = {key: value for key, value in inside.items() if key not in names}
    foreign = [key for key in rest if re.match(r"(?:layer\d|conv1|bn1)\.", key)]
    if foreign:
        raise ValueError(
            f"has {len(foreign)} tensors within ResNet50's layers that it does not have"
            f" ({_some(foreign)}): only torchvision's resnet50 is served; train that one"
        )
    if f".{choice.key}." not in f".{network.prefix}":  # else it was asked for without them
        rest, outside = rest | outside, {}
    head = _head(network, rest, choice, changes)
    _leave_out(rest, outside, head, changes)
    if head is not None:
        bias = head.weight.new_zeros(len(head.weight)) if head.bias is None else head.bias
        state |= {"fc.weight": head.weight, "fc.bias": bias}
    return Recognised(state, network.scheme, tuple(changes))


def _require_plain(root: Mapping[object, object]) -> None:
    """Raise ValueError for networks of ResNet50's names and shapes that compute otherwise.

    Only the description beside the tensors tells: OpenMMLab's of the stride, timm's name.
    """
    meta, name = root.get("meta"), root.get("arch")
    config = meta.get("cfg", meta.get("config")) if isinstance(meta, Mapping) else None
    if isinstance(config, str) and _CAFFE.search(config):
        raise ValueError(
            "is a ResNet-50 in Caffe's style (meta: style='caffe'), whose stride is in the 1x1"
            " convolution, and torchvision's is in the 3x3: train with style='pytorch'"
        )
    if isinstance(name, str) and _SMOOTHING.fullmatch(name):
        raise ValueError(
            f"is a {name}, which smooths before it halves an image, and torchvision's resnet50 does"
            " not: only that is served; train that one"
        )


def _renaming(network: Network) -> list[str]:
    lines = []
    parts = list(network.wrappers)
    if network.prefix:
        parts.append(f"{escaped(network.prefix[:64])!r}")
    if parts:
        lines.append(f"stripped from its keys: {', '.join(parts)}")
    if network.scheme.name:
        lines.append(f"renamed from the names of {network.scheme.name} to torchvision's")
    return lines


def _head(
    network: Network, rest: Mapping[str, Tensor], choice: Choice, changes: list[str]
) -> Head | None:
    if not choice.head:
        return None
    if _CONTRASTIVE.search(network.label):
        changes.append("has no classification head but a projection of contrastive training")
        return None
    head = find_head(rest)
    if head is not None and head.name != "fc":
        changes.append(f"took its linear layer {escaped(head.name[:64])!r} as the head")
    if head is not None and head.bias is None:
        changes.append("its head has no bias: zeros were put there")
    return head


def _leave_out(
    rest: Mapping[str, Tensor],
    outside: Mapping[str, Tensor],
    head: Head | None,
    changes: list[str],
) -> None:
    """Add a line about the tensors that are not imported.

    Raises:
        ValueError: Some of `rest` may change the answers of the head.
    """
    keys = [key for key in rest if head is None or key not in head.keys]
    serious = [key for key in keys if not _TRAINING.search(key)]
    if head is not None and serious:
        raise ValueError(
            f"has {len(serious)} tensors beside ResNet50's ({_some(serious)}), which may change the"
            " answers of its head: import with --no-head for embeddings alone"
        )
    keys += outside
    if keys:
        changes.append(f"left out {len(keys)} tensors: {_some(keys)}")


def _not_found(root: object) -> str:
    """Return what a checkpoint holds that has no ResNet in it."""
    advice = "save the network's state_dict() alone"
    if name := unknown_class(root):
        return f"is a pickled {name} object, which only its own code can read: {advice}"
    if not isinstance(root, Mapping):
        return f"holds a {type(root).__name__}, not a state dict: {advice}"
    for key, value in root.items():
        if key in _MODEL_ENTRIES and (name := unknown_class(value)):
            return (
                f"has a pickled {name} object as its entry {key!r}, which only its own code can"
                f" read: {advice}"
            )
    if {"state", "param_groups"} <= root.keys():
        return f"is the state of an optimizer, without a network: {advice}"
    found = [without_wrappers(tensors)[0] for _, tensors in state_dicts(root)]
    largest = max(found, key=len, default={})
    if other := other_network(largest):
        return f"holds {other}: only torchvision's resnet50 is served; train that one"
    if not largest:
        return f"holds no tensors but {_some([str(key) for key in root]) or 'nothing'}: {advice}"
    return (
        f"holds no ResNet among its {len(largest)} tensors ({_some(list(largest))}): only"
        " torchvision's resnet50 is served; train that one"
    )


def _some(keys: list[str]) -> str:
    return listed([escaped(key[:64]) for key in keys], separator=", ")
