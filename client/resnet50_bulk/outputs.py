"""Outputs: files and datasets of vectors or categories, by the suffix of their name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from .checkpoint import Checkpoint
from .provenance import Provenance

if TYPE_CHECKING:
    from .arrow_rows import Columns

# Rows that are written together: 8 MiB of vectors.
BLOCK_IMAGES = 1024


@dataclass(frozen=True)
class Existing:
    """Content of an output that is appended to.

    Attributes:
        provenance: Provenance of its vectors.
        embedded: Names of the images with a vector.
        failed: Names of the images with an error.
    """

    provenance: Provenance
    embedded: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Results:
    """Results to write: vectors first, in the images' order, then the images that failed.

    Attributes:
        checkpoint: Contains the vectors of `embedded`.
        embedded: Names of the images with a vector.
        failed: Errors of the others, by name.
    """

    checkpoint: Checkpoint
    embedded: Sequence[str]
    failed: dict[str, str]

    @property
    def provenance(self) -> Provenance:
        """Provenance of the vectors."""
        assert self.checkpoint.provenance is not None  # there are vectors
        return self.checkpoint.provenance

    def vectors(self) -> Iterator[tuple[Sequence[str], NDArray[Any]]]:
        """Yield the names and vectors of `embedded`, [<= BLOCK_IMAGES, D], as blocks."""
        for block in blocks(self.embedded):
            yield block, self.checkpoint.vectors(block)

    def replaced(self, existing: Existing) -> set[str]:
        """Return the images that failed in an existing output and have a result now."""
        return existing.failed.intersection(self.embedded) | (existing.failed & self.failed.keys())


class Output(Protocol):
    """A kind of file or dataset."""

    path: Path

    def read(self) -> Existing:
        """Return the content without the vectors.

        Raises:
            ValueError: It is not an output of `resnet50 embed`.
            OSError: It cannot be read.
        """

    def write(self, results: Results) -> None:
        """Write results; they replace the output at once, when all are written."""

    def append(self, results: Results, existing: Existing) -> None:
        """Add results; those of images that failed before replace their errors.

        Args:
            results: Results of other images than the embedded ones in the output.
            existing: The output's content.
        """


def output_at(path: Path, columns: Columns | None = None) -> Output:
    """Return the output for a name's suffix.

    Args:
        path: The name.
        columns: The column of the results; None for vectors.

    Raises:
        ValueError: The suffix is unknown, a package for it is not installed, or something else has
            that name.
    """
    # Imported here: pyarrow and Lance are optional.
    from .arrow_rows import VECTORS

    columns = columns or VECTORS
    if path.suffix not in columns.suffixes:
        *others, last = columns.suffixes
        raise ValueError(f"{path} ends in none of {', '.join(others)} and {last}")
    if path.suffix == ".npz":
        from .npz_file import NpzFile

        return NpzFile(path)
    if path.suffix == ".parquet":
        from .parquet_file import ParquetFile

        return ParquetFile(path, columns)
    from .lance_dataset import LanceDataset

    return LanceDataset(path, columns)


def check_is_file(path: Path) -> None:
    """Check that an output can be replaced by a file.

    Raises:
        ValueError: It is a folder, or another thing that is no file.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} exists and is not a file")


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that replaces `path` when the block ends without an exception."""
    unfinished = path.with_name(path.name + ".tmp")
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def blocks(paths: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield a sequence in blocks of up to `BLOCK_IMAGES`."""
    return (paths[start : start + BLOCK_IMAGES] for start in range(0, len(paths), BLOCK_IMAGES))
