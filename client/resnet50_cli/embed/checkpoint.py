"""Checkpoint of `resnet50 embed`: embeddings on disk, so that an interrupted run can resume.

The folder `X.npz.partial` beside `X.npz` contains shards, each a small .npz of up to
`SHARD_IMAGES` images with fingerprints to detect changed files. Shards are written atomically, so
an interruption loses only the images since the last one.
"""

from __future__ import annotations

import os
import re
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resnet50_client.types import Embedding, Variant

SHARD_IMAGES = 256
SHARD_S = 5.0
_SHARD_FILE = re.compile(r"\d{6}\.(npz|tmp)")
FileFingerprint = tuple[int, int]


class EmbeddingSpaceChanged(Exception):
    """The server switched to other weights during the run."""


@dataclass(frozen=True)
class Space:
    """Identity of an embedding space: `Embedding.variant` and `Embedding.space`."""

    variant: str
    digest: str
    space: str


@dataclass(frozen=True)
class _Location:
    shard: int
    row: int
    fingerprint: FileFingerprint


class Checkpoint:
    """Embeddings computed so far, by image path.

    Args:
        folder: Folder of the shards; created with the first shard.
        l2_normalize: True if the vectors are scaled to length 1.
        background: Colour behind transparent pixels; "" for the variant's.

    Raises:
        ValueError: The folder's shards are corrupt, or of other options.
    """

    def __init__(self, folder: Path, l2_normalize: bool, background: str = "") -> None:
        self.folder = folder
        self.space: Space | None = None
        self.dimension = 0
        self._l2_normalize = l2_normalize
        self._background = background
        self._locations: dict[str, _Location] = {}
        self._pending: list[tuple[str, FileFingerprint, Embedding]] = []
        self._flushed_at = time.monotonic()
        self._next_shard = 0
        for shard in sorted(int(file.stem) for file in _files(folder) if file.suffix == ".npz"):
            self._read(shard)
            self._next_shard = shard + 1

    def __len__(self) -> int:
        return len(self._locations)

    def contains(self, path: str, fingerprint: FileFingerprint | None = None) -> bool:
        """Return True if an image's vector is on disk.

        Args:
            path: The image's path.
            fingerprint: The image file's current fingerprint; a different one on disk means
                that the file changed.
        """
        location = self._locations.get(path)
        return location is not None and fingerprint in (None, location.fingerprint)

    def check(self, variant: Variant) -> None:
        """Check that a server's variant is the one that computed the checkpoint.

        Raises:
            ValueError: It is another one.
        """
        saved = self.space
        if saved is None or (saved.variant, saved.digest) == (variant.name, variant.digest or "-"):
            return
        if variant.digest or saved.variant != variant.name:  # while loading it has no digest
            digest = (variant.digest or "-")[:12]
            raise ValueError(
                f"{self.folder} contains {len(self)} vectors of {saved.space}, but the server would"
                f" use {variant.name}@{digest}; pass the --variant of the interrupted"
                " run, or start over with --restart"
            )

    def add(self, path: str, fingerprint: FileFingerprint, embedding: Embedding) -> None:
        """Add an embedding; it is on disk after the next `flush`.

        Raises:
            EmbeddingSpaceChanged: Its weights differ from those of the earlier ones.
        """
        space = Space(embedding.variant.name, embedding.variant.digest, embedding.space)
        if self.space is None:
            self.space, self.dimension = space, len(embedding)
        if space != self.space:
            raise EmbeddingSpaceChanged(
                f"the servers responded with different weights, {self.space.space} and"
                f" {space.space}, so the vectors are not comparable; pass a --variant that all"
                " servers have"
            )
        self._pending.append((path, fingerprint, embedding))
        late = time.monotonic() - self._flushed_at >= SHARD_S
        if late or len(self._pending) >= SHARD_IMAGES:
            self.flush()

    def discard(self, path: str) -> None:
        """Remove the vector of an image that changed."""
        self._locations.pop(path, None)

    def flush(self) -> None:
        """Write the embeddings added since the last flush as a new shard."""
        self._flushed_at = time.monotonic()
        if not self._pending or self.space is None:
            return
        paths, fingerprints, embeddings = zip(*self._pending, strict=True)
        self.folder.mkdir(exist_ok=True)
        unfinished = self.folder / f"{self._next_shard:06}.tmp"
        with unfinished.open("wb") as file:
            np.savez(
                file,
                paths=np.array(paths),
                fingerprints=np.array(fingerprints, dtype=np.int64),
                vectors=np.stack([each.vector for each in embeddings]).astype(np.float32),
                variant=self.space.variant,
                digest=self.space.digest,
                space=self.space.space,
                l2_normalize=self._l2_normalize,
                background=self._background,
            )
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self._path(self._next_shard))
        for row, (path, fingerprint) in enumerate(zip(paths, fingerprints, strict=True)):
            self._locations[path] = _Location(self._next_shard, row, fingerprint)
        self._next_shard += 1
        self._pending.clear()

    def vectors(self, paths: Sequence[str]) -> Iterator[NDArray[np.float32]]:
        """Yield the vectors of `paths` in order, as blocks float32 [<= SHARD_IMAGES, D]."""
        for start in range(0, len(paths), SHARD_IMAGES):
            locations = [self._locations[path] for path in paths[start : start + SHARD_IMAGES]]
            block = np.empty((len(locations), self.dimension), dtype=np.float32)
            for shard in sorted({location.shard for location in locations}):
                with np.load(self._path(shard)) as arrays:
                    vectors = arrays["vectors"]
                for position, location in enumerate(locations):
                    if location.shard == shard:
                        block[position] = vectors[location.row]
            yield block

    def remove(self) -> None:
        """Delete the checkpoint from disk."""
        self.remove_from(self.folder)

    @classmethod
    def remove_from(cls, folder: Path) -> None:
        """Delete a checkpoint's shards, and its folder if that is then empty."""
        for file in _files(folder):
            file.unlink()
        with suppress(OSError):
            folder.rmdir()

    def _read(self, shard: int) -> None:
        path = self._path(shard)
        try:
            with np.load(path) as arrays:
                paths, fingerprints = arrays["paths"].tolist(), arrays["fingerprints"].tolist()
                space = Space(*(str(arrays[name]) for name in ("variant", "digest", "space")))
                normalized = bool(arrays["l2_normalize"])
                # Checkpoints of older releases have none.
                background = str(arrays["background"]) if "background" in arrays else ""
                if self.space is None:
                    self.space, self.dimension = space, arrays["vectors"].shape[1]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: {error}; start over with --restart") from error
        options = normalized, background
        if options != (self._l2_normalize, self._background) or space != self.space:
            kind = "with" if normalized else "without"
            on = f" on --background {background}" if background else ""
            raise ValueError(
                f"{self.folder} contains vectors of {space.space} {kind} --l2-normalize{on}, which"
                " this run does not match; use the same options, or start over with --restart"
            )
        for row, (name, fingerprint) in enumerate(zip(paths, fingerprints, strict=True)):
            self._locations[name] = _Location(shard, row, (fingerprint[0], fingerprint[1]))

    def _path(self, shard: int) -> Path:
        return self.folder / f"{shard:06}.npz"


def _files(folder: Path) -> list[Path]:
    """Return a checkpoint's shards, finished and unfinished."""
    if not folder.exists():
        return []
    return [file for file in folder.iterdir() if _SHARD_FILE.fullmatch(file.name)]
