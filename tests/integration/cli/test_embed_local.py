"""`resnet50 embed --local` and `resnet50_server.offline`: images to vectors without a server."""

from __future__ import annotations

import asyncio
import json
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow.parquet
import pytest

from resnet50_client import AsyncClient
from resnet50_server.offline import Progress, classify, embed
from tests.integration.cli.test_extras import without
from tests.support.offline import (
    assert_each_once,
    embed_local,
    saved,
    start_local,
    write_images,
)
from tests.support.outputs import read_output
from tests.support.pictures import encode, photo_like
from tests.support.serving import serving, until

# Each batch takes so long that a run can be killed in its middle.
SLOW = {"engine": "timed", "timed_alpha_ms": 100, "timed_beta_ms": 0}
NULL = {"engine": "null"}


def partial_has_more(partial: Path, count: int) -> Callable[[], bool]:
    return lambda: len(saved(partial)) > count


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".lance"])
def test_bad_images_are_rows_with_their_error(suffix, tmp_path):
    out, folder = tmp_path / f"out{suffix}", tmp_path / "d"
    broken = write_images(folder, 40, broken=3)
    status, stdout, said = embed_local(folder, "--out", out, "--json", "--variant", "IMAGENET1K_V1")
    assert status == 1, said
    assert json.loads(stdout) == {"embedded": 37, "failed": 3, "out": str(out)}
    assert_each_once(out, folder, broken)
    found = read_output(out)
    assert all("image.encoded" in error for error in found.errors.values())
    assert all(name in said for name in broken)
    assert (found.vectors.shape, found.provenance["variant"]) == ((37, 2048), "IMAGENET1K_V1")
    for name in ("digest", "transform"):
        assert len(found.provenance[name]) == 64
    assert found.provenance["space"] == f"IMAGENET1K_V1@{found.provenance['digest'][:12]}"


async def test_killed_run_of_2000_files_has_each_once(tmp_path):
    out, folder = tmp_path / "out.parquet", tmp_path / "d"
    partial = tmp_path / "out.parquet.partial"
    broken = write_images(folder, 2000, broken=20)
    kept: set[str] = set()
    for _ in range(2):
        process = start_local("--local", folder, "--out", out, **SLOW)
        await until(partial_has_more(partial, len(kept)))
        process.kill()
        process.communicate(timeout=60)
        assert not out.exists()
        assert kept < saved(partial)
        kept = saved(partial)
    status, _, said = embed_local(folder, "--out", out, **SLOW)
    assert (status, "1980 images embedded" in said) == (1, True), said
    assert_each_once(out, folder, broken)


async def test_interrupted_run_keeps_its_images(tmp_path):
    out, folder = tmp_path / "out.npz", tmp_path / "d"
    write_images(folder, 600)
    process = start_local("--local", folder, "--out", out, "--json", **SLOW)
    await until(lambda: saved(tmp_path / "out.npz.partial"))
    process.send_signal(signal.SIGINT)
    stdout, said = process.communicate(timeout=60)
    assert process.wait() == 130, said
    assert json.loads(stdout)["embedded"] == len(saved(tmp_path / "out.npz.partial"))
    status, _, said = embed_local(folder, "--out", out, **SLOW)
    assert status == 0, said
    assert_each_once(out, folder, [])


def test_append_of_another_space_is_refused(tmp_path):
    out, folder = tmp_path / "out.parquet", tmp_path / "d"
    write_images(folder, 3)
    append = (folder, "--out", out, "--append")
    assert embed_local(*append)[0] == 0
    before = out.read_bytes()
    for other in (("--variant", "IMAGENET1K_V1"), ("--l2-normalize",), ("--background", "white")):
        status, _, said = embed_local(*append, *other)
        assert (status, "which those of this run do not match" in said) == (2, True), said
    assert out.read_bytes() == before
    status, stdout, said = embed_local(*append, "--json")
    assert json.loads(stdout) == {"embedded": 0, "failed": 0, "out": str(out), "skipped": 3}, said


def test_sources_of_the_command_are_archives_and_tables(tmp_path):
    folder = tmp_path / "d"
    write_images(folder, 4)
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        tar.add(folder, "d")
    status, _, said = embed_local(tmp_path / "0.tar", "--out", tmp_path / "tar.npz")
    assert status == 0, said
    found = read_output(tmp_path / "tar.npz")
    assert found.paths[0] == f"tar://d/00000.png::{tmp_path / '0.tar'}"
    names = sorted(map(str, folder.iterdir()))
    pyarrow.parquet.write_table(pyarrow.table({"path": names}), tmp_path / "t.parquet")
    status, _, said = embed_local(tmp_path / "t.parquet", "--out", tmp_path / "table.npz")
    assert (status, read_output(tmp_path / "table.npz").paths) == (0, names), said
    status, _, said = embed_local(tmp_path / "0.tar", folder, "--out", tmp_path / "x.npz")
    assert (status, "pass one kind of source" in said) == (2, True), said


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("--variant", "nothing"), 1, "nothing"),
        (("--background", "mauve"), 2, "mauve"),
        (("--timeout-s", "3"), 2, "connection options"),
        (("--server", "127.0.0.1:1"), 2, "connection options"),
        (("--worker-cpus", "2"), 2, "needs --ray"),
    ],
)
def test_wrong_options_say_why_and_leave_no_file(arguments, status, words, tmp_path):
    write_images(tmp_path / "d", 1)
    found, _, said = embed_local(tmp_path / "d", "--out", tmp_path / "x.npz", *arguments)
    assert (found, words in said) == (status, True), said
    assert [file.name for file in tmp_path.iterdir()] == ["d"]


def test_wrong_setting_of_the_environment_is_named(tmp_path):
    write_images(tmp_path / "d", 1)
    settings = {"max_batch_size": 0}
    status, _, said = embed_local(tmp_path / "d", "--out", tmp_path / "x.npz", **settings)
    assert (status, "max_batch_size" in said) == (2, True), said


@pytest.mark.parametrize("module", ["resnet50_server", "pydantic_settings"])
def test_missing_server_is_one_sentence(module, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    arguments = ("embed", "--local", str(tmp_path / "a.jpg"), "--out", str(tmp_path / "x.npz"))
    done = without(module, *arguments)
    sentence = (
        f"resnet50 embed --local needs {module}: install resnet50-serving with the extra [offline]"
    )
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, sentence)


def test_embed_returns_counts_and_tells_its_progress(tmp_path):
    folder = tmp_path / "d"
    broken = write_images(folder, 30, broken=2)
    seen: list[Progress] = []
    summary = embed(folder, tmp_path / "out.npz", on_progress=seen.append, **NULL)
    assert (summary.written, summary.failed, summary.skipped) == (28, 2, 0)
    assert_each_once(tmp_path / "out.npz", folder, broken)
    assert (seen[-1].done, seen[-1].failed, seen[-1].total) == (30, 2, 30)
    assert seen[-1].remaining_s == 0
    assert str(seen[-1]).startswith("30 of 30 images, 2 failed, ")


def rows_of(out: Path) -> Any:
    if out.suffix == ".parquet":
        return pyarrow.parquet.read_table(out)
    return lance.dataset(str(out)).to_table()


async def test_categories_are_the_served_ones(tmp_path):
    folder, out = tmp_path / "d", tmp_path / "out.parquet"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(encode(photo_like(64, 48, number), "JPEG"))
    options = {"engine": "torch", "device": "cpu", "max_batch_size": 1}
    async with (
        serving(variants=["one=random:1"], **options) as server,
        AsyncClient(server.addresses[0]) as client,
    ):
        served = [
            await client.classify(folder / f"{number}.jpg", top_k=3, min_probability=0.0)
            for number in range(3)
        ]
    await asyncio.to_thread(classify, folder, out, variant="one=random:1", top_k=3, **options)
    for row, result in zip(rows_of(out).to_pylist(), served, strict=True):
        assert row["categories"] == [
            {"index": one.index, "label": one.label, "probability": np.float32(one.probability)}
            for one in result
        ]


@pytest.mark.parametrize("suffix", [".parquet", ".lance"])
def test_classifications_are_appended_with_errors_in_place(suffix, tmp_path):
    folder, out = tmp_path / "d", tmp_path / f"out{suffix}"
    write_images(folder, 3)
    (folder / "x.jpg").write_bytes(b"")
    options = {"top_k": 3, **NULL}
    summary = classify(folder, out, **options)
    assert (summary.written, summary.failed) == (3, 1)
    provenance = json.loads(rows_of(out).schema.metadata[b"resnet50.classification"])
    assert (provenance["dtype"], provenance["dimension"]) == ("categories", 3)
    *good, bad = rows_of(out).to_pylist()
    assert (bad["path"], bad["categories"]) == (str(folder / "x.jpg"), None)
    assert "0 bytes" in bad["error"]
    assert [row["path"] for row in good] == [str(folder / f"0000{n}.png") for n in range(3)]
    assert all(len(row["categories"]) == 3 and row["error"] is None for row in good)
    with pytest.raises(ValueError, match="dimension is 3 there, 2 now"):
        classify(folder, out, append=True, **options | {"top_k": 2})
    (folder / "x.jpg").write_bytes(encode(photo_like(64, 48, 9), "JPEG"))
    assert classify(folder, out, append=True, **options).written == 1
    assert rows_of(out).column("error").null_count == 4


@pytest.mark.parametrize("top_k", [0, 1001])
def test_number_of_categories_is_checked(top_k, tmp_path):
    write_images(tmp_path / "d", 1)
    with pytest.raises(ValueError, match=rf"top_k: is {top_k}, must be 1 to 1000"):
        classify(tmp_path / "d", tmp_path / "x.parquet", top_k=top_k, **NULL)


def test_embeddings_are_not_appended_to_classifications(tmp_path):
    write_images(tmp_path / "d", 1)
    classify(tmp_path / "d", tmp_path / "x.parquet", **NULL)
    with pytest.raises(ValueError, match="is no output"):
        embed(tmp_path / "d", tmp_path / "x.parquet", append=True, **NULL)
    with pytest.raises(ValueError, match=r"\.parquet and \.lance"):
        classify(tmp_path / "d", tmp_path / "x.npz", **NULL)


def test_vectors_do_not_depend_on_other_images(tmp_path):
    folder = tmp_path / "d"
    write_images(folder, 5)
    options = {"variant": "one=random:1", "engine": "torch", "device": "cpu", "max_batch_size": 2}
    embed(folder, tmp_path / "all.npz", **options)
    embed(folder / "00003.png", tmp_path / "one.npz", **options)
    one, found = read_output(tmp_path / "one.npz"), read_output(tmp_path / "all.npz")
    np.testing.assert_allclose(one.vectors[0], found.vectors[3], rtol=1e-4, atol=1e-5)
