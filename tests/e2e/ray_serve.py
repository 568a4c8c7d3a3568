"""Servers on a real Ray cluster of this machine: `make ray` runs them, `make test` does not."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import psutil
import pytest
import ray
from ray import serve
from ray.cluster_utils import Cluster
from ray.exceptions import RayError

from resnet50_client import Client
from resnet50_client.ray import DIRECTORY, NAMESPACE, RayServers
from resnet50_server.ray import directory
from resnet50_server.ray.application import build
from resnet50_server.ray.deploy import delete_app
from resnet50_server.ray.options import RayOptions, VariantConfig
from resnet50_server.ray.status import read_status
from tests.support.administering import ADMIN, describe, tokens_file
from tests.support.pictures import encode, photo_like

# Ray warns of its own future, and leaves sockets and processes to the garbage collector.
pytestmark = pytest.mark.filterwarnings("default")

WAIT_S = 180.0
TIMEOUT_S = 90.0
IMAGE = encode(photo_like(64, 48), "JPEG")
# Nodes listen on an address of the machine that others may reach, too.
PLAINTEXT = {"allow_plaintext": True}
# Each batch takes 2 ms, and 3 ms for each image.
TIMED = PLAINTEXT | {
    "engine": "timed",
    "timed_alpha_ms": 2,
    "timed_beta_ms": 3,
    "variants": ["one=random:1", "two=random:2"],
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster of three nodes on this machine, and this process connected to it."""
    found = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    for _ in range(2):
        found.add_node(num_cpus=2)
    found.wait_for_nodes()
    ray.init(address=found.address, log_to_driver=False)
    serve.start(proxy_location="Disabled")
    yield found
    serve.shutdown()
    ray.shutdown()
    found.shutdown()


@pytest.fixture
def app(cluster) -> Iterator[str]:
    name = "shop"
    yield name
    delete_app(name)
    wait_until(lambda: not server_processes())


def deploy(app: str, **options) -> None:
    options = {"num_cpus": 0.4, "settings": TIMED} | options
    options["settings"] = PLAINTEXT | options["settings"]
    serve.run(build(RayOptions(**options)), name=app, route_prefix=None)


def wait_until(condition: Callable[[], object], limit_s: float = WAIT_S) -> float:
    """Wait until a condition holds; return the seconds that it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < limit_s, "it did not happen in time"
        time.sleep(0.05)
    return time.monotonic() - began


def processes(word: str) -> list[psutil.Process]:
    return [
        one
        for one in psutil.process_iter(["cmdline", "status"])
        if one.info["status"] != psutil.STATUS_ZOMBIE
        and any(word in part for part in one.info["cmdline"] or ())
    ]


def server_processes() -> list[psutil.Process]:
    return processes("--stop-with-stdin")


def replica_processes() -> list[psutil.Process]:
    return processes("ServeReplica:shop")


def ready(app: str) -> list[str]:
    """Return the addresses in the directory; none while it is being started again."""
    with suppress(RayError):
        return RayServers(app)()
    return []


def wait_for_servers(app: str, count: int) -> float:
    return wait_until(lambda: len(ready(app)) == count)


class Load:
    """Calls from several threads, until it is stopped; each has a deadline.

    Attributes:
        variants: Name of the variant of each result.
        errors: Failed calls.
    """

    def __init__(self, client: Client, callers: int = 4) -> None:
        self._client = client
        self._stopping = threading.Event()
        self.variants: list[str] = []
        self.errors: list[Exception] = []
        self._threads = [threading.Thread(target=self._call) for _ in range(callers)]

    def _call(self) -> None:
        while not self._stopping.is_set():
            try:
                result = self._client.classify(IMAGE, timeout_s=TIMEOUT_S)
            except Exception as error:
                self.errors.append(error)
            else:
                self.variants.append(result.variant.name)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        self.wait_for(20)
        return self

    def wait_for(self, count: int) -> None:
        """Wait for further results."""
        known = len(self.variants)
        wait_until(lambda: len(self.variants) >= known + count or self.errors)

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        assert self.errors == []
        print(f"{len(self.variants)} calls, none failed")


def test_names_of_the_directory_are_the_sdks():
    assert (directory.DIRECTORY, directory.NAMESPACE) == (DIRECTORY, NAMESPACE)


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


def test_variant_is_swapped_under_load_without_a_restart(app, tmp_path):
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

    def choose(name: str) -> None:
        config = VariantConfig(variants=(name,), default=name)
        deploy(app, min_replicas=2, user_config=config, **options)

    choose("blue")
    servers = {one.pid for one in server_processes()}
    token = {"token_file": str(tmp_path / "token"), "insecure_token": True}
    with Client.from_ray(app, **token) as client, Load(client) as load:
        choose("green")
        load.wait_for(100)
    assert set(load.variants) == {"blue", "green"}
    assert load.variants[-1] == "green"
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
