"""Memory of `classify_many` over very many paths: python -m benchmarks.many_paths --count 100000.

A generator gives the paths of a few files in turn; a fake server in another process answers. It
prints images per second, the paths read ahead, and this process's memory as it goes: the memory
must not grow with the number of paths.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

from resnet50_client import Client
from resnet50_client.testing import FakeServer
from tests.support.pictures import encode, photo_like

FILES, REPORTS = 16, 10


def serve(pipe: Connection) -> None:
    """Run a fake server until the other end of the pipe is closed; forgets the images."""
    with FakeServer() as server:
        pipe.send(server.address)
        while not pipe.poll(0.2):
            server.received.clear()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000)
    count = parser.parse_args().count
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=[theirs])
    server.start()
    read = 0

    def paths(files: list[Path]) -> Iterator[Path]:
        nonlocal read
        for number in range(count):
            read += 1
            yield files[number % len(files)]

    with tempfile.TemporaryDirectory() as folder, Client(ours.recv(), timeout_s=60) as client:
        files = [Path(folder) / f"{number}.jpg" for number in range(FILES)]
        for number, file in enumerate(files):
            file.write_bytes(encode(photo_like(64, 48, number), "JPEG"))
        process, ahead, started = psutil.Process(), 0, time.monotonic()
        print(f"{'images':>9} {'images/s':>9} {'read ahead':>10} {'RSS MiB':>8}")
        for answered, _ in enumerate(client.classify_many(paths(files), top_k=1), 1):
            ahead = max(ahead, read - answered)
            if answered % max(1, count // REPORTS) == 0:
                rate = answered / (time.monotonic() - started)
                memory = process.memory_info().rss / 2**20
                print(f"{answered:9} {rate:9.0f} {ahead:10} {memory:8.1f}", flush=True)
    ours.send(None)
    server.join()


if __name__ == "__main__":
    main()
