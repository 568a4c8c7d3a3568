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
        for name, _ in self._rows([self._name]):
            if name in seen:
                raise ValueError(
                    f"column {self._name!r} contains {name!r} twice: name a column of unique values"
                )
            seen.add(name)
            yield name

    def fingerprint(self, name: str) -> FileFingerprint:
        """See `Source`."""
        return self._fingerprint

    def images(self, names: Sequence[str]) -> Iterator[tuple[str, ImageContent]]:
        """See `Source`."""
        missing = iter(names)
        wanted = next(missing, None)
        columns = {self._image, self._name} - {None}
        for name, value in self._rows([column for column in columns if column is not None]):
            if wanted is None:
                return
            if name == wanted:
                yield name, _content(value)
                wanted = next(missing, None)

    def _rows(self, columns: list[str]) -> Iterator[tuple[str, Any]]:
        """Yield the names and values of all rows."""
        for table in self._tables:
            row = 0
            for batch in _batches(table, columns):
                found = batch.to_pydict()
                values = found.get(self._image, [None] * len(batch))
                names = found[self._name] if self._name is not None else [None] * len(batch)
                for name, value in zip(names, values, strict=True):
                    yield (f"{table}#{row}" if name is None else str(name)), value
                    row += 1


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


def _batches(table: str, columns: list[str]) -> Iterator[Any]:
    if table.endswith(".lance"):
        dataset = optional_module("lance", ".lance", "lance").dataset(table)
        yield from dataset.to_batches(columns=columns, batch_size=ROWS, scan_in_order=True)
        return
    with open_file(table) as file:
        yield from _parquet(table, file).iter_batches(ROWS, columns=columns)


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
