"""Find the ResNets in a checkpoint, and choose one of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from resnet50_server.runtime.texts import escaped

from .key_names import Scheme, find_networks, resnet50_names, torchvision_name, without_wrappers

# How deep state dicts are searched for below the top of a checkpoint.
_MAX_DEPTH = 4
# Bounds of hostile files; checkpoints have two or three networks, and keys of 100 characters.
_MAX_NETWORKS, _MAX_KEY_CHARACTERS = 64, 1000
# Averages of the weights over the training; a checkpoint has them beside the weights.
_EMA = re.compile(
    r"(?:^|[._])(?:ema|averaged|swa|polyak|shadow)(?:[._]|$)"
    r"|(?:^|\.)(?:encoder_k|momentum_encoder|target_encoder|target_network)(?:\.|$)"
)


@dataclass(frozen=True)
class Choice:
    """A choice between the networks of one checkpoint.

    Attributes:
        key: A name of the chosen one's, of an entry or before its keys; empty for the only one.
        ema: Whether to choose the average of the weights.
        head: Whether to take the classification head.
    """

    key: str = ""
    ema: bool = False
    head: bool = True


@dataclass(frozen=True)
class Network:
    """A ResNet in a checkpoint.

    Attributes:
        entry: The keys of the dicts around its tensors.
        tensors: All tensors of its dict, without wrappers in their names.
        wrappers: The wrappers that the names had.
        prefix: The start of its names.
        scheme: The scheme of its names.
        others: Prefixes and schemes of the other networks of its dict.
    """

    entry: str
    tensors: dict[str, Tensor] = field(repr=False)
    wrappers: list[str]
    prefix: str
    scheme: Scheme
    others: tuple[tuple[str, Scheme], ...]

    @property
    def label(self) -> str:
        """Its name in messages and for `Choice.key`."""
        return ".".join(filter(None, (self.entry, self.prefix.rstrip(".")))) or "top level"

    @property
    def averaged(self) -> bool:
        """Whether it is an average of the weights over the training."""
        return _EMA.search(self.label) is not None

    def inside(self) -> dict[str, Tensor]:
        """Return the tensors behind its prefix, under torchvision's names."""
        return {
            torchvision_name(key[len(self.prefix) :], self.scheme): value
            for key, value in self.tensors.items()
            if key.startswith(self.prefix) and not self._is_of_another(key)
        }

    def outside(self) -> dict[str, Tensor]:
        """Return the other tensors of its dict, without those of other networks."""
        return {
            key: value
            for key, value in self.tensors.items()
            if not key.startswith(self.prefix) and not self._is_of_another(key)
        }

    def _is_of_another(self, key: str) -> bool:
        for prefix, scheme in self.others:
            if not key.startswith(prefix):
                continue
            if not self.prefix.startswith(prefix):
                return True
            # The other one is around this one, for instance at the top.
            name = torchvision_name(key[len(prefix) :], scheme)
            if not key.startswith(self.prefix) and (
                name in resnet50_names() or name.startswith("fc.")
            ):
                return True
        return False


def networks_in(root: object) -> Iterator[Network]:
    """Yield the ResNets in a checkpoint, of any depth.

    Raises:
        ValueError: It has keys that no network has.
    """
    for entry, tensors in state_dicts(root):
        cleaned, wrappers = without_wrappers(tensors)
        found = find_networks(cleaned)[:_MAX_NETWORKS]
        for prefix, scheme in found:
            others = tuple(other for other in found if other[0] != prefix)
            yield Network(entry, cleaned, wrappers, prefix, scheme, others)


def state_dicts(root: object) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the dicts of tensors within a checkpoint, and the dotted keys that lead to them.

    Raises:
        ValueError: It has keys that no network has.
    """
    seen: set[int] = set()

    def search(value: object, entry: str, depth: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        if not isinstance(value, Mapping) or id(value) in seen or depth > _MAX_DEPTH:
            return
        seen.add(id(value))
        named = {key: one for key, one in value.items() if isinstance(key, str)}
        if (longest := max(map(len, named), default=0)) > _MAX_KEY_CHARACTERS:
            raise ValueError(f"has a key of {longest} characters, so it is not a state dict")
        if tensors := {key: one for key, one in named.items() if isinstance(one, Tensor)}:
            yield entry, tensors
        for key, one in named.items():
            yield from search(one, f"{entry}.{key}" if entry else key, depth + 1)

    yield from search(root, "", 0)


def choose(networks: list[Network], choice: Choice) -> tuple[Network, list[str]]:
    """Return the network that was asked for, and lines about it.

    Raises:
        ValueError: None or several match.
    """
    candidates, wanted = networks, "--ema" if choice.ema else ""
    if choice.key:
        wanted = f"--key {choice.key}"
        candidates = [one for one in networks if f".{choice.key}." in f".{one.label}."]
    elif choice.ema:
        candidates = [one for one in networks if one.averaged]
    else:
        candidates = [one for one in networks if not one.averaged] or networks
    labels = ", ".join(escaped(one.label[:64]) for one in networks[:20])
    if len(candidates) != 1:
        found = f"{len(candidates)} networks" if candidates else "no network"
        raise ValueError(
            f"has {found}{f' for {escaped(wanted[:80])}' if wanted else ''}; it holds {labels}:"
            " choose one with --key NAME"
        )
    network = candidates[0]
    lines = []
    if network.entry:
        lines.append(f"took its entry {escaped(network.entry[:64])!r}")
    averages = [one for one in networks if one.averaged and one is not network]
    if averages and not network.averaged:
        others = ", ".join(escaped(one.label[:64]) for one in averages[:3])
        lines.append(f"it has averaged weights (EMA) too, as {others}: --ema takes those")
    elif network.averaged:
        lines.append(f"took averaged weights (EMA): {escaped(network.label[:64])}")
    return network, lines
