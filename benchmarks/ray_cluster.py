"""Servers on a Ray cluster of this machine: python -m benchmarks.ray_cluster [NAME]...

cpu         CPU of an image in `classify`, null engine: of a server that a replica started, against
            a plain server; `ray` measures the replica
throughput  images/s of `classify_many` with 1, 2 and 4 servers of the timed engine (100 + 10 ms x
            b, batches of 8)
ray         time from the deployment to ready servers; CPU of the cluster while nothing is called
failures    time from the deployment of servers that cannot start until both statuses say why

Images are raw pixels of 161 KB that only have to be cropped. Needs the extra `[ray]`. Figures are
ratios within one run, medians over interleaved turns.
"""

from __future__ import annotations

import argparse
import re
import socket
import statistics
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import psutil
import ray
from ray import serve
from ray.cluster_utils import Cluster

from benchmarks.bulk import IMAGES, rate, singly
from benchmarks.overhead import TURNS, ratio
from benchmarks.process import cpu_s, server
from resnet50_client import Client
from resnet50_client.ray import RayServers
from resnet50_server.ray.application import build
from resnet50_server.ray.deploy import Deployment, delete_app
from resnet50_server.ray.options import RayOptions
from resnet50_server.ray.status import read_status

APP = "benchmark"
COMMON = {"variants": ["IMAGENET1K_V2"], "log_level": "error", "allow_plaintext": True}
NULL = COMMON | {"engine": "null"}
TIMED = COMMON | {
    "engine": "timed",
    "timed_alpha_ms": 100,
    "timed_beta_ms": 10,
    "max_batch_size": 8,
}
COUNTS = (1, 2, 4)
# A run starts with few images in flight, and ends with batches that are not full.
IMAGES_OF_EACH = 1536
IDLE_S = 10.0


@contextmanager
def cluster() -> Iterator[None]:
    """Start a cluster on this machine, and connect to it."""
    found = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 8, "include_dashboard": False}
    )
    try:
        ray.init(address=found.address, log_to_driver=False)
        serve.start(proxy_location="Disabled")
        yield
        serve.shutdown()
        ray.shutdown()
    finally:
        found.shutdown()


def deploy(settings: dict[str, object], count: int) -> float:
    """Deploy servers; return the seconds until they are ready."""
    began = time.perf_counter()
    options = RayOptions(settings=settings, min_replicas=count, num_cpus=0.5)
    serve.run(build(options), name=APP, route_prefix=None)
    while len(RayServers(APP)()) != count:
        time.sleep(0.02)
    return time.perf_counter() - began


def pids(word: str) -> list[int]:
    """Return the processes whose command contains a word."""
    return [
        one.pid
        for one in psutil.process_iter(["cmdline"])
        if any(word in part for part in one.info["cmdline"] or ())
    ]


def measure_cpu() -> None:
    """Take turns between a plain server and one that Ray has started."""
    spent: dict[str, list[float]] = {"plain": [], "ray": []}
    deploy(NULL, 1)
    (replica,) = pids(f"ServeReplica:{APP}")
    (child,) = psutil.Process(replica).children()
    with (
        server("--engine", "null", "--metrics-listen", "127.0.0.1:0") as (address, pid),
        Client(address) as plain,
        Client.from_ray(APP) as followed,
    ):
        kinds = {"plain": (plain, pid), "ray": (followed, child.pid)}
        for turn in range(2 * TURNS + 1):
            for name, (client, process) in kinds.items():
                before = cpu_s(process)
                singly(client, IMAGES)
                used = (cpu_s(process) - before) / IMAGES * 1e3
                if turn:  # the first warms up
                    spent[name].append(used)
    for name, each in spent.items():
        print(f"cpu {name}: {statistics.median(each):.3f} ms an image")
    print(f"cpu ray / plain: {ratio(spent['ray'], spent['plain'])}, {2 * TURNS} pairs")


def measure_throughput(images_of_each: int = IMAGES_OF_EACH) -> None:
    """Deploy 1, 2 and 4 servers, and call them."""
    rates: dict[int, list[float]] = {count: [] for count in COUNTS}
    for turn in range(3):
        for count in COUNTS:
            deploy(TIMED, count)
            with Client.from_ray(APP) as client:
                rate(client, 32 * count)  # connects to each of them
                before, began = time.process_time(), time.perf_counter()
                rates[count].append(rate(client, images_of_each * count))
                busy = (time.process_time() - before) / (time.perf_counter() - began)
            print(
                f"throughput, turn {turn}, servers {count}: {rates[count][-1]:.1f} images/s, client"
                f" {busy:.0%} of a CPU, mean batch of each {batches()}"
            )
    for count in COUNTS[1:]:
        each = [found / count for found in rates[count]]
        print(f"throughput of each of {count} / of 1: {ratio(each, rates[1])}, {len(each)} turns")


def batches() -> list[float]:
    """Return the mean size of the batches of each server since its start."""
    found = []
    for replica in pids(f"ServeReplica:{APP}"):
        for child in psutil.Process(replica).children():
            ports = [one.laddr for one in child.net_connections("tcp") if one.status == "LISTEN"]
            port = next(one.port for one in ports if one.ip == "127.0.0.1")
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
                text = response.read().decode()
            images, count = (
                sum(
                    map(float, re.findall(rf"^resnet50_batch_size_{name}{{.*}} (\S+)$", text, re.M))
                )
                for name in ("sum", "count")
            )
            found.append(round(images / max(count, 1), 2))
    return found


def measure_failures() -> None:
    """Deploy servers that cannot start, and read both statuses until they say why."""
    with socket.create_server(("", 0)) as other:
        cases: dict[str, tuple[dict[str, object], int]] = {
            "weights missing": (COMMON | {"weights_dir": "/missing", "download": False}, 0),
            "no such device": (COMMON | {"device": "cuda:7", "variants": ["one=random:1"]}, 0),
            "port in use": (NULL, other.getsockname()[1]),
        }
        for name, (settings, port) in cases.items():
            began = time.perf_counter()
            deployment = Deployment(APP, RayOptions(settings=settings, num_cpus=0.5, port=port))
            deployment.start()
            while not read_status(APP).failed_starts:
                time.sleep(0.05)
            ours_s = time.perf_counter() - began
            while "exit code" not in read_status(APP).message:
                time.sleep(0.05)
            serves_s = time.perf_counter() - began
            while not deployment.ended(1.0):
                pass
            print(
                f"failures, {name}: told by `ray status` after {ours_s:.1f} s, by Serve's status"
                f" after {serves_s:.1f} s; fails after {time.perf_counter() - began:.1f} s"
            )
            delete_app(APP)


def measure_ray() -> None:
    """Measure Ray itself."""
    for count in COUNTS:
        print(f"ray, {count} ready servers: {deploy(NULL, count):.1f} s")
        delete_app(APP)
    deploy(NULL, 1)
    words = {"replica": f"ServeReplica:{APP}", "controller": "ServeController", "raylet": "raylet"}
    before = {name: sum(map(cpu_s, pids(word))) for name, word in words.items()}
    time.sleep(IDLE_S)
    for name, word in words.items():
        share = (sum(map(cpu_s, pids(word))) - before[name]) / IDLE_S
        print(f"ray, {name} without calls: {share * 100:.1f} % of a CPU")
    memory = psutil.Process(pids(words["replica"])[0]).memory_info().rss
    print(f"ray, replica: {memory / 2**20:.0f} MiB")


MEASURES: dict[str, Callable[[], None]] = {
    "cpu": measure_cpu,
    "throughput": measure_throughput,
    "ray": measure_ray,
    "failures": measure_failures,
}


def main() -> None:
    """Run what was asked for, or everything."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*MEASURES, []], help="default: all")
    parser.add_argument(
        "--images", type=int, default=IMAGES_OF_EACH, help="of each server in `throughput`"
    )
    arguments = parser.parse_args()
    MEASURES["throughput"] = partial(measure_throughput, arguments.images)
    with cluster():
        for name in arguments.names or MEASURES:
            MEASURES[name]()
            delete_app(APP)


if __name__ == "__main__":
    main()
