"""Rows of vectors in Arrow's memory format, for Parquet files and Lance datasets."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from typing import Any

from ..file_names import name_to_text, text_to_name
from .outputs import Existing, Results, blocks
from .provenance import Provenance

METADATA_KEY = b"resnet50.embedding"


def optional_module(name: str, suffix: str, extra: str) -> Any:
    """Return a module of an optional package.

    Args:
        name: Name of the module.
        suffix: Suffix of the outputs that need it.
        extra: Extra of this distribution that installs it.

    Raises:
        ValueError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ValueError(
            f"{suffix} outputs need {package}, which is not installed: install resnet50-serving"
            f" with the extra [{extra}], or use a name that ends in .npz"
        ) from error


def schema(provenance: Provenance) -> Any:
    """Return the columns `path`, `vector` (float32 [D]) and `error`, with the provenance."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("path", pa.string(), nullable=False),
            pa.field("vector", pa.list_(pa.float32(), provenance.dimension)),
            pa.field("error", pa.string()),
        ],
        metadata={METADATA_KEY: provenance.to_json()},
    )


def batches(results: Results, failed_vector: float | None) -> Iterator[Any]:
    """Yield record batches of `schema`; names are UTF-8, see `name_to_text`.

    Args:
        results: The results.
        failed_vector: Value of all elements of a failed image's vector; None for a null vector.
    """
    import pyarrow as pa

    columns, dimension = schema(results.provenance), results.provenance.dimension
    for block, found in results.vectors():
        arrays = [
            _names(block),
            pa.FixedSizeListArray.from_arrays(pa.array(found.reshape(-1)), dimension),
            pa.nulls(len(block), pa.string()),
        ]
        yield pa.RecordBatch.from_arrays(arrays, schema=columns)
    for block in blocks(list(results.failed)):
        vectors = pa.nulls(len(block), columns.field("vector").type)
        if failed_vector is not None:
            flat = pa.repeat(pa.scalar(failed_vector, pa.float32()), len(block) * dimension)
            vectors = pa.FixedSizeListArray.from_arrays(flat, dimension)
        errors = pa.array([results.failed[path] for path in block], pa.string())
        arrays = [_names(block), vectors, errors]
        yield pa.RecordBatch.from_arrays(arrays, schema=columns)


def existing(columns: Any, rows: Iterable[Any]) -> Existing:
    """Return the content of an output.

    Args:
        columns: Its schema.
        rows: Record batches with its columns `path` and `error`.

    Raises:
        ValueError: It is not an output of `resnet50 embed`, or has other columns.
    """
    metadata = columns.metadata or {}
    if METADATA_KEY not in metadata:
        raise ValueError("its schema does not tell the embedding space of the vectors")
    found = Existing(Provenance.from_json(metadata[METADATA_KEY]))
    expected = schema(found.provenance)
    if columns.names != expected.names or columns.types != expected.types:
        raise ValueError(f"its columns are not {', '.join(expected.names)}")
    for batch in rows:
        names = map(text_to_name, batch.column("path").to_pylist())
        for name, error in zip(names, batch.column("error").to_pylist(), strict=True):
            (found.embedded if error is None else found.failed).add(name)
    return found


def _names(paths: Iterable[str]) -> Any:
    import pyarrow as pa

    return pa.array([name_to_text(path) for path in paths], pa.string())
