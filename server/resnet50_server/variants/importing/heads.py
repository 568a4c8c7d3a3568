"""Find the classification head of a ResNet50 among the tensors of a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from resnet50_server.runtime.texts import escaped, listed
from resnet50_server.variants.spec import EMBEDDING_DIMENSION

# Names that training code gives to the head; numbers are positions in a Sequential.
_HEAD = re.compile(
    r"(?:.*\.)?(?:fc|classifier|heads?|cls_head|classification_head|linear|last_linear|lin|logits"
    r"|output_layer|out)(?:\.[\w.]+)?|\d+(?:\.\d+)*"
)
# Names of what self-supervised training puts behind the network and throws away.
_PROJECTION = re.compile(
    r"(?:^|\.)(?:proj\w*|predict\w*|prototypes|mlp|contrast\w*|last_layer)(?:\.|$)"
)


@dataclass(frozen=True)
class Head:
    """The linear layer behind the pooled vector.

    Attributes:
        weight: float [categories, 2048].
        bias: float [categories]; None if the layer has none.
        name: Its name in the checkpoint.
        keys: The keys of both.
    """

    weight: Tensor = field(repr=False)
    bias: Tensor | None = field(repr=False)
    name: str
    keys: tuple[str, ...]


def find_head(tensors: Mapping[str, Tensor]) -> Head | None:
    """Return the head; None if there is none.

    Args:
        tensors: All tensors that are not part of the convolutional network.

    Raises:
        ValueError: The head is more than one linear layer; names its parts.
    """
    modules: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        module, _, parameter = key.rpartition(".")
        if _HEAD.fullmatch(module) and not _PROJECTION.search(module):
            modules.setdefault(module, {})[parameter] = value
    linear = [name for name, parameters in modules.items() if _is_linear(parameters)]
    if not modules:
        return None
    if len(linear) != 1 or len(modules) > 1:
        layers = listed([escaped(name[:64]) for name in modules], separator=", ")
        kind = f"{len(linear)} linear layers" if len(linear) != 1 else "more than a linear layer"
        raise ValueError(
            f"its head has {kind} ({layers}), and ResNet50's is one: train the head as one"
            " nn.Linear (nn.Dropout before it is fine), or import with --no-head for embeddings"
        )
    name = linear[0]
    weight, bias = modules[name]["weight"], modules[name].get("bias")
    if weight.shape[1] != EMBEDDING_DIMENSION:
        raise ValueError(
            f"its head {escaped(name[:64])} takes {weight.shape[1]} inputs, and ResNet50's pooled"
            f" vector has {EMBEDDING_DIMENSION}: train the head on that vector, or import with"
            " --no-head for embeddings"
        )
    return Head(weight, bias, name, tuple(f"{name}.{one}" for one in modules[name]))


def _is_linear(parameters: Mapping[str, Tensor]) -> bool:
    weight = parameters.get("weight")
    return weight is not None and weight.ndim == 2 and parameters.keys() <= {"weight", "bias"}
