"""Checkpoints as training code writes them, around one seeded ResNet50."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import ResNet, resnet50

from tests.support import weights

COUNT = 10
# Small images: the network takes any, and the tests stay quick.
SIDE = 96


@functools.cache
def images() -> Tensor:
    """Return some photos: float32 [2, 3, 96, 96], normalised."""
    return nn.functional.interpolate(weights.photos()[:2], SIDE, mode="bilinear", antialias=True)


@functools.cache
def trained() -> dict[str, Tensor]:
    """Return the state dict of the network that was trained, which is not to be changed."""
    return weights.trained_like(0, COUNT)


def averaged() -> dict[str, Tensor]:
    """Return its average over the training: other numbers, and other answers."""
    return trained() | {key: trained()[key] * 0.8 for key in ("fc.weight", "fc.bias")}


def unfilled(build: Callable[[], Any]) -> Any:
    """Return a network without numbers, because drawing them takes most of a test's time."""
    with torch.device("meta"):
        return build()


def network(state: dict[str, Tensor] | None = None, head: nn.Module | None = None) -> ResNet:
    """Return torchvision's network in eval mode, with these weights and this head."""
    model = unfilled(lambda: resnet50(weights=None, num_classes=COUNT))
    model.load_state_dict(trained() if state is None else state, assign=True)
    if head is not None:
        model.fc = head
    return model.eval()


def linear(bias: bool = True) -> nn.Linear:
    """Return the head of the network that was trained."""
    head = nn.Linear(2048, COUNT, bias=bias)
    head.weight.data.copy_(trained()["fc.weight"])
    if bias:
        head.bias.data.copy_(trained()["fc.bias"])
    return head


def answers(model: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the outputs of a network in eval mode for `images`."""
    with torch.inference_mode():
        return model(images())


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with a prefix before each key."""
    return {f"{prefix}{key}": value for key, value in state.items()}


def hollow(build: Callable[[], nn.Module]) -> dict[str, Tensor]:
    """Return a network's state dict of ones: the right shapes, and hardly any bytes as a .pth."""
    with torch.device("meta"):
        expected = build().state_dict()
    return {
        key: torch.ones((), dtype=value.dtype).expand(value.shape)
        for key, value in expected.items()
    }


def save(content: Any, path: Path, **options: Any) -> Path:
    """Write a checkpoint with torch.save."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path, **options)
    return path
