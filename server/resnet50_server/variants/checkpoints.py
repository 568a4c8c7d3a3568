"""Checkpoint files: read, checked, and never mapped into memory."""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet50_server.errors import WeightsError

from .disk import read_file
from .download import BLOCK_BYTES, fetch, official_path, published_digest
from .importing.file_kinds import foreign_kind
from .importing.pickles import unreadable
from .spec import CHECKPOINT_NAMES, VariantSpec

StateDict = dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A variant's checkpoint file, as it was read.

    Attributes:
        path: The file.
        content: Its bytes.
        digest: Its SHA-256, 64 hex digits.
    """

    path: Path
    content: bytes
    digest: str


@dataclass(frozen=True)
class Weights:
    """A variant's weights, read and checked.

    Attributes:
        state: The state dict, on the CPU.
        digest: SHA-256 of the file, 64 hex digits.
    """

    state: StateDict
    digest: str


def weights_directory(configured: Path | None) -> Path:
    """Return the directory of official weights: as configured, or torch.hub's (`TORCH_HOME`)."""
    if configured is not None:
        return configured
    # As `torch.hub.get_dir`, without an import of torch.
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", os.path.join(cache, "torch"))
    return Path(home).expanduser() / "hub" / "checkpoints"


def sha256(path: Path) -> str:
    """Return a file's SHA-256 as 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def read_checkpoint(spec: VariantSpec, directory: Path, download: bool) -> Checkpoint:
    """Read a variant's checkpoint; without torch.

    Args:
        spec: An official or a custom variant.
        directory: The directory of official weights.
        download: Whether missing official weights may be downloaded.

    Raises:
        WeightsError: The file is missing, cannot be read, or is not what torchvision published.
    """
    if spec.official is None:
        return _read_custom(spec)
    path = official_path(spec, directory)
    content = _read(path, spec.name)
    if content is None:
        fetch(spec, directory, download)
        content = _read(path, spec.name)
    if content is None:
        raise WeightsError(f"{spec.name}: {path} was removed right after its download")
    checkpoint = Checkpoint(path, content, hashlib.sha256(content).hexdigest())
    _require_published(spec, path, checkpoint.digest)
    return checkpoint


def parse_checkpoint(spec: VariantSpec, checkpoint: Checkpoint) -> Weights:
    """Return the weights in a checkpoint.

    Raises:
        WeightsError: It is broken, or not a plain state dict.
    """
    path = checkpoint.path
    parse = _parse_safetensors if path.suffix == ".safetensors" else _parse_pickle
    return Weights(parse(checkpoint.content, path, spec.name), checkpoint.digest)


def verify_official(spec: VariantSpec, path: Path) -> str:
    """Return a file's SHA-256 if it is what torchvision published.

    Raises:
        WeightsError: It is not, or it cannot be read.
    """
    try:
        digest = sha256(path)
    except OSError as error:
        raise _unreadable(spec.name, path, error) from error
    _require_published(spec, path, digest)
    return digest


def _read_custom(spec: VariantSpec) -> Checkpoint:
    assert spec.directory is not None
    for name in CHECKPOINT_NAMES:
        path = spec.directory / name
        content = _read(path, spec.name)
        if content is not None:
            if kind := foreign_kind(content):
                raise WeightsError(f"{spec.name}: {path} {kind}")
            return Checkpoint(path, content, hashlib.sha256(content).hexdigest())
    raise WeightsError(
        f"{spec.name}: {spec.directory} contains neither {' nor '.join(CHECKPOINT_NAMES)}"
    )


def _read(path: Path, name: str) -> bytes | None:
    """Return a file's content; None if it does not exist.

    Read at once, not mapped: the digest is that of the weights that are served, and they do not
    change with the file.
    """
    try:
        return read_file(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(name, path, error) from error


def _unreadable(name: str, path: Path, error: OSError) -> WeightsError:
    return WeightsError(
        f"{name}: {path} cannot be read ({error.strerror or error}); it has to be a file that the"
        " server's user may read"
    )


def _require_published(spec: VariantSpec, path: Path, digest: str) -> None:
    expected = published_digest(spec)
    if not digest.startswith(expected):
        raise WeightsError(
            f"{spec.name}: {path} is not what torchvision published: its SHA-256 begins with"
            f" {digest[: len(expected)]}, not {expected}; probably a broken download: delete it and"
            f" run `resnet50-server variants download {spec.name}`"
        )


def _parse_safetensors(content: bytes, path: Path, name: str) -> StateDict:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return dict[str, Any](load(content))
    except (SafetensorError, ValueError, KeyError) as error:
        raise WeightsError(
            f"{name}: {path} is not a complete safetensors file ({error}); copy it there again"
        ) from error


def _parse_pickle(content: bytes, path: Path, name: str) -> StateDict:
    import torch

    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a bad or unsafe file
        raise WeightsError(
            f"{name}: {path} was refused: it is broken, or a pickle that could run code"
            f" ({unreadable(error)}); copy it there again, or save the model's state_dict() alone,"
            " best as weights.safetensors; `resnet50-server variants import` reads checkpoints of"
            " training code"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise WeightsError(f"{name}: {path} contains a {type(state).__name__}, not a state dict")
    # Not copied: an int8 state dict has version metadata that loading depends on.
    return state
