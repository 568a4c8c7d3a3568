"""The network of a variant: read or draw its weights, build it, fold its BatchNorm layers."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode

from resnet50_server.errors import WeightsError
from resnet50_server.runtime.texts import escaped, listed

from .checkpoints import StateDict, Weights, parse_checkpoint, read_checkpoint
from .download import official_of
from .importing.hints import import_hint
from .spec import EMBEDDING_DIMENSION, Activation, VariantSpec
from .torchvision_models import ResNet, quantization, resnet50

log = logging.getLogger(__name__)


class Network(nn.Module):
    """ResNet50 with both of its outputs: the pooled vector and the logits.

    Args:
        model: torchvision's ResNet50, float or quantized, in eval mode. Its head may have no
            outputs.
        activation: From logits to probabilities.
    """

    def __init__(self, model: ResNet, activation: Activation = "softmax") -> None:
        super().__init__()
        self.model = model
        self.activation = activation
        self.quantized = isinstance(model, quantization.QuantizableResNet)
        self.eval()  # the modules that replace BatchNorm too

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute embeddings and logits.

        Args:
            images: float [N, 3, H, W], normalized.

        Returns:
            Embeddings [N, 2048] and logits [N, categories], of the input's dtype.
        """
        model = self.model
        x = model.quant(images) if self.quantized else images
        x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
        x = model.layer4(model.layer3(model.layer2(model.layer1(x))))
        pooled = torch.flatten(model.avgpool(x), 1)
        logits = model.fc(pooled)
        if self.quantized:
            return model.dequant(pooled), model.dequant(logits)
        return pooled, logits

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return probabilities, float32 [N, categories], of logits of any dtype."""
        if self.activation == "sigmoid":
            return torch.sigmoid(logits.float())
        return torch.softmax(logits.float(), dim=1)


def read_weights(spec: VariantSpec, directory: Path, download: bool) -> Weights:
    """Read a variant's weights, or draw them if the variant is a random one.

    Args:
        spec: The variant.
        directory: Where official weights lie.
        download: Whether missing official weights may be downloaded.

    Raises:
        WeightsError: The weights are missing or wrong; says which and why.
    """
    if spec.seed is not None:
        return random_weights(spec)
    return parse_checkpoint(spec, read_checkpoint(spec, directory, download))


def build_network(spec: VariantSpec, weights: Weights) -> Network:
    """Build a network in eval mode, on the CPU, in float32 or int8; its input is in RGB.

    Raises:
        WeightsError: The weights do not fit; says why.
    """
    model = build_model(spec, weights)
    if not spec.quantized:
        fold_batchnorm(model)
        if spec.transform.channel_order == "BGR":
            # The same sums in another order, at no cost for any engine.
            model.conv1.weight = nn.Parameter(model.conv1.weight.detach().flip(1))
    return Network(model, spec.activation)


def parameter_count(spec: VariantSpec, weights: Weights) -> int:
    """Return the number of parameters of a variant's network."""
    if spec.official is not None:
        return spec.official.parameters
    return sum(
        value.numel()
        for key, value in weights.state.items()
        # BatchNorm's statistics are not parameters.
        if not key.endswith(("running_mean", "running_var", "num_batches_tracked"))
    )


def fold_batchnorm(model: ResNet) -> None:
    """Fold each BatchNorm of an eval-mode ResNet into its convolution, in place.

    An inference BatchNorm is affine, and so is a convolution: 12.3 instead of 11.1 images/s on two
    CPU cores.
    """
    model.conv1, model.bn1 = fuse_conv_bn_eval(model.conv1, model.bn1), nn.Identity()
    for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
        for block in layer:
            for index in (1, 2, 3):
                convolution, norm = getattr(block, f"conv{index}"), getattr(block, f"bn{index}")
                setattr(block, f"conv{index}", fuse_conv_bn_eval(convolution, norm))
                setattr(block, f"bn{index}", nn.Identity())
            if block.downsample is not None:
                convolution, norm = block.downsample
                block.downsample = fuse_conv_bn_eval(convolution, norm)


def random_weights(spec: VariantSpec) -> Weights:
    """Return the weights of a random variant, drawn from its seed."""
    assert spec.seed is not None
    log.warning(
        "variant %s is UNTRAINED (random weights, seed %d): its output is meaningless",
        spec.name,
        spec.seed,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        state = resnet50(weights=None, num_classes=len(spec.categories)).state_dict()
    digest = hashlib.sha256()
    for tensor in state.values():
        digest.update(tensor.numpy().tobytes())
    return Weights(state, digest.hexdigest())


def build_model(spec: VariantSpec, weights: Weights) -> ResNet:
    """Build torchvision's own network in eval mode, on the CPU, in float32 or int8.

    Its input is in the variant's channel order.

    Raises:
        WeightsError: The weights do not fit; says why.
    """
    count = len(spec.categories)
    if spec.quantized:
        backend = official_of(spec).backend
        assert backend is not None  # int8 weights have one
        _require_backend(spec, backend)
        torch.backends.quantized.engine = backend
        model = quantization.resnet50(weights=None, quantize=True, num_classes=count)
        model.load_state_dict(weights.state)
        return model.eval()
    # On the meta device nothing is initialised, so no random weights can remain.
    with torch.device("meta"), _NotDrawn():
        model = resnet50(weights=None, num_classes=max(1, count))
    if not count:
        _remove_head(model)
    given = weights.state if count else _NO_HEAD | weights.state
    expected = model.state_dict()
    if problem := _mismatch(expected, given, spec):
        raise WeightsError(f"{spec.name}: the checkpoint does not fit ResNet50: {problem}")
    state = {key: value.to(expected[key].dtype) for key, value in given.items()}
    for key in expected.keys() - state.keys():  # num_batches_tracked; see _mismatch
        state[key] = torch.zeros((), dtype=torch.long)
    model.load_state_dict(state, assign=True)
    return model.eval()


class _NotDrawn(TorchFunctionMode):
    """Leaves weights as they are that the network's constructor draws.

    On the meta device that has no effect, and the first draw imports `torch._dynamo`.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in (Tensor.normal_, Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}))


def _require_backend(spec: VariantSpec, backend: str) -> None:
    """Raise WeightsError if torch cannot compute torchvision's int8 weights on this processor."""
    supported = torch.backends.quantized.supported_engines
    if backend not in supported:
        raise WeightsError(
            f"{spec.name}: torchvision's int8 weights need torch's backend {backend}, which exists"
            f" on x86 only (here: {', '.join(supported)}); serve IMAGENET1K_V2 with --precision"
            " int8 --calibration-dir IMAGES instead, or in fp32"
        )


# The tensors of a head without outputs.
_NO_HEAD: StateDict = {"fc.weight": torch.empty(0, EMBEDDING_DIMENSION), "fc.bias": torch.empty(0)}


def _remove_head(model: ResNet) -> None:
    """Give a model a head without outputs: its logits are [N, 0]."""
    # Not `nn.Linear(2048, 0)`, whose initialisation warns.
    model.fc.out_features = 0
    for name, value in _NO_HEAD.items():
        setattr(model.fc, name.removeprefix("fc."), nn.Parameter(value.to("meta")))


def _mismatch(expected: StateDict, state: StateDict, spec: VariantSpec) -> str | None:
    """Return why `state` does not fit the expected one, and what to do; None if it fits."""
    categories = len(spec.categories)
    missing = [
        key
        for key in expected
        # Counts training steps only; files of old torch versions lack it.
        if key not in state and not key.endswith("num_batches_tracked")
    ]
    unknown = [key for key in state if key not in expected]
    if missing or unknown:
        parts = []
        if missing:
            parts.append(f"{len(missing)} keys are missing ({_some(missing)})")
        if unknown:
            parts.append(f"{len(unknown)} are unknown ({_some(unknown)})")
        return f"{' and '.join(parts)}; {import_hint(state, spec.directory)}"
    head = state["fc.weight"]
    if isinstance(head, Tensor) and head.ndim == 2 and head.shape[0] != categories:
        if not categories:
            return f"fc has {head.shape[0]} classes, and variant.json names none; name each there"
        return f"fc has {head.shape[0]} classes, variant.json names {categories} categories"
    for key, value in state.items():
        if not isinstance(value, Tensor):
            return f"{key} is a {type(value).__name__}, not a tensor"
        if not is_plain(value):
            return f"{key} has no plain numbers: save the state_dict() in float32"
        if value.shape != expected[key].shape:
            return f"{key} has shape {tuple(value.shape)}, expected {tuple(expected[key].shape)}"
        if value.is_floating_point() and not _is_finite(value):
            return f"{key} contains NaN or infinity, or values beyond float32"
    return None


def is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor has its numbers as they are: not sparse, quantized or on meta."""
    return tensor.layout is torch.strided and not (tensor.is_quantized or tensor.is_meta)


def _is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor is finite in float32."""
    # NaN and infinity remain in a sum: a fraction of the time of `isfinite` on each value. Finite
    # values overflow in float32 at most, which a second sum in float64 tells apart.
    values = tensor.float()
    return any(
        math.isfinite(values.sum(dtype=dtype).item()) for dtype in (torch.float32, torch.float64)
    )


def _some(keys: list[str]) -> str:
    return listed([escaped(key[:64]) for key in keys], separator=", ")
