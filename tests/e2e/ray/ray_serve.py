"""Servers on a real Ray cluster of this machine, in all cases: `make ray` runs them."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time

import pytest
import ray
from ray import serve

from resnet50_client import Client
from resnet50_client.ray import DIRECTORY, NAMESPACE
from resnet50_server.ray import directory
from resnet50_server.ray.deploy import delete_app
from resnet50_server.ray.options import RayOptions, VariantConfig
from resnet50_server.ray.status import read_status
from tests.support.administering import ADMIN, describe, tokens_file
from tests.support.certs import Files, authority, issue
from tests.support.ray_servers import (
    IMAGE,
    PLAINTEXT,
    TIMED,
    TIMEOUT_S,
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


def test_names_of_the_directory_are_the_sdks():
    assert (directory.DIRECTORY, directory.NAMESPACE) == (DIRECTORY, NAMESPACE)


def test_killed_replica_ends_its_server_and_is_replaced(app):
    deploy(app, min_replicas=2)
    with Client.from_ray(app) as client, Load(client) as load:
        before = set(ready(app))
        servers = {one.pid for one in server_processes()}
        replica_processes()[0].kill()
        healed_s = wait_until(lambda: len(set(ready(app)) - before) == 1 and len(ready(app)) == 2)
        wait_until(lambda: len(servers & {one.pid for one in server_processes()}) == 1)
        load.wait_for(50)
    print(f"a killed replica: {healed_s:.1f} s")


def test_killed_controller_stops_no_call(app):
    deploy(app)
    addresses = ready(app)
    with Client.from_ray(app) as client, Load(client) as load:
        (controller,) = processes("ServeController")
        controller.kill()
        load.wait_for(100)
        healed_s = wait_until(lambda: read_status(app).state == "RUNNING")
    print(f"a killed controller: {healed_s:.1f} s")
    assert ready(app) == addresses


def test_killed_directory_is_started_again_with_all_servers(app):
    deploy(app, min_replicas=2)
    addresses = ready(app)
    with Client.from_ray(app) as client, Load(client) as load:
        handle = ray.get_actor(DIRECTORY.format(app=app), namespace=NAMESPACE)
        ray.kill(handle, no_restart=False)
        healed_s = wait_until(lambda: ready(app) == addresses)
        load.wait_for(50)
    print(f"a killed directory: {healed_s:.1f} s")


def test_lost_node_costs_no_call_within_its_deadline(app, cluster):
    node = cluster.add_node(num_cpus=2)
    # One server fits on each node of two CPUs.
    deploy(app, min_replicas=3, num_cpus=2)
    with Client.from_ray(app) as client, Load(client) as load:
        before = set(ready(app))
        assert len(before) == 3
        cluster.remove_node(node, allow_graceful=False)
        wait_until(lambda: len(server_processes()) == 2)
        began = time.monotonic()
        wait_for_servers(app, 2)
        load.wait_for(50)
        cluster.add_node(num_cpus=2)
        wait_for_servers(app, 3)
        load.wait_for(50)
    assert len(before & set(ready(app))) == 2
    print(f"a lost node: another one has a server after {time.monotonic() - began:.1f} s")


@pytest.mark.parametrize("by_file", [False, True], ids=["deploy", "serve-deploy"])
def test_variant_is_swapped_under_load_without_a_restart(app, dashboard, tmp_path, by_file):
    for name in ("blue", "green"):
        describe(tmp_path / "variants" / name)
    settings = {
        "engine": "null",
        "variants": ["one=random:1"],
        "variants_dir": str(tmp_path / "variants"),
        "tokens_file": str(tokens_file(tmp_path)),
    }
    (tmp_path / "token").write_text(ADMIN)
    options = {"settings": settings, "admin_token_file": str(tmp_path / "token")}

    def choose(name: str | None, count: int = 2) -> None:
        config = None if name is None else VariantConfig(variants=(name,), default=name)
        if by_file:
            found = {"settings": PLAINTEXT | settings, "num_cpus": 0.4, "min_replicas": count}
            serve_deploy(dashboard, app, RayOptions(**options | found, user_config=config))
            wait_for_servers(app, count)
        else:
            deploy(app, min_replicas=count, user_config=config, **options)

    choose("blue", 1)
    token = {"token_file": str(tmp_path / "token"), "insecure_token": True}
    with Client.from_ray(app, **token) as client, Load(client) as load:
        choose("blue")
        load.wait_for(100)
        servers = {one.pid for one in server_processes()}
        choose("green")
        wait_until(lambda: set(load.variants[-50:]) == {"green"})
        load.wait_for(100)
        assert set(load.variants) == {"blue", "green"}  # a new server has the default at once
        choose(None)
        wait_until(lambda: set(load.variants[-50:]) == {"one"})
    assert {one.pid for one in server_processes()} == servers


def test_servers_follow_the_load(app):
    slow = TIMED | {"timed_alpha_ms": 20, "timed_beta_ms": 40, "max_batch_size": 4}
    deploy(
        app,
        settings=slow,
        max_replicas=3,
        target_queue_age_s=0.05,
        upscale_delay_s=1,
        downscale_delay_s=3,
        num_cpus=0.2,
    )
    with Client.from_ray(app) as client:
        with Load(client, callers=24):
            added_s = wait_for_servers(app, 3)
        removed_s = wait_for_servers(app, 1)
    print(f"1 to 3 servers: {added_s:.1f} s, 3 to 1: {removed_s:.1f} s")


@pytest.mark.parametrize("count", [1, 2])
def test_changed_settings_replace_servers_under_load(app, count):
    deploy(app, min_replicas=count)
    with Client.from_ray(app) as client, Load(client) as load:
        before = set(ready(app))
        deploy(app, min_replicas=count, settings=TIMED | {"timed_beta_ms": 4})
        replaced_s = wait_until(lambda: len(ready(app)) == count and not before & set(ready(app)))
        load.wait_for(50)
    print(f"{count} servers replaced within {replaced_s:.1f} s of the deployment's end")


def test_tls_variants_and_tokens_are_those_of_a_server_without_ray(app, tmp_path):
    ca = authority()
    (tmp_path / "ca.pem").write_bytes(ca.cert_pem.bytes())
    describe(tmp_path / "variants" / "blue")
    (tmp_path / "token").write_text(ADMIN)
    settings = {
        "engine": "null",
        "variants": ["one=random:1"],
        "variants_dir": str(tmp_path / "variants"),
        "tokens_file": str(tokens_file(tmp_path)),
        "allow_plaintext": False,
    } | {
        name: str(path)
        for name, path in Files(tmp_path, issue(ca, "models.example")).settings.items()
    }
    deploy(
        app,
        settings=settings,
        admin_token_file=str(tmp_path / "token"),
        user_config=VariantConfig(variants=("blue",), default="blue"),
    )
    with Client.from_ray(
        app,
        ca=tmp_path / "ca.pem",
        server_name="models.example",
        token_file=tmp_path / "token",
    ) as client:
        assert client.classify(IMAGE, timeout_s=TIMEOUT_S).variant.name == "blue"


def test_fixed_port_is_an_address_without_ray(app):
    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    deploy(app, port=port)
    (address,) = ready(app)
    assert address.endswith(f":{port}")
    with Client(address) as client, Load(client) as load:
        # The new server cannot listen before the old one has stopped.
        deploy(app, port=port, settings=TIMED | {"timed_beta_ms": 4})
        load.wait_for(50)
    assert ready(app) == [address]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"variants": ["IMAGENET1K_V2"], "weights_dir": "/missing", "download": False}, "/missing"),
        ({"variants": ["one=random:1"], "device": "cuda:7"}, "cuda"),
    ],
    ids=["weights", "device"],
)
def test_replica_that_cannot_start_says_why(app, settings, reason):
    began = time.monotonic()
    with pytest.raises(RuntimeError):
        deploy(app, settings=settings)
    failed_s = time.monotonic() - began
    found = read_status(app)
    assert found.state == "DEPLOY_FAILED"
    assert reason in found.failed_starts[-1].reason
    assert reason in serve.status().applications[app].deployments["server"].message
    assert len(found.failed_starts) <= 3  # not in a hot loop
    print(f"three starts failed within {failed_s:.1f} s: {found.message}")


def test_port_in_use_is_told(app):
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(RuntimeError):
            deploy(app, port=port)
    assert f":{port}" in read_status(app).failed_starts[-1].reason


def test_failing_replica_leaves_the_others_alone(app):
    deploy(app)
    (first,) = ready(app)
    with Client.from_ray(app) as client, Load(client) as load:
        bad = "other"
        with pytest.raises(RuntimeError):
            deploy(bad, settings={"variants": ["one=random:1"], "device": "cuda:7"})
        load.wait_for(20)
        delete_app(bad)
    assert ready(app) == [first]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "resnet50_server", "ray", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_command_deploys_shows_and_deletes(cluster, app):
    where = ("--app", app, "--address", cluster.address)
    options = ["--engine=null", "--variants=one=random:1", "--allow-plaintext"]
    done = run("deploy", *where, "--num-cpus", "0.4", "--", *options)
    assert (done.returncode, done.stderr) == (0, "")
    (address,) = ready(app)
    assert done.stdout == f"ready {address}\n"
    shown = json.loads(run("status", *where, "--json").stdout)
    assert (shown["state"], shown["servers"][0]["address"]) == ("RUNNING", address)
    assert run("delete", *where).returncode == 0
    assert run("status", *where).returncode == 1


def test_command_says_why_servers_do_not_start(cluster, app):
    where = ("--app", app, "--address", cluster.address)
    options = ["--variants=one=random:1", "--device=cuda:7", "--allow-plaintext"]
    done = run("deploy", *where, "--", *options)
    assert done.returncode == 1
    assert "cuda" in done.stderr


def test_command_names_a_cluster_that_is_not_there():
    done = run("status", "--address", "127.0.0.1:1")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no Ray cluster at 127.0.0.1:1" in done.stderr
