"""Rows of results in Arrow's memory format, for Parquet files and Lance datasets."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .file_names import name_to_text, text_to_name
from .outputs import Existing, Results, blocks
from .provenance import Provenance

METADATA_KEY = b"resnet50.embedding"


def optional_module(name: str, suffix: str, extra: str) -> Any:
    """Return a module of an optional package.

    Args:
        name: Name of the module.
        suffix: Suffix of the files that need it.
        extra: Extra of this distribution that installs it.

    Raises:
        ValueError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ValueError(
            f"{suffix} files need {package}, which is not installed: install resnet50-serving with"
            f" the extra [{extra}], or use others: .npz for an output"
        ) from error


class Columns(Protocol):
    """The column of the results, beside `path` and `error`.

    Attributes:
        name: Its name.
        metadata_key: Key of the provenance in the schema's metadata.
        suffixes: Suffixes of the outputs that have it.
    """

    name: str
    metadata_key: bytes
    suffixes: tuple[str, ...]

    def type(self, provenance: Provenance) -> Any:
        """Return its type."""

    def array(self, found: NDArray[Any], provenance: Provenance) -> Any:
        """Return results, [N, D], as an array of the column."""


class VectorColumn:
    """Column `vector`, float32 [D]."""

    name = "vector"
    metadata_key = METADATA_KEY
    suffixes: tuple[str, ...] = (".npz", ".parquet", ".lance")

    def type(self, provenance: Provenance) -> Any:
        """See `Columns`."""
        import pyarrow as pa

        return pa.list_(pa.float32(), provenance.dimension)

    def array(self, found: NDArray[Any], provenance: Provenance) -> Any:
        """See `Columns`."""
        import pyarrow as pa

        return pa.FixedSizeListArray.from_arrays(pa.array(found.reshape(-1)), provenance.dimension)


class CategoryColumn:
    """Column `categories`: index, label and probability, by falling probability.

    Args:
        labels: Names of all categories, by index.
    """

    name = "categories"
    metadata_key = b"resnet50.classification"
    suffixes: tuple[str, ...] = (".parquet", ".lance")

    def __init__(self, labels: Sequence[str] = ()) -> None:
        self._labels = np.array(labels, dtype=object)

    def type(self, provenance: Provenance) -> Any:
        """See `Columns`."""
        import pyarrow as pa

        fields = [("index", pa.int32()), ("label", pa.string()), ("probability", pa.float32())]
        return pa.list_(pa.struct(fields))

    def array(self, found: NDArray[Any], provenance: Provenance) -> Any:
        """See `Columns`."""
        import pyarrow as pa

        flat = found.reshape(-1)
        values = pa.StructArray.from_arrays(
            [
                pa.array(np.ascontiguousarray(flat["index"])),
                pa.array(self._labels[flat["index"]], pa.string()),
                pa.array(np.ascontiguousarray(flat["probability"])),
            ],
            names=["index", "label", "probability"],
        )
        starts = np.arange(len(found) + 1, dtype=np.int32) * found.shape[1]
        return pa.ListArray.from_arrays(pa.array(starts), values)


VECTORS: Columns = VectorColumn()


def schema(provenance: Provenance, columns: Columns = VECTORS) -> Any:
    """Return the columns `path`, the results' and `error`, with the provenance."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("path", pa.string(), nullable=False),
            pa.field(columns.name, columns.type(provenance)),
            pa.field("error", pa.string()),
        ],
        metadata={columns.metadata_key: provenance.to_json()},
    )


def batches(
    results: Results, failed_vector: float | None, columns: Columns = VECTORS
) -> Iterator[Any]:
    """Yield record batches of `schema`; names are UTF-8, see `name_to_text`.

    Args:
        results: The results.
        failed_vector: Value of all elements of a failed image's vector; None for a null vector.
        columns: The column of the results.
    """
    import pyarrow as pa

    provenance = results.provenance
    rows, dimension = schema(provenance, columns), provenance.dimension
    for block, found in results.vectors():
        arrays = [
            _names(block),
            columns.array(found, provenance),
            pa.nulls(len(block), pa.string()),
        ]
        yield pa.RecordBatch.from_arrays(arrays, schema=rows)
    for block in blocks(list(results.failed)):
        vectors = pa.nulls(len(block), rows.field(columns.name).type)
        if failed_vector is not None and columns is VECTORS:
            flat = pa.repeat(pa.scalar(failed_vector, pa.float32()), len(block) * dimension)
            vectors = pa.FixedSizeListArray.from_arrays(flat, dimension)
        errors = pa.array([results.failed[path] for path in block], pa.string())
        arrays = [_names(block), vectors, errors]
        yield pa.RecordBatch.from_arrays(arrays, schema=rows)


def existing(found_schema: Any, rows: Iterable[Any], columns: Columns = VECTORS) -> Existing:
    """Return the content of an output.

    Args:
        found_schema: Its schema.
        rows: Record batches with its columns `path` and `error`.
        columns: The column of the results.

    Raises:
        ValueError: It is not an output of `resnet50 embed`, or has other columns.
    """
    metadata = found_schema.metadata or {}
    if columns.metadata_key not in metadata:
        raise ValueError("its schema does not tell the embedding space of the vectors")
    found = Existing(Provenance.from_json(metadata[columns.metadata_key]))
    expected = schema(found.provenance, columns)
    if found_schema.names != expected.names or found_schema.types != expected.types:
        raise ValueError(f"its columns are not {', '.join(expected.names)}")
    for batch in rows:
        names = map(text_to_name, batch.column("path").to_pylist())
        for name, error in zip(names, batch.column("error").to_pylist(), strict=True):
            (found.embedded if error is None else found.failed).add(name)
    return found


def _names(paths: Iterable[str]) -> Any:
    import pyarrow as pa

    return pa.array([name_to_text(path) for path in paths], pa.string())
