"""Bulk runs on a real Ray cluster: `make ray` runs them with pytest, `make test` does not."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import numpy as np
import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from resnet50_server.offline import RayWorkers, WorkerFailed, classify, embed
from tests.support.offline import assert_each_once, saved, start_local, write_images
from tests.support.outputs import read_output

# Ray warns of its own future, and leaves sockets and processes to the garbage collector.
pytestmark = pytest.mark.filterwarnings("default")

# Each batch of a worker takes so long that it can be killed in the middle of a run.
SLOW = {"engine": "timed", "timed_alpha_ms": 200, "timed_beta_ms": 0}
FILES, BROKEN = 2000, 20
WAIT_S = 120.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Address of a cluster of two nodes on this machine."""
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    found.add_node(num_cpus=2)
    found.wait_for_nodes()
    yield found.address
    found.shutdown()


@pytest.fixture(autouse=True)
def disconnected() -> Iterator[None]:
    yield
    ray.shutdown()


def wait_until(condition) -> None:
    ends = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < ends, "it did not happen in time"
        time.sleep(0.05)


def worker_processes() -> list[psutil.Process]:
    """Return the processes of the actors that compute."""
    return [
        one
        for one in psutil.process_iter(["name", "cmdline"])
        if any("MapBatches(_Worker)" in part for part in one.info["cmdline"] or ())
    ]


def test_vectors_of_workers_are_the_local_ones_bit_for_bit(cluster, tmp_path):
    folder = tmp_path / "d"
    broken = write_images(folder, 12, broken=2)
    options = {"variant": "one=random:1", "engine": "torch", "device": "cpu", "max_batch_size": 1}
    embed(folder, tmp_path / "local.npz", engine_threads=1, **options)
    workers = RayWorkers(cluster, count=2)
    summary = embed(folder, tmp_path / "ray.npz", workers=workers, **options)
    assert (summary.written, summary.failed) == (10, 2)
    assert_each_once(tmp_path / "ray.npz", folder, broken)
    local, found = read_output(tmp_path / "local.npz"), read_output(tmp_path / "ray.npz")
    assert found.vectors.tobytes() == local.vectors.tobytes()
    assert (found.provenance, found.errors) == (local.provenance, local.errors)
    classify(folder, tmp_path / "c.lance", workers=workers, top_k=2, **options)
    with pytest.raises(ValueError, match="which those of this run do not match"):
        embed(folder, tmp_path / "ray.npz", append=True, l2_normalize=True, **options)


def test_killed_worker_loses_and_doubles_no_image(cluster, tmp_path):
    folder, out = tmp_path / "d", tmp_path / "out.parquet"
    broken = write_images(folder, FILES, broken=BROKEN)
    process = start_local(
        *("--ray", cluster, "--workers", 2, folder, "--out", out), max_batch_size=32, **SLOW
    )
    wait_until(lambda: saved(tmp_path / "out.parquet.partial"))
    workers = worker_processes()
    assert workers
    os.kill(workers[0].pid, signal.SIGKILL)
    _, said = process.communicate(timeout=300)
    assert (process.wait(), "1980 images embedded" in said) == (1, True), said
    assert_each_once(out, folder, broken)


def test_killed_driver_resumes_with_each_image_once(cluster, tmp_path):
    folder, out = tmp_path / "d", tmp_path / "out.parquet"
    partial = tmp_path / "out.parquet.partial"
    broken = write_images(folder, FILES, broken=BROKEN)
    command = ("--ray", cluster, "--workers", 2, folder, "--out", out)
    process = start_local(*command, max_batch_size=32, **SLOW)
    wait_until(lambda: saved(partial))
    process.kill()
    process.communicate(timeout=60)
    kept = saved(partial)
    assert 0 < len(kept) < FILES - BROKEN
    assert not out.exists()
    process = start_local(*command, max_batch_size=32, **SLOW)
    _, said = process.communicate(timeout=300)
    assert (process.wait(), "1980 images embedded" in said) == (1, True), said
    assert_each_once(out, folder, broken)


def test_cluster_is_started_and_stopped_for_a_run(tmp_path):
    folder = tmp_path / "d"
    write_images(folder, 3)
    summary = embed(folder, tmp_path / "x.npz", engine="null", workers=RayWorkers())
    assert summary.written == 3
    assert not ray.is_initialized()
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
            workers=RayWorkers(cluster),
        )
    assert "Traceback" not in "".join(capfd.readouterr())


def test_unreachable_cluster_is_named(tmp_path):
    write_images(tmp_path / "d", 1)
    with pytest.raises(WorkerFailed, match=r"no Ray cluster at 127\.0\.0\.1:1 "):
        embed(tmp_path / "d", tmp_path / "x.npz", engine="null", workers=RayWorkers("127.0.0.1:1"))
