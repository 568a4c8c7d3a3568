"""`resnet50 embed` killed as it runs: python -m benchmarks.embed_resume [--files 10000].

A fake server answers files of a few bytes with vectors that depend on these bytes. The command is
killed with SIGKILL at random points, then runs to its end; the exit code is 1 unless every file
is in the output once, in order, with its own vector. Then the memory of a run that is not killed,
and the cost of the checkpoint's commits by their size. Linux only.
"""

from __future__ import annotations

import argparse
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from resnet50_bulk import checkpoint as checkpoint_module
from resnet50_bulk.checkpoint import Checkpoint, FileFingerprint
from resnet50_client.testing.fake_server import DEFAULT_CATEGORIES
from resnet50_client.testing.script import Script
from tests.support.embeddings import DIMENSION, embedded
from tests.support.outputs import read_output
from tests.support.pausable_server import PausableServer

from .process import resident_kib

POLL_S = 0.005
# Share of the files that a run computes before it is killed, at most.
LARGEST_SHARE = 0.3
COMMITS = (1, 16, 64, 256, 1024)
COMMITTED_IMAGES = 4096
JOURNALS = ("delete", "wal")


def make_files(folder: Path, count: int) -> list[Path]:
    """Write files with a few bytes each, no two alike; return them in order."""
    folder.mkdir()
    files = [folder / f"{number:06}.jpg" for number in range(count)]
    for number, file in enumerate(files):
        file.write_bytes(f"image {number}".encode())
    return files


@contextmanager
def running(folder: Path, out: Path, server: PausableServer) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command in the background, and kill it at the end of the block if it still runs."""
    environment = {key: value for key, value in os.environ.items() if "RESNET50" not in key}
    process = subprocess.Popen(
        [sys.executable, "-m", "resnet50_cli", "embed", str(folder), "--out", str(out)],
        env=environment | {"RESNET50_SERVER": server.address},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def kill_runs(folder: Path, out: Path, server: PausableServer, points: list[int]) -> list[int]:
    """Run the command once for each point, and kill it after so many images.

    Returns:
        Number of vectors in the checkpoint after each kill.
    """
    saved = []
    for point in points:
        reached = server.pause_after(point)
        with running(folder, out, server) as process:
            while len(server.received) < reached:
                if process.poll() is not None:
                    raise RuntimeError(f"the command ended with {process.returncode} too early")
                time.sleep(POLL_S)
        server.resume()
        with Checkpoint(out.with_name(f"{out.name}.partial")) as found:
            saved.append(len(found))
    return saved


def finish(folder: Path, out: Path, server: PausableServer) -> list[int]:
    """Run the command to its end; return its memory after each tenth of the images, in KiB."""
    memory, first = [], len(server.received)
    count = sum(1 for _ in folder.iterdir())
    with running(folder, out, server) as process:
        while process.poll() is None:
            if len(server.received) - first >= (len(memory) + 1) * count / 10:
                memory.append(resident_kib(process.pid))
            time.sleep(POLL_S)
    if process.returncode:
        raise RuntimeError(f"the command ended with {process.returncode}")
    return memory


def wrong(files: list[Path], out: Path) -> list[str]:
    """Return what is wrong with an output, in words."""
    found = read_output(out)
    script, problems = Script(DEFAULT_CATEGORIES, DIMENSION), []
    rows = Counter(found.paths)
    problems += [
        f"{file.name} has {rows[str(file)]} rows" for file in files if rows[str(file)] != 1
    ]
    if not problems and found.paths != list(map(str, files)):
        problems.append("the rows are in another order")
    for path, vector in zip(found.paths, found.vectors, strict=True):
        if not np.array_equal(vector, script.next(Path(path).read_bytes())[1]):
            problems.append(f"{Path(path).name} has another image's vector")
    return problems


def commit_cost(folder: Path, journal: str, images: int) -> tuple[float, float]:
    """Return the cost of commits of so many images: microseconds and KiB written, an image."""
    file = folder / f"{journal}-{images}"
    checkpoint_module.COMMIT_IMAGES = images
    fingerprint = FileFingerprint(1, 1)
    with Checkpoint(file) as found:
        found.add("first", fingerprint, embedded(0))
        found.flush()
    with closing(sqlite3.connect(file)) as database:  # the mode is kept in the file
        database.execute(f"PRAGMA journal_mode = {journal}")
    with Checkpoint(file) as found:
        written, started = written_bytes(), time.perf_counter()
        for number in range(COMMITTED_IMAGES):
            found.add(f"photos/{number:06}.jpg", fingerprint, embedded(number))
        found.flush()
        seconds = time.perf_counter() - started
    kib = (written_bytes() - written) / 1024
    return seconds / COMMITTED_IMAGES * 1e6, kib / COMMITTED_IMAGES


def written_bytes() -> int:
    """Return how many bytes this process has sent to the disk."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("write_bytes")).split()[1])


def main() -> None:
    """Run the trial and print it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--suffix", choices=(".npz", ".parquet", ".lance"), default=".npz")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    most = int(min(LARGEST_SHARE, 0.9 / options.kills) * options.files)
    points = [draw.randint(1, most) for _ in range(options.kills)]
    with tempfile.TemporaryDirectory() as temporary, PausableServer() as server:
        folder, out = Path(temporary, "photos"), Path(temporary, f"out{options.suffix}")
        files = make_files(folder, options.files)
        saved = kill_runs(folder, out, server, points)
        finish(folder, out, server)
        problems = wrong(files, out)
        again = len(server.received) - len(files)
        print(
            f"{len(files)} files, SIGKILL after {', '.join(map(str, points))} images:"
            f" {', '.join(map(str, saved))} vectors on disk; {again} images computed twice"
        )
        print(f"every file once, with its own vector: {'no' if problems else 'yes'}")
        print("\n".join(problems[:10]))
        memory = finish(folder, Path(temporary, f"again{options.suffix}"), server)
        shown = ", ".join(f"{kib / 1024:.0f}" for kib in memory)
        print(f"memory by tenths of {len(files)} files, MiB: {shown}")
        print(f"last tenth ÷ first: {memory[-1] / memory[0]:.2f}")
        for journal in JOURNALS:
            costs = [(n, *commit_cost(Path(temporary), journal, n)) for n in COMMITS]
            shown = ", ".join(f"{n}: {microseconds:.0f}" for n, microseconds, _ in costs)
            print(f"µs an image by images in a commit, journal {journal}: {shown}")
            shown = ", ".join(f"{n}: {kib:.1f}" for n, _, kib in costs)
            print(f"KiB written an image by images in a commit, journal {journal}: {shown}")
    raise SystemExit(bool(problems))


if __name__ == "__main__":
    main()
