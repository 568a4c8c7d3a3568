"""Vectors on their way to a file, kept on disk so that an interrupted run can go on.

Beside `X.npz` lies the folder `X.npz.partial` of shards, each a small .npz of up to `SHARD_IMAGES`
images with all that is needed to know whether its vectors still hold. A shard appears whole or not
at all, so whatever stops a run costs the images since the last one.
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

from ..results import Embedding, Variant

SHARD_IMAGES = 256
SHARD_S = 5.0
_OURS = re.compile(r"\d{6}\.(npz|tmp)")
Stamp = tuple[int, int]


class SpaceChanged(Exception):
    """The server began to answer with other weights."""


@dataclass(frozen=True)
class Space:
    """What vectors must share to be compared: `Embedding.variant` and `Embedding.space`."""

    variant: str
    digest: str
    space: str


@dataclass(frozen=True)
class _Place:
    shard: int
    row: int
    stamp: Stamp


class Journal:
    """The images whose vectors are known.

    Args:
        folder: Where the shards lie; made when there is the first one.
        l2_normalize: Whether the vectors have length 1.

    Raises:
        ValueError: What lies there is not of this kind, or is damaged.
    """

    def __init__(self, folder: Path, l2_normalize: bool) -> None:
        self.folder = folder
        self.space: Space | None = None
        self.dimension = 0
        self._l2_normalize = l2_normalize
        self._places: dict[str, _Place] = {}
        self._pending: list[tuple[str, Stamp, Embedding]] = []
        self._flushed_at = time.monotonic()
        self._next_shard = 0
        for shard in sorted(int(file.stem) for file in _files(folder) if file.suffix == ".npz"):
            self._read(shard)
            self._next_shard = shard + 1

    def __len__(self) -> int:
        return len(self._places)

    def holds(self, path: str, stamp: Stamp | None = None) -> bool:
        """Return whether an image's vector is on disk.

        Args:
            path: Where the image lies.
            stamp: Of the image's file now; another one than then means that it was changed.
        """
        place = self._places.get(path)
        return place is not None and stamp in (None, place.stamp)

    def check(self, variant: Variant) -> None:
        """Make sure that a server's variant is the one whose vectors are here.

        Raises:
            ValueError: It is another one.
        """
        here = self.space
        if here is None or (here.variant, here.digest) == (variant.name, variant.digest or "-"):
            return
        if variant.digest or here.variant != variant.name:  # while loading it has no digest
            raise ValueError(
                f"{self.folder} holds {len(self)} vectors of {here.space}, and the server would"
                f" answer with {variant.name}@{variant.digest[:12]}; name the --variant of then,"
                " or begin anew with --restart"
            )

    def add(self, path: str, stamp: Stamp, embedding: Embedding) -> None:
        """Take a vector; it is on disk after the next `flush`.

        Raises:
            SpaceChanged: It is of other weights than those before.
        """
        space = Space(embedding.variant.name, embedding.variant.digest, embedding.space)
        if self.space is None:
            self.space, self.dimension = space, len(embedding)
        if space != self.space:
            raise SpaceChanged(
                f"the servers answered with different weights, {self.space.space} and"
                f" {space.space}, so the vectors cannot be compared; name one --variant that all"
                " of them serve"
            )
        self._pending.append((path, stamp, embedding))
        late = time.monotonic() - self._flushed_at >= SHARD_S
        if late or len(self._pending) >= SHARD_IMAGES:
            self.flush()

    def forget(self, path: str) -> None:
        """Hold an image's vector no longer, as the image is not what it was."""
        self._places.pop(path, None)

    def flush(self) -> None:
        """Write what was added since the last time as one more shard."""
        self._flushed_at = time.monotonic()
        if not self._pending or self.space is None:
            return
        paths, stamps, embeddings = zip(*self._pending, strict=True)
        self.folder.mkdir(exist_ok=True)
        unfinished = self.folder / f"{self._next_shard:06}.tmp"
        with unfinished.open("wb") as file:
            np.savez(
                file,
                paths=np.array(paths),
                stamps=np.array(stamps, dtype=np.int64),
                vectors=np.stack([one.vector for one in embeddings]).astype(np.float32),
                variant=self.space.variant,
                digest=self.space.digest,
                space=self.space.space,
                l2_normalize=self._l2_normalize,
            )
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self._path(self._next_shard))
        for row, (path, stamp) in enumerate(zip(paths, stamps, strict=True)):
            self._places[path] = _Place(self._next_shard, row, stamp)
        self._next_shard += 1
        self._pending.clear()

    def vectors(self, paths: Sequence[str]) -> Iterator[NDArray[np.float32]]:
        """Give the vectors of images that are here: float32 [<= SHARD_IMAGES, D], in order."""
        for start in range(0, len(paths), SHARD_IMAGES):
            places = [self._places[path] for path in paths[start : start + SHARD_IMAGES]]
            block = np.empty((len(places), self.dimension), dtype=np.float32)
            for shard in sorted({place.shard for place in places}):
                with np.load(self._path(shard)) as held:
                    vectors = held["vectors"]
                for position, place in enumerate(places):
                    if place.shard == shard:
                        block[position] = vectors[place.row]
            yield block

    def remove(self) -> None:
        """Delete what is on disk."""
        self.remove_from(self.folder)

    @classmethod
    def remove_from(cls, folder: Path) -> None:
        """Delete a journal's files, and its folder if nothing else is in it."""
        for file in _files(folder):
            file.unlink()
        with suppress(OSError):
            folder.rmdir()

    def _read(self, shard: int) -> None:
        path = self._path(shard)
        try:
            with np.load(path) as held:
                paths, stamps = held["paths"].tolist(), held["stamps"].tolist()
                space = Space(*(str(held[name]) for name in ("variant", "digest", "space")))
                normalized = bool(held["l2_normalize"])
                if self.space is None:
                    self.space, self.dimension = space, held["vectors"].shape[1]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: {error}; begin anew with --restart") from error
        if normalized != self._l2_normalize or space != self.space:
            kind = "with" if normalized else "without"
            raise ValueError(
                f"{self.folder} holds vectors of {space.space} {kind} --l2-normalize, which is not"
                " what is asked for now; ask for the same, or begin anew with --restart"
            )
        for row, (name, stamp) in enumerate(zip(paths, stamps, strict=True)):
            self._places[name] = _Place(shard, row, (stamp[0], stamp[1]))

    def _path(self, shard: int) -> Path:
        return self.folder / f"{shard:06}.npz"


def _files(folder: Path) -> list[Path]:
    """Return the files that a journal made."""
    if not folder.exists():
        return []
    return [file for file in folder.iterdir() if _OURS.fullmatch(file.name)]
