"""Embed a table of images: python examples/bulk_to_parquet.py photos.csv photos.parquet.

photos.csv has a column `path`; photos.parquet gets its columns, `vector` and `error`. Needs pandas
and resnet50-serving[parquet]. `resnet50 embed` does this from the command line, and resumes.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from resnet50_client import Client

ROWS = 10_000  # in memory at a time: 80 MB of vectors


def with_vectors(frame: pd.DataFrame, client: Client) -> pa.Table:
    """Return the rows with their vectors, float32 [2048]; null where there is an error."""
    batch = client.embed_batch(frame["path"])
    dimension = batch.vectors.shape[1]
    vectors = pa.FixedSizeListArray.from_arrays(
        pa.array(batch.vectors.ravel()), dimension, mask=pa.array(~batch.succeeded)
    )
    errors = [str(batch.errors[row]) if row in batch.errors else None for row in range(len(frame))]
    table = pa.Table.from_pandas(frame, preserve_index=False)
    table = table.append_column("vector", vectors)
    return table.append_column("error", pa.array(errors, pa.string()))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("table", metavar="CSV")
    parser.add_argument("out", metavar="PARQUET")
    parser.add_argument("--server", default="localhost:50051", metavar="HOST:PORT")
    options = parser.parse_args()
    failed = 0
    with Client(options.server) as client, pd.read_csv(options.table, chunksize=ROWS) as parts:
        writer = None
        try:
            for frame in parts:
                table = with_vectors(frame, client)
                writer = writer or pq.ParquetWriter(options.out, table.schema)
                writer.write_table(table)
                failed += int(np.count_nonzero(table["error"].is_valid()))
        finally:
            if writer is not None:
                writer.close()
    print(f"{options.out}: {failed} images failed")


if __name__ == "__main__":
    main()
