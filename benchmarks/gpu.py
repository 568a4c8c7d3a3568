"""Gain of the CUDA engine and cost of serving it: python -m benchmarks.gpu [--only NAME ...].

served    frames/s through a real server (raw frames, SDK streams from several client processes)
          against the engine alone in this process
engine    the engine against eager PyTorch, channels_last, at batch 128
latency   one image: a replayed graph against eager kernels
copies    two batches in flight with copies both ways against replaying the graph alone
memory    graphs of all buckets against the largest one's
variants  two variants on one device against one
decode    JPEGs/s on all cores

Figures are medians over turns in which both sides alternate. Everything runs on random weights.
`--device cpu --quick` runs whatever needs no CUDA, with the eager engine on both sides: it shows
that the script works and nothing else.

Written on a machine without CUDA: it has never run on one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.models import ResNet50_Weights

from benchmarks.process import SERVER
from resnet50_client import Client
from resnet50_server.engines.base import Engine
from resnet50_server.engines.cuda.device import CudaDevice
from resnet50_server.engines.cuda.engine import CudaEngine
from resnet50_server.engines.torch_engine import TorchEngine
from resnet50_server.images.decode import decode
from resnet50_server.images.limits import ImageLimits
from resnet50_server.images.transform import Transform
from resnet50_server.variants.network import Network, build_network, read_weights
from resnet50_server.variants.spec import parse_variant

TRANSFORM = Transform.of(ResNet50_Weights.DEFAULT.transforms())
PRECISION = "fp16"
Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        device: "cuda" or "cpu".
        batch: The batch of `engine` and `copies`, and the server's largest.
        seconds: Of one side's turn.
        turns: How often both sides have theirs.
        clients: Client processes of `served`.
        streams: Streams of each.
        compiled: Whether engines are compiled.
    """

    device: str
    batch: int = 128
    seconds: float = 3.0
    turns: int = 5
    clients: int = 8
    streams: int = 2
    compiled: bool = True

    @property
    def cuda(self) -> bool:
        """Return whether there is a device to measure."""
        return self.device == "cuda"


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        name: Name of the measurement.
        value: The figure, with its unit.
        goal: For an H100; empty where there is none.
    """

    name: str
    value: str
    goal: str = ""


def frames(count: int) -> list[Image]:
    """Return random images of the variant's own size."""
    shape = (count, *TRANSFORM.input_size, 3)
    return list(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def network(seed: int = 0) -> Network:
    """Return an untrained network, folded, on the CPU."""
    spec = parse_variant(f"bench=random:{seed}")
    return build_network(spec, read_weights(spec, Path(), download=False))


def eager(plan: Plan) -> TorchEngine:
    """Return the eager engine: channels_last, folded."""
    device = torch.device("cuda:0" if plan.cuda else "cpu")
    return TorchEngine(network(), TRANSFORM, device, PRECISION if plan.cuda else "fp32")


def fast(plan: Plan, device: CudaDevice | None, batch: int, seed: int = 0) -> Engine:
    """Return the CUDA engine, prepared for batches of 1 and `batch`; on the CPU the eager one."""
    if device is None:
        return eager(plan)
    return CudaEngine(
        network(seed),
        TRANSFORM,
        device,
        PRECISION,
        batch,
        buckets=[1],
        compile_network=plan.compiled,
    )


def cuda_device(plan: Plan) -> CudaDevice | None:
    """Return the device, if there is one."""
    return CudaDevice(0) if plan.cuda else None


def batches_per_s(engines: list[Engine], images: list[Image], seconds: float) -> float:
    """Run an engine in each of as many threads as there are engines; return their summed rate."""
    counts = [0] * len(engines)
    start = threading.Barrier(len(engines) + 1)
    stopping = threading.Event()

    def run(number: int) -> None:
        start.wait()
        while not stopping.is_set():
            engines[number].run(images, 5, False)
            counts[number] += 1

    with ThreadPoolExecutor(len(engines)) as pool:
        running = [pool.submit(run, number) for number in range(len(engines))]
        start.wait()
        started = time.perf_counter()
        time.sleep(seconds)
        stopping.set()
        for one in running:
            one.result()
        return sum(counts) / (time.perf_counter() - started)


def median_s(call: Callable[[], object], repeats: int) -> float:
    """Return how long a call takes, in seconds."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def alternate(
    one: Callable[[], float], other: Callable[[], float], turns: int
) -> tuple[float, float, float]:
    """Let both sides measure in turn; the first turn warms up.

    Returns:
        The median of each, and of one ÷ other.
    """
    pairs = [(one(), other()) for _ in range(turns + 1)][1:]
    ratios = [mine / theirs for mine, theirs in pairs]
    ones, others = zip(*pairs, strict=True)
    return statistics.median(ones), statistics.median(others), statistics.median(ratios)


def measure_served(plan: Plan) -> Iterator[Figure]:
    """Stream raw frames from client processes; run the engine alone in between."""
    device = cuda_device(plan)
    engine, images = fast(plan, device, plan.batch), frames(plan.batch)

    def raw() -> float:
        return batches_per_s([engine, engine], images, plan.seconds) * plan.batch

    with server(plan) as address, clients(plan, address) as streaming:
        served_rate, raw_rate, ratio = alternate(streaming, raw, plan.turns)
    yield Figure(
        f"served ÷ raw engine, raw frames, {plan.clients} client processes of {plan.streams}"
        " streams",
        f"{ratio:.3f} ({served_rate:.0f} ÷ {raw_rate:.0f} img/s)",
        "≥ 0.90",
    )
    yield Figure(
        f"engine alone, batch {plan.batch}, copies included", f"{raw_rate:.0f} img/s", "≥ 10 000"
    )
    engine.close()


@contextmanager
def server(plan: Plan) -> Iterator[str]:
    """Run a server; give its address once it is ready."""
    command = [*SERVER, "--variants", "bench=random:0", "--log-level", "warning"]
    command += ["--device", "cuda:0" if plan.cuda else "cpu"]
    # Room for the frames in flight of all streams.
    room = str(64 * (plan.batch + plan.clients * plan.streams))
    command += ["--max-batch-size", str(plan.batch)]
    command += ["--max-queue-size", room, "--max-requests", room]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None  # a pipe, as asked for
    try:
        line = process.stdout.readline()
        if not line:
            raise SystemExit("the server did not start; its output is above")
        yield line.split()[-1]
    finally:
        process.terminate()
        process.wait()


@contextmanager
def clients(plan: Plan, address: str) -> Iterator[Callable[[], float]]:
    """Start client processes; give what lets them stream for a turn and returns frames/s."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--stream-to",
        address,
        "--streams",
        str(plan.streams),
    ]
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            for _ in range(plan.clients)
        ]
        pipes = []
        for process in processes:
            assert process.stdin is not None  # pipes, as asked for
            assert process.stdout is not None
            stack.callback(process.terminate)
            pipes.append((process.stdin, process.stdout))

        def stream() -> float:
            for orders, _ in pipes:
                orders.write(f"{plan.seconds}\n")
                orders.flush()
            return float(sum(json.loads(answers.readline()) for _, answers in pipes))

        for _, answers in pipes:
            if not answers.readline():
                raise SystemExit("a client did not connect; its output is above")
        yield stream


def stream_client(address: str, streams: int) -> None:
    """Be a client process: stream for as long as each line of stdin says, print frames/s."""
    images = frames(16)
    with Client(address) as client:
        client.wait_until_ready(timeout_s=1200)
        print("ready", flush=True)
        for line in sys.stdin:
            seconds = float(line)
            ends = time.perf_counter() + seconds

            def sent(ends: float = ends) -> Iterator[Image]:
                for image in itertools.cycle(images):
                    if time.perf_counter() > ends:
                        return
                    yield image

            def one(sent: Callable[[], Iterator[Image]] = sent) -> int:
                answered = 0
                for answer in client.classify_stream(sent()):
                    if answer.error:
                        raise answer.error
                    answered += 1
                return answered

            started = time.perf_counter()
            with ThreadPoolExecutor(streams) as pool:
                answered = sum(pool.map(lambda _: one(), range(streams)))
            print(json.dumps(answered / (time.perf_counter() - started)), flush=True)


def measure_engine(plan: Plan) -> Iterator[Figure]:
    """Run both engines on the same batch, one after the other, copies included."""
    images, device = frames(plan.batch), cuda_device(plan)
    ours, theirs = fast(plan, device, plan.batch), eager(plan)
    repeats = max(2, int(plan.seconds * 10))
    slow_s, quick_s, ratio = alternate(
        lambda: median_s(lambda: theirs.run(images, 5, False), repeats),
        lambda: median_s(lambda: ours.run(images, 5, False), repeats),
        plan.turns,
    )
    yield Figure(
        f"engine ÷ eager channels_last, batch {plan.batch}",
        f"{ratio:.2f} ({plan.batch / quick_s:.0f} ÷ {plan.batch / slow_s:.0f} img/s)",
        "≥ 1.5",
    )
    ours.close()
    theirs.close()


def measure_latency(plan: Plan) -> Iterator[Figure]:
    """Run one image on both engines."""
    images, device = frames(1), cuda_device(plan)
    ours, theirs = fast(plan, device, 2), eager(plan)
    repeats = max(2, int(plan.seconds * 50))
    quick_s, slow_s, ratio = alternate(
        lambda: median_s(lambda: ours.run(images, 5, False), repeats),
        lambda: median_s(lambda: theirs.run(images, 5, False), repeats),
        plan.turns,
    )
    yield Figure(
        "batch 1, graph ÷ eager latency",
        f"{ratio:.2f} ({quick_s * 1e3:.2f} ÷ {slow_s * 1e3:.2f} ms)",
        "≤ 0.4",
    )
    ours.close()
    theirs.close()


def measure_copies(plan: Plan) -> Iterator[Figure]:
    """Compare batches from two threads with replaying their graph and nothing else."""
    device = CudaDevice(0)
    engine, images = fast(plan, device, plan.batch), frames(plan.batch)
    assert isinstance(engine, CudaEngine)
    launch = engine._steps[plan.batch].launch
    repeats = max(2, int(plan.seconds * 50))

    def with_copies() -> float:
        return 1.0 / batches_per_s([engine, engine], images, plan.seconds)

    def compute_only() -> float:
        with torch.cuda.device(0), torch.cuda.stream(device._compute):
            started = time.perf_counter()
            for _ in range(repeats):
                launch()
            device._compute.synchronize()
        return (time.perf_counter() - started) / repeats

    copied_s, computed_s, ratio = alternate(with_copies, compute_only, plan.turns)
    yield Figure(
        f"time with copies ÷ compute only, batch {plan.batch}",
        f"{ratio:.3f} ({copied_s * 1e3:.2f} ÷ {computed_s * 1e3:.2f} ms)",
        "≤ 1.05",
    )
    engine.close()


def measure_memory(plan: Plan) -> Iterator[Figure]:
    """Compare what engines with all buckets and with the largest alone reserve."""

    def reserved(buckets: list[int] | None) -> float:
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved(0)
        engine = CudaEngine(
            network(),
            TRANSFORM,
            CudaDevice(0),
            PRECISION,
            plan.batch,
            buckets=buckets,
            compile_network=plan.compiled,
        )
        torch.cuda.empty_cache()
        taken = torch.cuda.memory_reserved(0) - before
        engine.close()
        return float(taken)

    every, largest, ratio = alternate(lambda: reserved(None), lambda: reserved([]), 1)
    yield Figure(
        f"memory of all buckets to {plan.batch} ÷ the largest one's, weights included",
        f"{ratio:.2f} ({every / 2**20:.0f} ÷ {largest / 2**20:.0f} MiB)",
        "≤ 1.3",
    )


def measure_variants(plan: Plan) -> Iterator[Figure]:
    """Run two variants from a thread each; run one of them from two."""
    images, device = frames(plan.batch), cuda_device(plan)
    engines = [fast(plan, device, plan.batch, seed) for seed in (0, 1)]
    both, alone, ratio = alternate(
        lambda: batches_per_s(engines, images, plan.seconds) * plan.batch,
        lambda: batches_per_s([engines[0]] * 2, images, plan.seconds) * plan.batch,
        plan.turns,
    )
    yield Figure(
        "two variants' summed rate ÷ one's",
        f"{ratio:.3f} ({both:.0f} ÷ {alone:.0f} img/s)",
        "≥ 0.95",
    )
    for engine in engines:
        engine.close()


def measure_decode(plan: Plan) -> Iterator[Figure]:
    """Decode, resize and crop photographs in as many threads as there are cores."""
    cores = len(os.sched_getaffinity(0))
    folder = resources.files("sklearn.datasets.images")
    files = [(folder / name).read_bytes() for name in ("china.jpg", "flower.jpg")]
    limits = ImageLimits()
    done, taken = 0, 0.0
    with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        started = time.perf_counter()
        while (taken := time.perf_counter() - started) < plan.seconds:
            done += len(list(pool.map(lambda file: decode(file, TRANSFORM, limits), files * cores)))
    yield Figure(f"JPEG decode, {cores} cores, 640 x 427", f"{done / taken:.0f} img/s")


MEASURES: dict[str, Callable[[Plan], Iterator[Figure]]] = {
    "served": measure_served,
    "engine": measure_engine,
    "latency": measure_latency,
    "copies": measure_copies,
    "memory": measure_memory,
    "variants": measure_variants,
    "decode": measure_decode,
}
NEED_CUDA = {"copies", "memory"}


def main() -> None:
    """Measure, and print a Markdown table line by line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(MEASURES), default=list(MEASURES))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="see that it works; no figures")
    parser.add_argument("--no-compile", action="store_true", help="capture PyTorch's own kernels")
    parser.add_argument("--stream-to", help=argparse.SUPPRESS)
    parser.add_argument("--streams", type=int, default=2, help="of each client process")
    parser.add_argument("--clients", type=int, default=8, help="client processes")
    options = parser.parse_args()
    if options.stream_to:
        stream_client(options.stream_to, options.streams)
        return
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            f"bench-gpu needs a CUDA device, and torch {torch.__version__} sees none here;"
            " --device cpu --quick shows that the script works"
        )
    plan = Plan(
        options.device,
        clients=options.clients,
        streams=options.streams,
        compiled=not options.no_compile,
    )
    if options.quick:
        plan = Plan(options.device, 2, 0.5, 1, clients=2, streams=1, compiled=plan.compiled)
    where = torch.cuda.get_device_name(0) if plan.cuda else "no GPU: these figures mean nothing"
    print(
        f"{where}; torch {torch.__version__}, {PRECISION}, {len(os.sched_getaffinity(0))} cores\n"
    )
    print("| measure | figure | goal (H100) |\n|---|---|---|")
    for name in options.only:
        if name in NEED_CUDA and not plan.cuda:
            print(f"| {name} | needs CUDA | |", flush=True)
            continue
        for figure in MEASURES[name](plan):
            print(f"| {figure.name} | {figure.value} | {figure.goal} |", flush=True)


if __name__ == "__main__":
    main()
