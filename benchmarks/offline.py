"""A worker without a server against a bare loop: python -m benchmarks.offline [--pairs 5].

The bare loop decodes files in threads, one batch ahead, and computes each batch with the engine of
the worker; it has no time limits, budgets, retries or detection of hangs. Both take turns in one
process, on photos of 500 x 375 in files. Figures are images/s of the worker divided by those of the
loop: the median of pairs, and their range.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet50_server.engines.devices import thread_initializer
from resnet50_server.images.decode import decode
from resnet50_server.images.limits import ImageLimits
from resnet50_server.inference.decode_pool import decode_threads
from resnet50_server.lifecycle.devices import cpu_plan
from resnet50_server.offline import ImageWorker
from resnet50_server.offline.options import worker_settings
from resnet50_server.runtime.cpus import cpus
from tests.support.pictures import encode, photo_like

Pixels = NDArray[np.uint8]


class BareLoop:
    """Decodes files in threads, one batch ahead of the engine.

    Args:
        worker: Its engine and transform are used.
        options: Settings of the worker.
    """

    def __init__(self, worker: ImageWorker, options: dict[str, Any]) -> None:
        settings = worker_settings(None, dict(options))
        self._engine = worker.variant.built.engine
        self._size = settings.max_batch_size
        limits, transform = ImageLimits.of(settings), worker.variant.spec.transform
        self._decode = partial(decode, transform=transform, limits=limits)
        on_cpu = not settings.stub_engine and worker.variant.built.device == "cpu"
        threads = settings.decode_threads or decode_threads(cpus(), on_cpu)
        self._pool = ThreadPoolExecutor(threads, initializer=thread_initializer(1, settings))
        thread_initializer(cpu_plan(settings).threads, settings)()

    def run(self, files: list[Path]) -> int:
        """Compute files; return how many."""
        batches = self._batches(files)
        ahead = next(batches, [])
        done = 0
        while ahead:
            pixels = [future.result() for future in ahead]
            ahead = next(batches, [])
            self._engine.run(pixels, 0, True)
            done += len(pixels)
        return done

    def _batches(self, files: list[Path]) -> Iterator[list[Future[Pixels]]]:
        left = iter(files)
        while batch := list(islice(left, self._size)):
            yield [self._pool.submit(self._read, file) for file in batch]

    def _read(self, file: Path) -> Pixels:
        return self._decode(file.read_bytes())


def rate(run: partial[int], images: int) -> float:
    """Return images per second of a run."""
    started = time.perf_counter()
    assert run() == images
    return images / (time.perf_counter() - started)


def compute(worker: ImageWorker, files: list[Path]) -> int:
    """Compute files with a worker; return how many."""
    return sum(1 for _ in worker.run((str(file), file) for file in files))


def measure(engine: str, batch: int, images: int, pairs: int) -> str:
    """Return a line with the ratio of one engine."""
    options: dict[str, Any] = {"engine": engine, "device": "cpu", "max_batch_size": batch}
    with tempfile.TemporaryDirectory() as folder, ImageWorker("one=random:1", **options) as worker:
        files = [Path(folder) / f"{number:04}.jpg" for number in range(images)]
        photos = [encode(photo_like(500, 375, seed), "JPEG") for seed in range(8)]
        for number, file in enumerate(files):
            file.write_bytes(photos[number % len(photos)])
        loop = BareLoop(worker, options)
        both = partial(compute, worker, files), partial(loop.run, files)
        for run in both:
            run()
        ratios, rates = [], []
        for number in range(pairs):
            order = both if number % 2 else both[::-1]
            found = {run: rate(run, images) for run in order}
            ratios.append(found[both[0]] / found[both[1]])
            rates.append(found[both[0]])
    return (
        f"{engine}, batches of {batch}: {statistics.median(ratios):.3f}"
        f" ({min(ratios):.3f} to {max(ratios):.3f}; {pairs} pairs of {images} images),"
        f" {statistics.median(rates):.1f} images/s"
    )


def main() -> None:
    """Measure a real engine and one that takes no time."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5, help="pairs of runs; default: 5")
    parser.add_argument("--batch", type=int, default=8, help="images of a batch; default: 8")
    parser.add_argument("--images", type=int, default=64, help="images of a run; default: 64")
    arguments = parser.parse_args()
    print(measure("torch", arguments.batch, arguments.images, arguments.pairs), flush=True)
    print(measure("null", arguments.batch, 8 * arguments.images, arguments.pairs), flush=True)


if __name__ == "__main__":
    main()
