"""Servers and a bulk run on a real Ray cluster, in short: `make ray-short`, which CI runs."""

from __future__ import annotations

import os
import pickle
import signal
import time

import psutil
import pytest

from resnet50_client import Client
from resnet50_server.ray.deploy import Deployment
from resnet50_server.ray.directory import (
    FORGET_S,
    LISTED_S,
    MAX_PAUSE_S,
    MIN_PAUSE_S,
    READY,
    Directory,
    FailedStart,
    ServerEntry,
)
from resnet50_server.ray.options import RayOptions
from resnet50_server.ray.status import read_status
from tests.support.offline import (
    BROKEN_FILES,
    FILES,
    SLOW,
    assert_each_once,
    saved,
    start_local,
    write_images,
)
from tests.support.ray_servers import (
    PLAINTEXT,
    TIMED,
    Load,
    deploy,
    processes,
    ready,
    replica_processes,
    serve_deploy,
    server_processes,
    wait_for_servers,
    wait_until,
)

# Ray warns of its own future, and leaves sockets and processes to the garbage collector.
pytestmark = pytest.mark.filterwarnings("default")


def test_directory_forgets_killed_servers_and_old_failures(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    directory = Directory()
    for number in range(400):
        address = f"192.0.2.1:{number}"
        directory.announce(ServerEntry(f"r{number}", "192.0.2.1", address, READY, "", 1))
        directory.start_failed(FailedStart(f"r{number}", f"node {number}", "exit code 1"))
        assert directory.pause_s(f"node {number}") == MIN_PAUSE_S
        now += LISTED_S
    assert len(pickle.dumps(directory)) < 10_000  # one server, 20 failures, pauses of 10 minutes
    directory.start_failed(FailedStart("r", "node 399", "exit code 1"))
    assert directory.pause_s("node 399") == 2 * MIN_PAUSE_S
    for _ in range(2000):  # a node whose servers fail for a night
        directory.start_failed(FailedStart("r", "node 399", "exit code 1"))
    assert directory.pause_s("node 399") == MAX_PAUSE_S
    now += FORGET_S
    assert directory.pause_s("node 399") == 0.0
    assert directory.servers() == []


def test_no_call_fails_while_servers_are_added_and_removed(app):
    deploy(app)
    with Client.from_ray(app) as client, Load(client) as load:
        (first,) = ready(app)
        deploy(app, min_replicas=3)
        wait_for_servers(app, 3)
        assert first in ready(app)  # no server was replaced
        load.wait_for(200)
        deploy(app, min_replicas=1)
        wait_for_servers(app, 1)
        wait_until(lambda: len(server_processes()) == 1)
        load.wait_for(50)


def test_killed_server_is_started_again_by_its_replica(app):
    deploy(app, min_replicas=2)
    replicas = {one.pid for one in replica_processes()}
    with Client.from_ray(app) as client, Load(client) as load:
        before = set(ready(app))
        server_processes()[0].kill()
        healed_s = wait_until(lambda: len(set(ready(app)) - before) == 1)
        load.wait_for(50)
    print(f"a killed server: {healed_s:.1f} s")
    assert {one.pid for one in replica_processes()} == replicas


def test_serve_deploy_takes_the_printed_file(app, dashboard):
    options = RayOptions(settings=TIMED, num_cpus=0.4)
    serve_deploy(dashboard, app, options)
    wait_for_servers(app, 1)
    (first,) = ready(app)
    with Client.from_ray(app) as client, Load(client) as load:
        serve_deploy(dashboard, app, options.model_copy(update={"min_replicas": 2}))
        wait_for_servers(app, 2)
        wait_until(lambda: read_status(app).state == "RUNNING")
        load.wait_for(20)
        assert first in ready(app)  # it was not replaced
        wrong = RayOptions.model_construct(settings=TIMED | {"max_batch_size": 0}, num_cpus=0.4)
        serve_deploy(dashboard, app, wrong)
        refused_s = wait_until(lambda: read_status(app).state == "DEPLOY_FAILED")
        load.wait_for(20)
    assert "settings: max_batch_size: Input should be greater" in read_status(app).message
    print(f"a wrong value is refused within {refused_s:.1f} s")


def test_first_failed_start_is_told_in_both_statuses(app):
    settings = PLAINTEXT | {"variants": ["one=random:1"], "device": "cuda:7"}
    began = time.monotonic()
    Deployment(app, RayOptions(settings=settings, num_cpus=0.4)).start()
    wait_until(lambda: read_status(app).failed_starts)
    ours_s = time.monotonic() - began
    wait_until(lambda: "cuda:7 was asked for" in read_status(app).message)
    serves_s = time.monotonic() - began
    print(f"failed start reported after {ours_s:.1f} s, by Serve after {serves_s:.1f} s")
    found = read_status(app).failed_starts[0].reason
    assert "exit code 1: resnet50-server: device: cuda:7 was asked for" in found


def worker_processes() -> list[psutil.Process]:
    """Return the processes of the actors that compute."""
    return processes("MapBatches(_Worker)")


def test_killed_worker_loses_and_doubles_no_image(cluster, tmp_path):
    folder, out = tmp_path / "d", tmp_path / "out.parquet"
    broken = write_images(folder, FILES, broken=BROKEN_FILES)
    process = start_local(*("--ray", cluster.address, "--workers", 2, folder, "--out", out), **SLOW)
    wait_until(lambda: saved(tmp_path / "out.parquet.partial"))
    workers = worker_processes()
    assert workers
    os.kill(workers[0].pid, signal.SIGKILL)
    _, said = process.communicate(timeout=300)
    assert (process.wait(), "1980 images embedded" in said) == (1, True), said
    assert_each_once(out, folder, broken)
