"""Weights files: where they lie, whether they are whole, and how they get there."""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import urlopen

from resnet50_server.errors import WeightsError
from resnet50_server.runtime.file_lock import file_lock

from .disk import read_file
from .official import OfficialWeights
from .spec import CHECKPOINT_NAMES, VariantSpec

log = logging.getLogger(__name__)

StateDict = dict[str, Any]

# A network that does not answer should not hold a start-up for minutes; torch.hub has no limit.
ANSWER_TIMEOUT_S = 5.0
# Once it answers: how long a download may stand still.
STALL_TIMEOUT_S = 30.0
BLOCK_BYTES = 2**20


@dataclass(frozen=True)
class Weights:
    """A variant's weights, read and checked.

    Attributes:
        state: The state dict; on the CPU.
        digest: SHA-256 of the file, 64 hex digits.
    """

    state: StateDict
    digest: str


def weights_directory(configured: Path | None) -> Path:
    """Return where official weights lie: the configured folder, or torch.hub's (`TORCH_HOME`)."""
    if configured is not None:
        return configured
    # As `torch.hub.get_dir`, without an import of torch.
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", os.path.join(cache, "torch"))
    return Path(home).expanduser() / "hub" / "checkpoints"


def official_of(spec: VariantSpec) -> OfficialWeights:
    """Return the published file of a variant that is torchvision's."""
    assert spec.official is not None
    return spec.official


def official_path(spec: VariantSpec, directory: Path) -> Path:
    """Return where an official variant's file lies, whether it is there or not."""
    return directory / Path(urlparse(official_of(spec).url).path).name


def published_hash(spec: VariantSpec) -> str:
    """Return the first digits of the file's SHA-256, which torchvision puts into its name."""
    url = official_of(spec).url
    match = re.search(r"[-_]([0-9a-f]{8,})\.", url)
    if match is None:
        raise WeightsError(f"{spec.name}: no hash in {url}")
    return match[1]


def sha256(path: Path) -> str:
    """Return a file's SHA-256 as 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def read_official(spec: VariantSpec, directory: Path, download: bool) -> Weights:
    """Read an official variant's weights, fetching them first where that is allowed and needed.

    Args:
        spec: The variant.
        directory: Where its file lies or goes.
        download: Whether the network may be used.

    Raises:
        WeightsError: The file is not to be had, or is not what torchvision published.
    """
    path = official_path(spec, directory)
    content = _content(path, spec.name)
    if content is None:
        fetch(spec, directory, download)
        content = _content(path, spec.name)
    if content is None:
        raise WeightsError(f"{spec.name}: {path} was removed as soon as it was there")
    digest = hashlib.sha256(content).hexdigest()
    _require_published(spec, path, digest)
    return Weights(_unpickled(content, path, spec.name), digest)


def verify_official(spec: VariantSpec, path: Path) -> str:
    """Return the file's SHA-256 if it is what torchvision published.

    Raises:
        WeightsError: It is not, or it cannot be read.
    """
    try:
        digest = sha256(path)
    except OSError as error:
        raise _unreadable(spec.name, path, error) from error
    _require_published(spec, path, digest)
    return digest


def fetch(spec: VariantSpec, directory: Path, download: bool = True) -> None:
    """Download an official variant's file; its hash is checked.

    Of several processes that want it at once, one downloads it and the others wait. The file
    appears under its name when it is whole; what a process that died has left of it goes away.

    Raises:
        WeightsError: It cannot be had; the message says which file, from where, where to put it,
            and how to start without it.
    """
    path, url = official_path(spec, directory), official_of(spec).url
    reason = "downloads are off (--no-download)"
    if download:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            lock = path.with_name(f".{path.name}.lock")
            with file_lock(lock, f"downloads {path.name}"):
                if not path.exists():
                    log.info("%s: downloading %s", spec.name, url)
                    _download(url, path, published_hash(spec))
            return
        except (OSError, HTTPException, RuntimeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                reason += f"; free space in {directory}"
    raise WeightsError(
        f"{spec.name}: no weights at {path}, and {url} cannot be downloaded ({reason})."
        f" Put that file there (or into a folder named by --weights-dir), or serve another variant:"
        " --variants NAME=DIRECTORY for your own, --variants untrained=random:0 for an untrained"
        " network. Weights are never replaced by random ones"
    )


def _download(url: str, path: Path, expected: str) -> None:
    """Put what `url` gives under `path` once it is whole; for whoever holds the lock."""
    # A name of our own: torch.hub's folder is shared, and others' half downloads are not ours.
    part = path.with_name(path.name + ".part")
    _remove_parts(part)
    digest = hashlib.sha256()
    try:
        # Not torch.hub, which has no time limit but the one of all sockets of the process.
        with _opened(url) as response, part.open("wb") as file:
            for block in _blocks(response):
                digest.update(block)
                file.write(block)
        if not digest.hexdigest().startswith(expected):
            raise ValueError(
                f"invalid hash: SHA-256 {digest.hexdigest()[: len(expected)]}…, not {expected}…"
            )
        part.replace(path)
    finally:
        _remove_parts(part)


def _blocks(response: HTTPResponse) -> Iterator[bytes]:
    """Give what is downloaded piece by piece, with a progress bar for people."""
    from rich.console import Console
    from rich.progress import Progress

    # Where stderr is a file on a full disk, a bar would end the download.
    console = Console(stderr=True)
    with Progress(console=console, disable=not sys.stderr.isatty()) as progress:
        length = response.headers.get("Content-Length")
        task = progress.add_task("download", total=float(length) if length else None)
        while block := response.read(BLOCK_BYTES):
            yield block
            progress.advance(task, len(block))


def _remove_parts(part: Path) -> None:
    for leftover in part.parent.glob(f"{part.name}*"):
        leftover.unlink(missing_ok=True)


def read_custom(spec: VariantSpec) -> Weights:
    """Read a custom variant's checkpoint.

    Raises:
        WeightsError: There is none, or it is not a plain state dict.
    """
    assert spec.directory is not None
    for name in CHECKPOINT_NAMES:
        path = spec.directory / name
        content = _content(path, spec.name)
        if content is not None:
            read = _safetensors if path.suffix == ".safetensors" else _unpickled
            state = read(content, path, spec.name)
            return Weights(state, hashlib.sha256(content).hexdigest())
    raise WeightsError(
        f"{spec.name}: {spec.directory} holds neither {' nor '.join(CHECKPOINT_NAMES)}"
    )


def _content(path: Path, name: str) -> bytes | None:
    """Return what a file holds; None if there is none.

    Read once and whole: its digest is that of what is served, even if the file is being replaced,
    and nothing that is served changes with it, as memory that is mapped to it would.
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
    expected = published_hash(spec)
    if not digest.startswith(expected):
        raise WeightsError(
            f"{spec.name}: {path} is not what torchvision published: its SHA-256 begins with"
            f" {digest[: len(expected)]}, not {expected}; probably a broken download: delete it and"
            f" run `resnet50-server variants download {spec.name}`"
        )


def _safetensors(content: bytes, path: Path, name: str) -> StateDict:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return dict[str, Any](load(content))
    except (SafetensorError, ValueError, KeyError) as error:
        raise WeightsError(
            f"{name}: {path} is not a safetensors file, or not a whole one ({error}); copy it there"
            " again"
        ) from error


def _unpickled(content: bytes, path: Path, name: str) -> StateDict:
    import torch

    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a bad or unsafe file
        # torch's own text advises to switch the protection off.
        reason = type(error).__name__
        if found := re.search(r"Unsupported \w+:? *(?:GLOBAL )?([\w.]+)", str(error)):
            reason = f"it wants {found[1]}"
        raise WeightsError(
            f"{name}: {path} was refused: it is broken, or a pickle that could run code ({reason});"
            " copy it there again, or save the model's state_dict() alone, best as"
            " weights.safetensors"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise WeightsError(f"{name}: {path} holds a {type(state).__name__}, not a state dict")
    for wrapper in ("state_dict", "model"):
        if isinstance(state.get(wrapper), dict):
            raise WeightsError(
                f"{name}: {path} holds a training checkpoint; save its {wrapper!r} entry alone"
            )
    # As it is, not a copy: an int8 state dict carries versions that loading depends on.
    return state


def _opened(url: str) -> HTTPResponse:
    """Return the response of a server that answers within `ANSWER_TIMEOUT_S`.

    A thread asks, since looking a name up has no time limit. Reading the response fails with
    TimeoutError once nothing comes for `STALL_TIMEOUT_S`.

    Raises:
        OSError: There is no answer, or it is a refusal.
    """
    outcome: Future[HTTPResponse] = Future()

    def ask() -> None:
        try:
            outcome.set_result(urlopen(url, timeout=STALL_TIMEOUT_S))
        except Exception as error:
            outcome.set_exception(error)

    threading.Thread(target=ask, name="weights-answer", daemon=True).start()
    try:
        return outcome.result(ANSWER_TIMEOUT_S)
    except FutureTimeout:
        if outcome.done():  # it was the connection that timed out
            raise
        raise TimeoutError(f"no answer within {ANSWER_TIMEOUT_S:g} s") from None
