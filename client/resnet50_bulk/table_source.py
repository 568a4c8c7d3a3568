"""Source: a column of Parquet files or Lance datasets, with images or their paths."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from .arrow_rows import optional_module
from .source import FileFingerprint, ImageContent
from .store_source import StoreFile, open_file, store_fingerprint

# Rows that are in memory at once.
ROWS = 32
# Names of columns by which they are found if none is named, in this order.
IMAGE_COLUMNS = ("image", "bytes", "content", "path", "url")
NAME_COLUMNS = ("id", "name", "path", "url")


class TableSource:
    """Rows of tables: each has an image, as bytes or as the path or address of its file.

    A column of structs with `bytes` and `path`, as Hugging Face's datasets have, is read likewise.
    A row without an image is an error in its place. The fingerprint of an image is that of all
    tables.

    Args:
        tables: Parquet files, or Lance datasets.
        image: Column of the images; None for the first of `IMAGE_COLUMNS`.
        name: Column of the names, which are unique; None for the first of `NAME_COLUMNS` with
            texts or integers, or else "TABLE#ROW".

    Raises:
        ValueError: pyarrow or Lance is not installed, or a column does not exist.
        OSError: A table cannot be read.
    """

    def __init__(
        self, tables: Iterable[str], image: str | None = None, name: str | None = None
    ) -> None:
        self._tables = list(tables)
        types = _types(self._tables[0])
        self._image = _chosen(self._tables[0], "image", image, IMAGE_COLUMNS, types)
        names = [one for one in NAME_COLUMNS if types.get(one) in ("string", "int64", "int32")]
        self._name = name or next(iter(names), None)
        if name is not None:
            _chosen(self._tables[0], "name", name, (), types)
        parts = [store_fingerprint(table) for table in self._tables]
        self._fingerprint = FileFingerprint(
            sum(part.size for part in parts), max(part.mtime_ns for part in parts)
        )

    def names(self) -> Iterator[str]:
        """See `Source`."""
        if self._name is None:
            for table in self._tables:
                yield from (f"{table}#{row}" for row in range(_length(table)))
            return
        seen = set()
        for table in self._tables:
            for name in _column(table, self._name, 0):
                if name in seen:
                    raise ValueError(
                        f"column {self._name!r} contains {str(name)!r} twice: name a column of"
                        " unique values"
                    )
                seen.add(name)
                yield str(name)

    def fingerprint(self, name: str) -> FileFingerprint:
        """See `Source`."""
        return self._fingerprint

    def images(self, names: Sequence[str]) -> Iterator[tuple[str, ImageContent]]:
        """See `Source`."""
        missing = iter(names)
        wanted = next(missing, None)
        for table in self._tables:
            # Tables, and the start of one, are passed over without reading their images.
            first = None if wanted is None else self._row_of(table, wanted)
            if first is None:
                continue
            for name, value in self._rows(table, first):
                if wanted is None:
                    return
                if name == wanted:
                    yield name, _content(value)
                    wanted = next(missing, None)

    def _row_of(self, table: str, name: str) -> int | None:
        """Return the number of the row of a name; None if the table does not have it."""
        if self._name is None:
            prefix, _, row = name.rpartition("#")
            return int(row) if prefix == table else None
        names = map(str, _column(table, self._name, 0))
        return next((row for row, found in enumerate(names) if found == name), None)

    def _rows(self, table: str, first: int) -> Iterator[tuple[str, Any]]:
        """Yield the names and values of a table's rows from the first one on."""
        values = _column(table, self._image, first)
        if self._name is None:
            for row, value in enumerate(values, first):
                yield f"{table}#{row}", value
        else:
            yield from zip(map(str, _column(table, self._name, first)), values, strict=True)


def _content(value: Any) -> ImageContent:
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        return StoreFile(value) if "://" in value else value
    if isinstance(value, bytes):
        return value
    return OSError(errno.ENODATA, "the row has no image")


def _types(table: str) -> dict[str, str]:
    if table.endswith(".lance"):
        schema = optional_module("lance", ".lance", "lance").dataset(table).schema
    else:
        with open_file(table) as file:
            schema = _parquet(table, file).schema_arrow
    return dict(zip(schema.names, map(str, schema.types), strict=True))


def _length(table: str) -> int:
    if table.endswith(".lance"):
        return int(optional_module("lance", ".lance", "lance").dataset(table).count_rows())
    with open_file(table) as file:
        return int(_parquet(table, file).metadata.num_rows)


def _column(table: str, column: str, first: int) -> Iterator[Any]:
    """Yield the values of a column from a row on, without reading the groups of rows before it."""
    if table.endswith(".lance"):
        dataset = optional_module("lance", ".lance", "lance").dataset(table)
        for batch in dataset.to_batches(
            columns=[column], batch_size=ROWS, scan_in_order=True, offset=first
        ):
            yield from batch.column(0).to_pylist()
        return
    with open_file(table) as file:
        parquet = _parquet(table, file)
        groups: list[int] = []
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            if groups or first < rows:
                groups.append(group)
            else:
                first -= rows
        if not groups:
            return
        for batch in parquet.iter_batches(ROWS, row_groups=groups, columns=[column]):
            yield from batch.column(0)[first:].to_pylist()
            first = max(0, first - len(batch))


def _parquet(table: str, file: Any) -> Any:
    parquet = optional_module("pyarrow.parquet", ".parquet", "parquet")
    try:
        return parquet.ParquetFile(file)
    except optional_module("pyarrow", ".parquet", "parquet").ArrowException as error:
        raise ValueError(f"{table} is no Parquet file: {error}") from error


def _chosen(
    table: str, kind: str, column: str | None, usual: Sequence[str], types: dict[str, str]
) -> str:
    wanted = (column,) if column is not None else usual
    for one in wanted:
        if one in types:
            return one
    raise ValueError(
        f"{table} has no {kind} column {' or '.join(wanted)}; its columns are {', '.join(types)}"
    )
