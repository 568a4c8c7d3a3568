"""Output `.parquet`: one Parquet file, read and written in row groups of `BLOCK_IMAGES`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from . import arrow_rows
from .file_names import name_to_text
from .outputs import BLOCK_IMAGES, Existing, Results, check_is_file, replacing
from .provenance import Provenance

# pyarrow cannot read a file with a null among fixed-size lists, until mid-2026.
_FAILED = math.nan


class ParquetFile:
    """Columns `path`, `vector` or `categories`, and `error`, with the provenance as metadata.

    Vectors of failed images consist of NaN, like those of `Client.embed_batch`.
    An append copies the file.

    Args:
        path: The file.
        columns: The column of the results.

    Raises:
        ValueError: pyarrow is not installed, or the path exists and is not a file.
    """

    def __init__(self, path: Path, columns: arrow_rows.Columns = arrow_rows.VECTORS) -> None:
        check_is_file(path)
        self.path = path
        self._columns = columns
        self._pyarrow = arrow_rows.optional_module("pyarrow", ".parquet", "parquet")
        self._parquet = arrow_rows.optional_module("pyarrow.parquet", ".parquet", "parquet")

    def read(self) -> Existing:
        """See `Output`."""
        with self._open() as file:
            try:
                rows = file.iter_batches(BLOCK_IMAGES, columns=["path", "error"])
                return arrow_rows.existing(file.schema_arrow, rows, self._columns)
            except ValueError as error:
                raise self._no_output(error) from error

    def write(self, results: Results) -> None:
        """See `Output`."""
        self._write(self._schema(results.provenance), self._batches(results))

    def append(self, results: Results, existing: Existing) -> None:
        """See `Output`."""
        replaced = sorted(map(name_to_text, results.replaced(existing)))
        with self._open() as file:
            before = _without(file.iter_batches(BLOCK_IMAGES), replaced)
            rows = chain(before, self._batches(results))
            self._write(self._schema(existing.provenance), rows)

    def _schema(self, provenance: Provenance) -> Any:
        return arrow_rows.schema(provenance, self._columns)

    def _batches(self, results: Results) -> Iterator[Any]:
        return arrow_rows.batches(results, _FAILED, self._columns)

    def _write(self, schema: Any, rows: Iterable[Any]) -> None:
        # A dictionary of values that are all different only costs time.
        with (
            replacing(self.path) as file,
            self._parquet.ParquetWriter(file, schema, use_dictionary=False) as writer,
        ):
            for batch in rows:
                writer.write_batch(batch)

    def _open(self) -> Any:
        try:
            return self._parquet.ParquetFile(self.path)
        except self._pyarrow.ArrowException as error:
            raise self._no_output(error) from error

    def _no_output(self, error: Exception) -> ValueError:
        return ValueError(f"{self.path} is no output of this version of resnet50 embed: {error}")


def _without(rows: Iterable[Any], names: list[str]) -> Iterator[Any]:
    """Yield record batches without the rows of some failed images."""
    import pyarrow as pa
    from pyarrow import compute

    values = pa.array(names, pa.string())
    for batch in rows:
        if names:
            replaced = compute.and_(
                compute.is_valid(batch.column("error")),
                compute.is_in(batch.column("path"), value_set=values),
            )
            batch = batch.filter(compute.invert(replaced))
        if len(batch):
            yield batch
