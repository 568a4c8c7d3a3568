"""Outputs of `resnet50 embed`: round trips, appends, refusals, and bounded memory."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from resnet50_bulk.checkpoint import Checkpoint, FileFingerprint
from resnet50_bulk.outputs import BLOCK_IMAGES, Output, Results, output_at
from tests.support.embeddings import DIMENSION, embedded
from tests.support.outputs import read_output

SUFFIXES = pytest.mark.parametrize("suffix", [".npz", ".parquet", ".lance"])
PRINT = FileFingerprint(5, 7)
# Of SQL, of URIs, not UTF-8, and like the name of such a file.
NAMES = ["it's.jpg", "50%#?.jpg", "caf\udce9.jpg", "file:x.jpg", "ä.jpg"]


@pytest.fixture
def checkpoint(tmp_path):
    with Checkpoint(tmp_path / "checkpoint") as opened:
        yield opened


def add(checkpoint: Checkpoint, names: list[str], first: int = 0) -> list[str]:
    for number, name in enumerate(names, first):
        checkpoint.add(name, PRINT, embedded(number))
    checkpoint.flush()
    return names


def append(output: Output, results: Results) -> None:
    output.append(results, output.read())


@SUFFIXES
def test_names_vectors_errors_and_provenance_are_read_back(suffix, checkpoint, tmp_path):
    out = tmp_path / f"a b#%c{suffix}"
    results = Results(checkpoint, add(checkpoint, NAMES), {"e\udce9.jpg": "no image", "f": "it's"})
    output_at(out).write(results)
    found = read_output(out)
    assert (found.paths, found.vectors.shape) == (NAMES, (len(NAMES), DIMENSION))
    assert found.vectors[:, 0].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert found.errors == {"e\udce9.jpg": "no image", "f": "it's"}
    assert found.provenance == {
        "variant": "one",
        "digest": "a" * 64,
        "space": f"one@{'a' * 12}",
        "dimension": DIMENSION,
        "l2_normalized": False,
        "background": "",
        "dtype": "float32",
        "transform": "",
    }
    existing = output_at(out).read()
    assert existing.provenance == checkpoint.provenance
    assert (existing.embedded, existing.failed) == (set(NAMES), {"e\udce9.jpg", "f"})


@SUFFIXES
def test_output_of_any_number_of_images_is_in_order(suffix, checkpoint, tmp_path):
    names = [f"{number}.jpg" for number in range(2 * BLOCK_IMAGES + 3)]
    add(checkpoint, names)
    out = tmp_path / f"out{suffix}"
    output_at(out).write(Results(checkpoint, names[::-1], {}))
    found = read_output(out)
    assert found.paths == names[::-1]
    assert found.vectors[:, 0].tolist() == [float(one) for one in range(len(names))][::-1]
    add(checkpoint, ["last.jpg"], first=7)
    append(output_at(out), Results(checkpoint, ["last.jpg"], {}))
    found = read_output(out)
    assert (found.paths, found.vectors[-1, 0]) == ([*names[::-1], "last.jpg"], 7.0)


@SUFFIXES
def test_append_keeps_rows_and_replaces_errors(suffix, checkpoint, tmp_path):
    out = tmp_path / f"out{suffix}"
    failed = {"it's bad.jpg": "unreadable", "caf\udce9.jpg": "no image", "other.jpg": "empty"}
    output_at(out).write(Results(checkpoint, add(checkpoint, ["a.jpg", "b.jpg"]), failed))
    add(checkpoint, ["it's bad.jpg", "c.jpg"], first=20)
    append(
        output_at(out),
        Results(checkpoint, ["it's bad.jpg", "c.jpg"], {"caf\udce9.jpg": "too large", "d": "new"}),
    )
    found = read_output(out)
    assert found.paths == ["a.jpg", "b.jpg", "it's bad.jpg", "c.jpg"]
    assert found.vectors[:, 0].tolist() == [0.0, 1.0, 20.0, 21.0]
    assert found.errors == {"caf\udce9.jpg": "too large", "other.jpg": "empty", "d": "new"}


@SUFFIXES
def test_output_is_replaced_by_a_write(suffix, checkpoint, tmp_path):
    out = tmp_path / f"out{suffix}"
    output_at(out).write(Results(checkpoint, add(checkpoint, ["a.jpg"]), {"x.jpg": "bad"}))
    with Checkpoint(tmp_path / "other") as other:
        other.add("b.jpg", PRINT, embedded(3, variant="two"))
        other.flush()
        output_at(out).write(Results(other, ["b.jpg"], {}))
    found = read_output(out)
    assert (found.paths, found.errors, found.provenance["variant"]) == (["b.jpg"], {}, "two")


@SUFFIXES
def test_failed_write_leaves_the_output_as_it_was(suffix, checkpoint, tmp_path):
    out = tmp_path / f"out{suffix}"
    output_at(out).write(Results(checkpoint, add(checkpoint, ["a.jpg"]), {}))
    missing = Results(checkpoint, ["a.jpg", "missing.jpg"], {})
    for write in (output_at(out).write, lambda results: append(output_at(out), results)):
        with pytest.raises((ValueError, OSError), match=r"missing\.jpg"):
            write(missing)
    assert read_output(out).paths == ["a.jpg"]
    assert {file.name for file in tmp_path.iterdir()} == {out.name, "checkpoint"}


@SUFFIXES
def test_something_else_of_that_name_is_refused(suffix, tmp_path):
    out = tmp_path / f"out{suffix}"
    if suffix == ".lance":
        (out / "photos").mkdir(parents=True)
    else:
        out.mkdir()
    with pytest.raises(ValueError, match="exists and is not"):
        output_at(out)


def foreign(out: Path) -> None:
    """Write a file of vectors that does not tell their embedding space."""
    if out.suffix == ".npz":
        np.savez(out, paths=["a.jpg"], vectors=np.zeros((1, DIMENSION), np.float32))
    else:
        table = pa.table({"path": ["a.jpg"], "vector": [[0.0]], "error": pa.nulls(1, pa.string())})
        if out.suffix == ".parquet":
            pyarrow.parquet.write_table(table, out)
        else:
            import lance

            lance.write_dataset(table, str(out))


@SUFFIXES
def test_vectors_of_unknown_provenance_are_not_appended_to(suffix, tmp_path):
    out = tmp_path / f"out{suffix}"
    foreign(out)
    with pytest.raises(ValueError, match="is no output of this version of resnet50 embed"):
        output_at(out).read()


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_damaged_file_is_not_appended_to(suffix, checkpoint, tmp_path):
    out = tmp_path / f"out{suffix}"
    output_at(out).write(Results(checkpoint, add(checkpoint, ["a.jpg", "b.jpg"]), {}))
    whole = out.read_bytes()
    for content in (b"", b"no archive", whole[: len(whole) // 2]):
        out.write_bytes(content)
        with pytest.raises(ValueError, match="is no output of this version of resnet50 embed"):
            output_at(out).read()


@pytest.mark.parametrize("suffix", [".parquet", ".lance"])
def test_column_that_a_user_added_is_not_dropped_by_an_append(suffix, checkpoint, tmp_path):
    plain, out = tmp_path / "plain.parquet", tmp_path / f"out{suffix}"
    output_at(plain).write(Results(checkpoint, add(checkpoint, ["a.jpg"]), {}))
    table = pyarrow.parquet.read_table(plain)
    wider = table.append_column("label", pa.array(["cat"]))
    if suffix == ".parquet":
        pyarrow.parquet.write_table(wider, out)
    else:
        import lance

        lance.write_dataset(wider, str(out))
    with pytest.raises(ValueError, match="its columns are not path, vector, error"):
        output_at(out).read()


def test_npz_arrays_that_do_not_fit_are_refused(checkpoint, tmp_path):
    out = tmp_path / "out.npz"
    output_at(out).write(Results(checkpoint, add(checkpoint, ["a.jpg"]), {}))
    with np.load(out) as loaded:
        arrays = dict(loaded)
    for change in ({"vectors": arrays["vectors"][:, :5]}, {"paths": np.array(["a", "b"])}):
        np.savez(out, **(arrays | change))
        with pytest.raises(ValueError, match="vectors is float32"):
            output_at(out).read()
    np.savez(out, **(arrays | {"dimension": np.array("many")}))
    with pytest.raises(ValueError, match="dimension is 'many', must be int"):
        output_at(out).read()


def test_parquet_metadata_is_readable_without_this_project(checkpoint, tmp_path):
    out = tmp_path / "out.parquet"
    output_at(out).write(Results(checkpoint, add(checkpoint, ["a.jpg"]), {}))
    metadata = pyarrow.parquet.read_metadata(out).metadata
    assert json.loads(metadata[b"resnet50.embedding"])["space"] == f"one@{'a' * 12}"
    assert pyarrow.parquet.read_schema(out).field("vector").type == pa.list_(
        pa.float32(), DIMENSION
    )


def test_lance_search_finds_images_and_no_failed_ones(checkpoint, tmp_path):
    import lance

    out = tmp_path / "out.lance"
    failed = {f"failed {number}.jpg": "no image" for number in range(5)}
    output_at(out).write(Results(checkpoint, add(checkpoint, ["0.jpg", "1.jpg", "2.jpg"]), failed))
    query = embedded(2).vector
    nearest = {"column": "vector", "q": query, "k": 8}
    found = lance.dataset(str(out)).to_table(columns=["path"], nearest=nearest)
    assert found["path"].to_pylist() == ["2.jpg", "1.jpg", "0.jpg"]


def test_unknown_suffix_is_refused_by_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"none of \.npz, \.parquet and \.lance"):
        output_at(tmp_path / "out.csv")


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_memory_of_a_write_is_bounded(suffix, checkpoint, tmp_path):
    names = add(checkpoint, [f"{number}.jpg" for number in range(16 * BLOCK_IMAGES)])
    results = Results(checkpoint, names, {})
    default = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(default)
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        output_at(tmp_path / f"out{suffix}").write(results)
        append(output_at(tmp_path / f"out{suffix}"), Results(checkpoint, [], {}))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(default)
    assert peak + pool.max_memory() < 4 * DIMENSION * len(names) / 2
