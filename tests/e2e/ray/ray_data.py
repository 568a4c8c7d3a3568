"""Bulk runs on a real Ray cluster: `make ray` runs them with pytest, `make test` does not."""

from __future__ import annotations

import numpy as np
import pytest

from resnet50_server.offline import RayWorkers, WorkerFailed, classify, embed
from tests.support.offline import (
    BROKEN_FILES,
    FILES,
    SLOW,
    assert_each_once,
    saved,
    start_local,
    write_images,
)
from tests.support.outputs import read_output
from tests.support.ray_servers import wait_until

# Ray warns of its own future, and leaves sockets and processes to the garbage collector.
pytestmark = pytest.mark.filterwarnings("default")


def test_vectors_of_workers_are_the_local_ones_bit_for_bit(cluster, tmp_path):
    folder = tmp_path / "d"
    broken = write_images(folder, 12, broken=2)
    options = {"variant": "one=random:1", "engine": "torch", "device": "cpu", "max_batch_size": 1}
    embed(folder, tmp_path / "local.npz", engine_threads=1, **options)
    workers = RayWorkers(cluster.address, count=2)
    summary = embed(folder, tmp_path / "ray.npz", workers=workers, **options)
    assert (summary.written, summary.failed) == (10, 2)
    assert_each_once(tmp_path / "ray.npz", folder, broken)
    local, found = read_output(tmp_path / "local.npz"), read_output(tmp_path / "ray.npz")
    assert found.vectors.tobytes() == local.vectors.tobytes()
    assert (found.provenance, found.errors) == (local.provenance, local.errors)
    classify(folder, tmp_path / "c.lance", workers=workers, top_k=2, **options)
    with pytest.raises(ValueError, match="which those of this run do not match"):
        embed(folder, tmp_path / "ray.npz", append=True, l2_normalize=True, **options)


def test_killed_driver_resumes_with_each_image_once(cluster, tmp_path):
    folder, out = tmp_path / "d", tmp_path / "out.parquet"
    partial = tmp_path / "out.parquet.partial"
    broken = write_images(folder, FILES, broken=BROKEN_FILES)
    command = ("--ray", cluster.address, "--workers", 2, folder, "--out", out)
    process = start_local(*command, **SLOW)
    wait_until(lambda: saved(partial))
    process.kill()
    process.communicate(timeout=60)
    kept = saved(partial)
    assert 0 < len(kept) < FILES - BROKEN_FILES
    assert not out.exists()
    process = start_local(*command, **SLOW)
    _, said = process.communicate(timeout=300)
    assert (process.wait(), "1980 images embedded" in said) == (1, True), said
    assert_each_once(out, folder, broken)


def test_cluster_is_started_and_stopped_for_a_run(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray leaves a token there
    write_images(tmp_path / "d", 3)
    process = start_local("--ray", "local", tmp_path / "d", "--out", tmp_path / "x.npz")
    _, said = process.communicate(timeout=300)
    assert (process.wait(), "3 images embedded" in said) == (0, True), said
    assert np.isfinite(read_output(tmp_path / "x.npz").vectors).all()


@pytest.mark.parametrize("job", [embed, classify])
def test_worker_that_cannot_load_its_variant_says_why(cluster, tmp_path, capfd, job):
    write_images(tmp_path / "d", 3)
    with pytest.raises(
        WorkerFailed, match=r"^the Ray worker on [\d.]+: device: cuda:7 was asked for"
    ):
        job(
            *(tmp_path / "d", tmp_path / "x.parquet"),
            variant="one=random:1",
            device="cuda:7",
            workers=RayWorkers(cluster.address),
        )
    assert "Traceback" not in "".join(capfd.readouterr())


def test_unreachable_cluster_is_named(tmp_path):
    write_images(tmp_path / "d", 1)
    process = start_local("--ray", "127.0.0.1:1", tmp_path / "d", "--out", tmp_path / "x.npz")
    _, said = process.communicate(timeout=300)
    assert (process.wait(), "no Ray cluster at 127.0.0.1:1 " in said) == (1, True), said
