"""Writers of embedding files, block by block in bounded memory."""

from __future__ import annotations

import importlib
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..file_names import name_to_text
from .checkpoint import SHARD_IMAGES, Checkpoint

Writer = Callable[[Path, Sequence[str], Checkpoint], None]


def write_npz(out: Path, paths: Sequence[str], checkpoint: Checkpoint) -> None:
    """Write `paths`, `vectors` (float32 [N, D]), `variant`, `digest` and `space`.

    Names that are not UTF-8 are written as Python has them, with lone surrogates.

    Args:
        out: Output file, replaced atomically at the end.
        paths: Images of the checkpoint, in output order.
        checkpoint: Contains their vectors.
    """
    assert checkpoint.space is not None
    kind = np.dtype(f"<U{max(map(len, paths))}")
    blocks = (np.array(block, dtype=kind) for block in _blocks(paths))
    shape = (len(paths), checkpoint.dimension)
    with _replacing(out) as file, zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        _write(archive, "paths", kind, shape[:1], blocks)
        _write(archive, "vectors", np.dtype("<f4"), shape, checkpoint.vectors(paths))
        for name, value in vars(checkpoint.space).items():
            array = np.array(value)
            _write(archive, name, array.dtype, (), [array])


def write_parquet(out: Path, paths: Sequence[str], checkpoint: Checkpoint) -> None:
    """Write the columns `path`, `vector` (float32, fixed size), `variant` and `digest`.

    The column `path` is UTF-8: see `name_to_text`.

    Args:
        out: Output file, replaced atomically at the end.
        paths: Images of the checkpoint, in output order.
        checkpoint: Contains their vectors.
    """
    assert checkpoint.space is not None
    pa, parquet = _pyarrow()
    schema = pa.schema(
        {
            "path": pa.string(),
            "vector": pa.list_(pa.float32(), checkpoint.dimension),
            "variant": pa.string(),
            "digest": pa.string(),
        }
    )
    with _replacing(out) as file, parquet.ParquetWriter(file, schema) as writer:
        for block, vectors in zip(_blocks(paths), checkpoint.vectors(paths), strict=True):
            flat = pa.array(vectors.reshape(-1), pa.float32())
            columns = [
                pa.array([name_to_text(path) for path in block], pa.string()),
                pa.FixedSizeListArray.from_arrays(flat, checkpoint.dimension),
                pa.array([checkpoint.space.variant] * len(block)),
                pa.array([checkpoint.space.digest] * len(block)),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def writer_for(out: Path) -> Writer:
    """Return the writer for a file name's suffix.

    Raises:
        ValueError: The suffix is unknown, or pyarrow is not installed.
    """
    if out.suffix == ".npz":
        return write_npz
    if out.suffix == ".parquet":
        _pyarrow()
        return write_parquet
    raise ValueError(f"{out} ends in neither .npz nor .parquet")


def _pyarrow() -> tuple[Any, Any]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ValueError(
            "Parquet files need pyarrow, which is not installed: install resnet50-serving with the"
            " extra [parquet], or use a name that ends in .npz"
        ) from error


def _blocks(paths: Sequence[str]) -> Iterator[Sequence[str]]:
    return (paths[start : start + SHARD_IMAGES] for start in range(0, len(paths), SHARD_IMAGES))


def _write(
    archive: zipfile.ZipFile,
    name: str,
    kind: np.dtype[Any],
    shape: tuple[int, ...],
    blocks: Iterable[NDArray[Any]],
) -> None:
    """Write one array of a .npz in blocks along its first axis."""
    descr = np.lib.format.dtype_to_descr(kind)
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": descr, "fortran_order": False, "shape": shape}
        )
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype=kind).tobytes())


@contextmanager
def _replacing(out: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that replaces `out` when the block ends."""
    unfinished = out.with_name(out.name + ".tmp")
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)
