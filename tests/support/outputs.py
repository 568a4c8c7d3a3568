"""Outputs of `resnet50 embed`, read as their users read them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet50_bulk.file_names import text_to_name

PROVENANCE = (
    *("variant", "digest", "space", "dimension", "l2_normalized", "background", "dtype"),
    "transform",
)


@dataclass(frozen=True)
class ReadOutput:
    """Content of an output.

    Attributes:
        paths: Names of the images with a vector.
        vectors: Their vectors, float32 [N, D].
        errors: Errors of the other images, by name.
        provenance: The weights and options.
    """

    paths: list[str]
    vectors: NDArray[np.float32]
    errors: dict[str, str]
    provenance: dict[str, Any]


def read_output(out: Path) -> ReadOutput:
    if out.suffix == ".npz":
        with np.load(out) as found:
            assert set(found.files) == {"paths", "vectors", "failed_paths", "errors", *PROVENANCE}
            errors = dict(
                zip(found["failed_paths"].tolist(), found["errors"].tolist(), strict=True)
            )
            provenance = {name: found[name].item() for name in PROVENANCE}
            return ReadOutput(found["paths"].tolist(), found["vectors"], errors, provenance)
    if out.suffix == ".parquet":
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(out)
    else:
        import lance

        table = lance.dataset(str(out)).to_table()
    provenance = json.loads(table.schema.metadata[b"resnet50.embedding"])
    assert table.schema.names == ["path", "vector", "error"]
    assert str(table.schema.field("vector").type).startswith("fixed_size_list<")
    rows = table.to_pylist()
    embedded = [row for row in rows if row["error"] is None]
    failed = [row for row in rows if row["error"] is not None]
    for row in failed:
        assert row["vector"] is None if out.suffix == ".lance" else np.isnan(row["vector"]).all()
    return ReadOutput(
        [text_to_name(row["path"]) for row in embedded],
        np.array([row["vector"] for row in embedded], dtype=np.float32),
        {text_to_name(row["path"]): row["error"] for row in failed},
        provenance,
    )
