"""Throughput of a CPU: python -m benchmarks.cpu [engines|served|start|memory]...

engines  images a second of each engine and precision, alone, in batches of 1 and 8
served   images a second through a server (JPEG, unary, 16 callers) against the same decoding and
         the same engine in one process without one, and against a plain PyTorch loop
start    start to ready with one variant on disk, against a bare PyTorch process that loads it
memory   resident memory with two fp32 variants, against a bare PyTorch process that holds both

Weights are random: that changes nothing of the time. Each starts processes of its own on this
machine (Linux). Figures are ratios within one run, medians over interleaved turns.
"""

from __future__ import annotations

import io
import json
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.models import ResNet50_Weights, quantization, resnet50

from benchmarks.measures import parser_of
from benchmarks.overhead import photo
from benchmarks.process import SERVER, resident_kib, server
from resnet50.v1 import image_pb2
from resnet50_bench.plan import Load, Plan
from resnet50_bench.runner import measure
from resnet50_server.engines.autoselect import CpuEngines
from resnet50_server.engines.graph_cache import GraphCache
from resnet50_server.images.decode import decode
from resnet50_server.images.limits import ImageLimits
from resnet50_server.images.transform import Transform
from resnet50_server.lifecycle.engine_builder import build_engine, prepare_variant
from resnet50_server.runtime.cpus import CpuPlan, cpus
from resnet50_server.settings import Settings
from resnet50_server.variants.network import Network, fold_batchnorm
from resnet50_server.variants.spec import parse_variant
from resnet50_server.variants.transform_file import transform_json

VARIANT = "untrained=random:0"
TRANSFORM = Transform.of(ResNet50_Weights.IMAGENET1K_V2.transforms())
TURNS = 3
CALLERS = 16
SECONDS = 6.0
CALIBRATION_IMAGES = 32
JPEG = [image_pb2.Image(encoded=photo())]
# Loads variants from folders in nothing but PyTorch, computes once, waits for the end of stdin.
BARE = """
import sys
import torch
import torchvision
models = []
for folder in sys.argv[2:]:
    model = torchvision.models.resnet50(weights=None)
    model.load_state_dict(torch.load(folder + "/weights.pth", weights_only=True))
    models.append(model.eval())
with torch.inference_mode():
    for model in models:
        model(torch.zeros(int(sys.argv[1]), 3, 224, 224))
print("ready", flush=True)
sys.stdin.read()
"""
# (precision, engine) as they are measured alone.
ENGINES = (
    ("fp32", "torch"),
    ("fp32", "onnxruntime"),
    ("fp32", "openvino"),
    ("bf16", "torch"),
    ("bf16", "openvino"),
    ("int8", "torch"),
    ("int8", "onnxruntime"),
    ("int8", "openvino"),
)


def measure_engines(cache: Path) -> None:
    """Run each in turn; the first turn warms up."""
    torch.set_num_threads(cpus())
    images = [decode(photo(), TRANSFORM, ImageLimits())] * 8
    opened: dict[str, Any] = {}
    with GraphCache(cache, sys.maxsize) as graph_cache:
        engines = CpuEngines(graph_cache, CpuPlan.divide(cpus(), None, None), None)
        for precision, kind in ENGINES:
            quantized = precision == "int8"
            network = Network(_model(quantized))
            if not quantized:
                fold_batchnorm(network.model)
            name = "IMAGENET1K_FBGEMM_V2" if quantized else "IMAGENET1K_V2"
            opened[f"{precision} {kind}"] = engines.build(
                parse_variant(name), partial(_same, network), name, precision, kind
            ).engine.run
    model = _model().eval()

    def eager(images, *_: object) -> None:
        with torch.inference_mode():
            model(torch.stack([torch.from_numpy(one).permute(2, 0, 1) for one in images]) / 255.0)

    opened["fp32 torch as it comes"] = eager
    rates: dict[tuple[str, int], list[float]] = {(name, n): [] for name in opened for n in (1, 8)}
    for turn in range(TURNS + 1):
        for (name, count), found in rates.items():
            batches, started = 0, time.perf_counter()
            while batches < 2 or time.perf_counter() - started < 0.7:
                opened[name](images[:count], 5, False)
                batches += 1
            if turn:
                found.append(batches * count / (time.perf_counter() - started))
    base = statistics.median(rates["fp32 torch as it comes", 1])
    for name in opened:
        one, eight = (statistics.median(rates[name, count]) for count in (1, 8))
        print(
            f"engines  {name:24} {one:6.1f} and {eight:6.1f} images/s at batch 1 and 8;"
            f" {eight / base:.2f} times PyTorch as it comes, one by one"
        )


def _same(network: Network) -> Network:
    return network


def _model(quantized: bool = False):
    if quantized:
        torch.backends.quantized.engine = "fbgemm"
        return quantization.resnet50(weights=None, quantize=True).eval()
    return resnet50(weights=None).eval()


def measure_served(cache: Path) -> None:
    """Find the best division of the cores without a server, then take turns with one."""
    calibration = cache / "calibration"
    calibration.mkdir()
    for number in range(CALIBRATION_IMAGES):
        (calibration / f"{number}.jpg").write_bytes(photo())
    loops: list[float] = []
    for precision in ("fp32", "int8"):
        flags: tuple[str, ...] = ("--precision", precision, "--graph-cache-dir", str(cache))
        if precision == "int8":
            flags += ("--calibration-dir", str(calibration), "--min-int8-agreement", "0")
        trials = {
            (decoders, threads, batch): _alone(flags, decoders, threads, batch)
            for decoders in range(1, cpus() + 1)
            for threads in {1, cpus()}
            for batch in (4, 16)
        }
        best = max(trials, key=lambda one: trials[one])
        alone, served = [], []
        with server("--variants", VARIANT, *flags) as (address, _):
            plan = Plan(servers=(address,), load=Load(concurrency=CALLERS), duration_s=SECONDS)
            for _ in range(TURNS):
                loops.append(_child("loop"))
                alone.append(_alone(flags, *best))
                served.append(measure(plan, JPEG).throughput_per_s)
        ratios = [one / two for one, two in zip(served, alone, strict=True)]
        print(
            f"served  {precision}: {statistics.median(served):.1f} images/s, without a server"
            f" {statistics.median(alone):.1f} (decode threads, engine threads, batch: {best});"
            f" ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f});"
            f" {statistics.median(served) / statistics.median(loops):.1f} times a PyTorch loop"
            f" ({statistics.median(loops):.1f} images/s)"
        )


def _alone(flags: tuple[str, ...], decoders: int, threads: int, batch: int) -> float:
    return _child("pipeline", json.dumps(flags), str(decoders), str(threads), str(batch))


def _child(*arguments: str) -> float:
    """Run a part of this file in a process of its own; return the number that it prints."""
    command = [sys.executable, "-m", "benchmarks.cpu", "--child", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.split()[-1])


def loop() -> float:
    """Return images a second of what one would write without a server: one image at a time."""
    weights = ResNet50_Weights.IMAGENET1K_V2
    model, transform, encoded = _model(), weights.transforms(), photo()
    done, started = -1, 0.0
    with torch.inference_mode():
        while done < 0 or time.perf_counter() - started < SECONDS / 2:
            if done < 0:
                started = time.perf_counter()
            image = Image.open(io.BytesIO(encoded)).convert("RGB")
            model(transform(image)[None]).softmax(dim=1).topk(5)
            done += 1
            if done == 0:  # the first warms up
                started = time.perf_counter()
    return done / (time.perf_counter() - started)


def pipeline(flags: list[str], decoders: int, threads: int, batch: int) -> float:
    """Return images a second of decoding threads and an engine, with nothing between them.

    Args:
        flags: As the server's.
        decoders: Threads that decode.
        threads: Of the engine.
        batch: Images that it takes at once.
    """
    options: dict[str, Any] = dict(zip(flags[::2], flags[1::2], strict=True))
    settings = Settings(
        variants=[VARIANT],
        engine_threads=threads,
        **{name[2:].replace("-", "_"): value for name, value in options.items()},
    )
    torch.set_num_threads(threads)
    engine = build_engine(prepare_variant(parse_variant(VARIANT), settings), settings).engine
    encoded, stopped = photo(), threading.Event()
    decoded: queue.Queue = queue.Queue(2 * batch)

    def decoding() -> None:
        torch.set_num_threads(1)
        while not stopped.is_set():
            decoded.put(decode(encoded, TRANSFORM, ImageLimits()))

    workers = [threading.Thread(target=decoding, daemon=True) for _ in range(decoders)]
    for worker in workers:
        worker.start()

    def compute() -> None:
        engine.run([decoded.get() for _ in range(batch)], 5, False)

    compute()
    compute()
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < SECONDS / 2:
        compute()
        done += batch
    return done / (time.perf_counter() - started)


def measure_start(cache: Path) -> None:
    """Start both in turn; the first server exports the graph and chooses its engine."""
    variant = _variant(cache / "one", 0)
    bare = [sys.executable, "-c", BARE, "1", str(cache / "one")]
    ours = [*SERVER, "--variants", f"one={variant}", "--graph-cache-dir", str(cache)]
    first = _seconds_to_first_line(ours)
    pairs = [(_seconds_to_first_line(ours), _seconds_to_first_line(bare)) for _ in range(TURNS)]
    ratios = [one / two for one, two in pairs]
    one, two = (statistics.median(times) for times in zip(*pairs, strict=True))
    print(
        f"start  ready after {one:.1f} s, bare PyTorch after {two:.1f} s; ratio"
        f" {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}); the very"
        f" first start: {first:.1f} s"
    )


def measure_memory(cache: Path) -> None:
    """Compare after both have computed batches of 8."""
    folders = [_variant(cache / name, seed) for name, seed in (("one", 0), ("two", 1))]
    bare = subprocess.Popen(
        [sys.executable, "-c", BARE, "8", *map(str, folders)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert bare.stdout is not None and bare.stdin is not None  # pipes, as asked for
    bare.stdout.readline()
    pytorch = resident_kib(bare.pid)
    bare.stdin.close()
    bare.wait()
    variants = ("--variants", f"one={folders[0]}", "--variants", f"two={folders[1]}")
    with server(*variants, "--graph-cache-dir", str(cache)):
        pass  # exports the graphs, which takes memory that a later start does not
    with server(*variants, "--graph-cache-dir", str(cache)) as (address, pid):
        for name in ("one", "two"):
            load = Load(concurrency=8)
            measure(Plan(servers=(address,), variant=name, load=load, duration_s=3.0), JPEG)
        ours = resident_kib(pid)
    print(
        f"memory  {ours / 1024:.0f} MiB with two fp32 variants, bare PyTorch"
        f" {pytorch / 1024:.0f} MiB; ratio {ours / pytorch:.2f}"
    )


def _variant(folder: Path, seed: int) -> Path:
    folder.mkdir()
    torch.manual_seed(seed)
    torch.save(resnet50(weights=None).state_dict(), folder / "weights.pth")
    described = {
        "categories": [f"category {index}" for index in range(1000)],
        "transform": transform_json(TRANSFORM),
    }
    (folder / "variant.json").write_text(json.dumps(described))
    return folder


def _seconds_to_first_line(command: list[str]) -> float:
    started = time.perf_counter()
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None  # a pipe, as asked for
        assert process.stdout.readline()
        taken = time.perf_counter() - started
        process.kill()
    return taken


def main() -> None:
    """Run what was asked for, or everything."""
    measures = {
        "engines": measure_engines,
        "served": measure_served,
        "start": measure_start,
        "memory": measure_memory,
    }
    if sys.argv[1:2] == ["--child"]:
        part, *arguments = sys.argv[2:]
        if part == "loop":
            print(loop())
        else:
            flags, *numbers = arguments
            print(pipeline(json.loads(flags), *map(int, numbers)))
        return
    for name in parser_of(__doc__, measures).parse_args().what or measures:
        with tempfile.TemporaryDirectory(prefix="resnet50-") as cache:
            measures[name](Path(cache))


if __name__ == "__main__":
    main()
