"""Bulk calls of the SDK: python -m benchmarks.bulk [NAME]...

servers      images/s of `classify_many` with two servers against one, timed engine (40 + 4 ms x b,
             batches of 16), each server a process
cpu          server CPU of an image in `classify_many`, null engine, against a bare grpc.aio echo
             that the SDK calls alike, and against the SDK's own single calls
client       CPU of the client for an image in `classify_many`, against single calls, bare echo
connections  images/s of `classify_many` with the null engine, by `connections` of the client

Images are raw pixels of 161 KB that only have to be cropped. Each starts servers of its own on this
machine (Linux). Figures are ratios within one run, medians over interleaved turns; absolute figures
are those of the machine.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from benchmarks.echo import echo_server
from benchmarks.overhead import STARTS, TURNS, ratio
from benchmarks.process import cpu_s, server
from resnet50_client import Client

SIDE = 232  # what the default variant resizes the shorter side to
IMAGES = 2048
SINGLE_THREADS = 16
ENGINE = ("--engine", "timed", "--timed-alpha-ms", "40", "--timed-beta-ms", "4")
BATCHES = ("--max-batch-size", "16")


def image() -> NDArray[np.uint8]:
    """Return pixels that take the server no time."""
    draw = np.random.default_rng(0)
    return draw.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def bulk(client: Client, images: int) -> None:
    """Classify images in batches."""
    count = sum(1 for _ in client.classify_many(itertools.repeat(image(), images), ordered=False))
    assert count == images, count


def singly(client: Client, images: int) -> None:
    """Classify images in calls of their own, several at a time."""
    pixels = image()
    with ThreadPoolExecutor(SINGLE_THREADS) as pool:
        assert all(pool.map(lambda _: client.classify(pixels), range(images)))


def rate(client: Client, images: int) -> float:
    """Return images/s of a bulk run."""
    started = time.perf_counter()
    bulk(client, images)
    return images / (time.perf_counter() - started)


def measure_servers() -> None:
    """Take turns between a list of two servers and each of them alone."""
    rates: dict[str, list[float]] = {"one": [], "two": []}
    with ExitStack() as stack:
        addresses = [stack.enter_context(server(*ENGINE, *BATCHES))[0] for _ in range(2)]
        for turn in range(TURNS + 1):
            for name, servers in (("one", [addresses[turn % 2]]), ("two", addresses)):
                with Client(servers) as client:
                    speed = rate(client, IMAGES)
                if turn:  # the first warms up
                    rates[name].append(speed)
    for name, found in rates.items():
        print(f"servers {name}: {statistics.median(found):.0f} images/s")
    print(f"servers two / one: {ratio(rates['two'], rates['one'])}, {TURNS} pairs")


def turns(spent: dict[str, list[float]], cpu: Callable[[int], float]) -> None:
    """Take turns between server and echo, in batches and one by one.

    Args:
        spent: CPU in ms an image by name, to be added to.
        cpu: Returns the CPU so far in seconds of this process (0) or of another one.
    """
    with server("--engine", "null") as served, echo_server() as bare, ExitStack() as stack:
        clients = {
            "server": (stack.enter_context(Client(served[0])), served[1]),
            "echo": (stack.enter_context(Client(bare[0])), bare[1]),
        }
        for turn in range(TURNS + 1):
            for name, (client, pid) in clients.items():
                for shape, work in (("bulk", bulk), ("single", singly)):
                    before = cpu(pid)
                    work(client, IMAGES)
                    used = (cpu(pid) - before) / IMAGES * 1e3
                    if turn:  # the first warms up
                        spent.setdefault(f"{name} {shape}", []).append(used)


def measure_cpu() -> None:
    """Measure the servers' CPU; which core their threads land on lasts as long as they live."""
    spent: dict[str, list[float]] = {}
    for _ in range(STARTS):
        turns(spent, cpu_s)
    for name, each in spent.items():
        print(f"cpu     {name}: {statistics.median(each):.3f} ms an image")
    pairs = f"{STARTS * TURNS} pairs, {STARTS} starts"
    print(
        f"cpu     bulk, server / echo: {ratio(spent['server bulk'], spent['echo bulk'])}, {pairs}"
    )
    print(f"cpu     server, bulk / single: {ratio(spent['server bulk'], spent['server single'])}")


def measure_client() -> None:
    """Measure the CPU of this process."""
    spent: dict[str, list[float]] = {}
    turns(spent, lambda _: time.process_time())
    for name in ("echo bulk", "echo single"):
        print(f"client  {name}: {statistics.median(spent[name]):.3f} ms an image")
    print(f"client  bulk / single: {ratio(spent['echo bulk'], spent['echo single'])}")


def measure_connections() -> None:
    """Take turns between numbers of connections to one server."""
    rates: dict[int, list[float]] = {1: [], 2: [], 4: []}
    with server("--engine", "null") as (address, _), ExitStack() as stack:
        clients = {
            number: stack.enter_context(Client(address, connections=number)) for number in rates
        }
        for turn, (number, client) in itertools.product(range(TURNS + 1), clients.items()):
            speed = rate(client, IMAGES)
            if turn:
                rates[number].append(speed)
    for number, found in rates.items():
        print(f"connections {number}: {statistics.median(found):.0f} images/s")
    for number in (2, 4):
        print(f"connections {number} / 1: {ratio(rates[number], rates[1])}, {TURNS} pairs")


MEASURES: dict[str, Callable[[], None]] = {
    "servers": measure_servers,
    "cpu": measure_cpu,
    "client": measure_client,
    "connections": measure_connections,
}


def main() -> None:
    """Run what was asked for, or everything."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*MEASURES, []], help="default: all")
    for name in parser.parse_args().names or MEASURES:
        MEASURES[name]()


if __name__ == "__main__":
    main()
