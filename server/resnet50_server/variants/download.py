"""Downloads official checkpoints, and checks them against their published digests."""

from __future__ import annotations

import errno
import hashlib
import logging
import re
import sys
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import urlopen

from resnet50_server.errors import WeightsError
from resnet50_server.runtime.file_lock import file_lock

from .official import OfficialWeights
from .spec import VariantSpec

log = logging.getLogger(__name__)

# Time limit for the connection, and for each read, in seconds.
TIMEOUT_S = 10.0
BLOCK_BYTES = 2**20


def official_of(spec: VariantSpec) -> OfficialWeights:
    """Return the published file of an official variant."""
    assert spec.official is not None
    return spec.official


def official_path(spec: VariantSpec, directory: Path) -> Path:
    """Return the path of an official checkpoint, whether it exists or not."""
    return directory / Path(urlparse(official_of(spec).url).path).name


def published_digest(spec: VariantSpec) -> str:
    """Return the first digits of the file's SHA-256, which are part of torchvision's file name."""
    url = official_of(spec).url
    match = re.search(r"[-_]([0-9a-f]{8,})\.", url)
    if match is None:
        raise WeightsError(f"{spec.name}: no digest in {url}")
    return match[1]


def fetch(spec: VariantSpec, directory: Path, download: bool = True) -> None:
    """Download an official checkpoint unless it exists.

    Of several processes that need it at once, one downloads and the others wait for it.

    Args:
        spec: An official variant.
        directory: Where its file goes.
        download: Whether the network may be used.

    Raises:
        WeightsError: The download failed; says which file, from where, where to put it, and how to
            start without it.
    """
    path, url = official_path(spec, directory), official_of(spec).url
    reason = "downloads are off (--no-download)"
    if download:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with file_lock(path.with_name(f".{path.name}.lock"), f"downloads {path.name}"):
                if not path.exists():
                    log.info("%s: downloading %s", spec.name, url)
                    _download(url, path, published_digest(spec))
            return
        except (OSError, HTTPException, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                reason += f"; free space in {directory}"
    raise WeightsError(
        f"{spec.name}: no weights at {path}, and {url} cannot be downloaded ({reason})."
        f" Put that file there (or into a directory named by --weights-dir), or serve another"
        " variant: --variants NAME=DIRECTORY for your own, --variants untrained=random:0 for an"
        " untrained network. Weights are never replaced by random ones"
    )


def _download(url: str, path: Path, digest: str) -> None:
    """Download `url`; the file appears at `path` only once it is complete and its digest right."""
    from rich.console import Console
    from rich.progress import wrap_file

    part, computed = path.with_name(f"{path.name}.part"), hashlib.sha256()
    try:
        with urlopen(url, timeout=TIMEOUT_S) as response, part.open("wb") as file:
            total = int(response.headers.get("Content-Length") or 0)
            quiet = not sys.stderr.isatty()  # a file on a full disk would end the download
            console = Console(stderr=True)
            with wrap_file(response, total, description="", console=console, disable=quiet) as body:
                while block := body.read(BLOCK_BYTES):
                    computed.update(block)
                    file.write(block)
        if not computed.hexdigest().startswith(digest):
            raise ValueError(
                f"wrong hash: SHA-256 {computed.hexdigest()[: len(digest)]}…, not {digest}…"
            )
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
