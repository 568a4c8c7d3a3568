"""Output `.lance`: a Lance dataset, a folder that vector databases search without a copy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import arrow_rows
from .file_names import name_to_text
from .outputs import Existing, Results, blocks


class LanceDataset:
    """Columns `path`, `vector` or `categories`, and `error`, with the provenance as metadata.

    Vectors of failed images are null, which an index leaves out. Lance commits a write as a whole,
    as a new version of the dataset. An append copies nothing.

    Args:
        path: The dataset's folder.
        columns: The column of the results.

    Raises:
        ValueError: Lance is not installed, or the path exists and is not a Lance dataset.
    """

    def __init__(self, path: Path, columns: arrow_rows.Columns = arrow_rows.VECTORS) -> None:
        self.path = path
        self._columns = columns
        self._lance = arrow_rows.optional_module("lance", ".lance", "lance")
        try:
            self._uri = str(path.absolute())
            self._uri.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{path}: Lance accepts only names that are UTF-8") from error
        if path.exists() and not (path / "_versions").is_dir():
            raise ValueError(f"{path} exists and is not a Lance dataset")

    def read(self) -> Existing:
        """See `Output`."""
        try:
            dataset = self._lance.dataset(self._uri)
            rows = dataset.to_batches(columns=["path", "error"])
            return arrow_rows.existing(dataset.schema, rows, self._columns)
        except ValueError as error:
            raise ValueError(
                f"{self.path} is no output of this version of resnet50 embed: {error}"
            ) from error

    def write(self, results: Results) -> None:
        """See `Output`."""
        self._write(results, "overwrite" if self.path.exists() else "create")

    def append(self, results: Results, existing: Existing) -> None:
        """See `Output`."""
        dataset = self._lance.dataset(self._uri)
        # Deleted first: if the process ends between the two commits, the checkpoint still has the
        # new results.
        for block in blocks(sorted(map(name_to_text, results.replaced(existing)))):
            names = ", ".join("'{}'".format(name.replace("'", "''")) for name in block)
            dataset.delete(f"error IS NOT NULL AND path IN ({names})")
        self._write(results, "append")

    def _write(self, results: Results, mode: str) -> None:
        import pyarrow as pa

        failures: list[Exception] = []
        rows = _remembering(arrow_rows.batches(results, None, self._columns), failures)
        schema = arrow_rows.schema(results.provenance, self._columns)
        try:
            reader = pa.RecordBatchReader.from_batches(schema, rows)
            self._lance.write_dataset(reader, self._uri, mode=mode)
        except (OSError, ValueError) as error:
            # Lance's own error has the traceback of one in the rows as its message.
            raise (failures[0] if failures else error) from error


def _remembering(rows: Iterator[Any], failures: list[Exception]) -> Iterator[Any]:
    """Yield rows; append an exception of theirs to `failures` before it is raised."""
    try:
        yield from rows
    except Exception as error:
        failures.append(error)
        raise
