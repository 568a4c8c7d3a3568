"""Read a checkpoint from a path or an address, with the config.json beside it."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resnet50_server.errors import WeightsError
from resnet50_server.variants.disk import read_file
from resnet50_server.variants.spec import MAX_FILE_BYTES

from .file_kinds import checkpoint_among, foreign_kind, is_safetensors
from .pickles import UnsafePickle, read_pickle
from .remote import download, is_url, public_url

# The largest checkpoint: ResNet50's weights 40 times, with the state of an optimizer for each.
MAX_CHECKPOINT_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read.

    Attributes:
        name: Its path or address, for messages.
        root: The object in it.
        config: The content of the config.json beside it; None if there is none.
    """

    name: str
    root: object = field(repr=False)
    config: dict[str, Any] | None = field(repr=False)


def read_source(source: str, sha256: str | None) -> Generator[str, None, Checkpoint]:
    """Read a checkpoint; yields a line for each step and returns it.

    Args:
        source: Path or address of the file, or of a directory with one checkpoint.
        sha256: Its digest; None for any.

    Raises:
        WeightsError: It cannot be read, has another digest, or is no checkpoint of PyTorch.
    """
    if not is_url(source):
        return (yield from _read(Path(source), source, sha256))
    with tempfile.TemporaryDirectory(prefix="resnet50-import-") as folder:
        pinned = sha256 is not None
        path = download(source, Path(folder), MAX_CHECKPOINT_BYTES, pinned)
        checkpoint = yield from _read(path, public_url(source), sha256)
    if not pinned:
        yield "nothing vouches for that file: add --sha256 with this digest to import it again"
    return checkpoint


def _read(source: Path, name: str, sha256: str | None) -> Generator[str, None, Checkpoint]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = source
    try:
        if source.is_dir():
            names = [one.name for one in source.iterdir() if not one.is_dir()]
            path = source / checkpoint_among(names)
            name = f"{name.rstrip('/')}/{path.name}"
        content = read_file(path, MAX_CHECKPOINT_BYTES)
    except OSError as error:
        raise WeightsError(f"{name} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise WeightsError(f"{name} {error}") from error
    digest = hashlib.sha256(content).hexdigest()
    if sha256 is not None and digest != sha256:
        raise WeightsError(
            f"{name} is another file: its SHA-256 is {digest}, and {sha256} was asked for"
        )
    if kind := foreign_kind(content):
        raise WeightsError(f"{name} {kind}")
    yield f"read {name}: {len(content) / 1e6:.1f} MB, SHA-256 {digest}"
    root: object
    try:
        root = load(content) if is_safetensors(content) else read_pickle(content)
    except (SafetensorError, UnsafePickle, ValueError, KeyError) as error:
        raise WeightsError(
            f"{name} was refused: it is broken, or a pickle that could run code ({error}); copy it"
            " there again, or save the network's state_dict() alone"
        ) from error
    return Checkpoint(name, root, _json(path.parent / "config.json"))


def _json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(read_file(path, MAX_FILE_BYTES))
    except (OSError, ValueError, RecursionError):
        return None  # not needed; a file of another purpose has that name too
    return content if isinstance(content, dict) else None
