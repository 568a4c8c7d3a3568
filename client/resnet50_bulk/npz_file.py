"""Output `.npz`: NumPy arrays, read and written block by block in bounded memory."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .outputs import BLOCK_IMAGES, Existing, Results, blocks, check_is_file, replacing
from .provenance import Provenance

_TEXTS = ("paths", "failed_paths", "errors")


class NpzFile:
    """Arrays `paths`, `vectors` (float32 [N, D]), `failed_paths`, `errors`, and the provenance.

    The provenance has an array without dimensions for each attribute of `Provenance`. Names that
    are not UTF-8 are written as Python has them, with lone surrogates. An append copies the file.

    Args:
        path: The file.

    Raises:
        ValueError: It exists and is not a file.
    """

    def __init__(self, path: Path) -> None:
        check_is_file(path)
        self.path = path

    def read(self) -> Existing:
        """See `Output`."""
        names = [one.name for one in fields(Provenance)]
        with self._reading():
            with np.load(self.path, allow_pickle=False) as arrays:
                present = [name for name in names if name in arrays.files]
                provenance = Provenance.from_values({name: arrays[name].item() for name in present})
            texts = self._texts()
            with self._vectors() as (_, shape, dtype):
                expected = (len(texts["paths"]), provenance.dimension)
                if (shape, dtype) != (expected, np.dtype(provenance.dtype)):
                    raise ValueError(f"vectors is {dtype} {shape}, must be float32 {expected}")
        return Existing(provenance, set(texts["paths"]), set(texts["failed_paths"]))

    def write(self, results: Results) -> None:
        """See `Output`."""
        vectors = (found for _, found in results.vectors())
        self._write(results.provenance, results.embedded, vectors, results.failed)

    def append(self, results: Results, existing: Existing) -> None:
        """See `Output`."""
        replaced = results.replaced(existing)
        with self._reading():
            texts = self._texts()
            before = zip(texts["failed_paths"], texts["errors"], strict=True)
            failed = {path: error for path, error in before if path not in replaced}
            with self._vectors() as (file, shape, dtype):
                added = (found for _, found in results.vectors())
                vectors = chain(_rows(file, shape, dtype), added)
                paths = [*texts["paths"], *results.embedded]
                self._write(existing.provenance, paths, vectors, failed | results.failed)

    def _texts(self) -> dict[str, list[str]]:
        with np.load(self.path, allow_pickle=False) as arrays:
            return {name: arrays[name].tolist() for name in _TEXTS}

    @contextmanager
    def _vectors(self) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype[Any]]]:
        """Open the array of vectors after its header; yield it, its shape and its type."""
        with zipfile.ZipFile(self.path) as archive, archive.open("vectors.npy") as file:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            yield file, shape, dtype

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            if not zipfile.is_zipfile(self.path):
                raise ValueError("it is not a zip archive")
            yield
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(
                f"{self.path} is no output of this version of resnet50 embed: {error}"
            ) from error

    def _write(
        self,
        provenance: Provenance,
        paths: Sequence[str],
        vectors: Iterable[NDArray[np.float32]],
        failed: dict[str, str],
    ) -> None:
        shape = (len(paths), provenance.dimension)
        with replacing(self.path) as file, zipfile.ZipFile(file, "w", allowZip64=True) as archive:
            _write_texts(archive, "paths", paths)
            _write(archive, "vectors", np.dtype("<f4"), shape, vectors)
            _write_texts(archive, "failed_paths", list(failed))
            _write_texts(archive, "errors", list(failed.values()))
            for name, value in asdict(provenance).items():
                array = np.array(value)
                _write(archive, name, array.dtype, (), [array])


def _rows(
    file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Iterator[NDArray[np.float32]]:
    """Yield the rows of an open array file [N, D] as blocks."""
    count, dimension = shape
    for start in range(0, count, BLOCK_IMAGES):
        rows = min(BLOCK_IMAGES, count - start)
        content = file.read(rows * dimension * dtype.itemsize)
        yield np.frombuffer(content, dtype).reshape(rows, dimension)


def _write_texts(archive: zipfile.ZipFile, name: str, texts: Sequence[str]) -> None:
    kind = np.dtype(f"<U{max(map(len, texts), default=1) or 1}")
    arrays = (np.array(block, dtype=kind) for block in blocks(texts))
    _write(archive, name, kind, (len(texts),), arrays)


def _write(
    archive: zipfile.ZipFile,
    name: str,
    kind: np.dtype[Any],
    shape: tuple[int, ...],
    arrays: Iterable[NDArray[Any]],
) -> None:
    """Write one array of a .npz in blocks along its first axis."""
    descr = np.lib.format.dtype_to_descr(kind)
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": descr, "fortran_order": False, "shape": shape}
        )
        for array in arrays:
            file.write(np.ascontiguousarray(array, dtype=kind).tobytes())
