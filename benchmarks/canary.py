"""Cost of verifying weights, and errors found by it: python -m benchmarks.canary [cost|margins]...

cost     the steps of loading a variant on this machine's CPU, in seconds, for each engine whose
         graph is on disk; medians over turns
margins  what right engines and wrong ones show for the fixed image, beside what is allowed

The weights are of a trained network's kind (`tests/support/weights.py`), of 1000 categories. To be
run alone on the machine.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import ResNet

from resnet50_server.engines.reference_check import TOLERANCES, ReferenceOutput
from resnet50_server.engines.torch_engine import TorchEngine
from resnet50_server.lifecycle.engine_builder import (
    build_engine,
    check_reference,
    prepare_variant,
    warm_up,
)
from resnet50_server.settings import Settings
from resnet50_server.variants.checkpoints import Weights
from resnet50_server.variants.network import Network, build_model, build_network, read_weights
from resnet50_server.variants.spec import VariantSpec, parse_variant
from tests.support.weights import custom_variant, trained_like

ENGINES = (
    ("torch", "fp32"),
    ("onnxruntime", "fp32"),
    ("openvino", "fp32"),
    ("torch", "bf16"),
)
NETWORKS = 4
TURNS = 5
CATEGORIES = 1000
MAX_BATCH_SIZE = 8


def settings_of(folder: Path, engine: Any, precision: Any) -> Settings:
    """Return settings for one engine on the CPU."""
    return Settings(
        variants=["named=later"],  # there has to be one
        engine=engine,
        precision=precision,
        device="cpu",
        graph_cache_dir=folder / "cache",
        max_batch_size=MAX_BATCH_SIZE,
    )


def measure_cost(folder: Path, spec: VariantSpec) -> None:
    """Print how long each step of a load takes."""
    print("| engine | read | reference | build | warm up | check | reference and check, of all |")
    print("|---|---|---|---|---|---|---|")
    for engine, precision in ENGINES[:3]:
        settings = settings_of(folder, engine, precision)
        load(spec, settings)  # makes the graph
        turns = [load(spec, settings) for _ in range(TURNS)]
        read, reference, build, warm, check = map(statistics.median, zip(*turns, strict=True))
        share = (reference + check) / (read + reference + build + warm + check)
        print(
            f"| {engine} | {read:.2f} | {reference:.2f} | {build:.2f} | {warm:.2f} | {check:.2f}"
            f" | {share:.0%} |",
            flush=True,
        )


def load(spec: VariantSpec, settings: Settings) -> list[float]:
    """Load a variant step by step, and close it; return the seconds of each."""
    prepared = prepare_variant(spec, settings)
    marks = [time.perf_counter()]
    weights = read_weights(spec, Path(), False)
    marks.append(time.perf_counter())
    ReferenceOutput.compute(spec, weights)
    marks.append(time.perf_counter())
    opened = build_engine(prepared, settings)
    marks.append(time.perf_counter())
    warm_up(opened.engine, spec, settings.max_batch_size)
    marks.append(time.perf_counter())
    check_reference(prepared, opened)
    marks.append(time.perf_counter())
    opened.engine.close()
    return [after - before for before, after in itertools.pairwise(marks)]


def measure_margins(folder: Path, specs: list[VariantSpec]) -> None:
    """Print the most that right engines show, and what the first network shows if it is wrong."""
    print("| what | probabilities differ by | cosine | allowed |")
    print("|---|---|---|---|")
    all_weights = [read_weights(one, Path(), False) for one in specs]
    references = [ReferenceOutput.compute(*pair) for pair in zip(specs, all_weights, strict=True)]
    for name, precision in ENGINES:
        settings = settings_of(folder, name, precision)
        shown = []
        for spec, reference in zip(specs, references, strict=True):
            opened = build_engine(prepare_variant(spec, settings), settings)
            shown.append(reference.compare(opened.engine))
            opened.engine.close()
        allowed = TOLERANCES[precision]
        row(f"{name}, {precision}", shown, f"{allowed.probability:g}, {allowed.cosine:g}")
    for number, (spec, weights) in enumerate(zip(specs, all_weights, strict=True)):
        # fp16 engines are CUDA's; PyTorch computes it on the CPU as well.
        network = build_network(spec, weights)
        engine = TorchEngine(network, spec.transform, torch.device("cpu"), "fp16")
        shown[number] = references[number].compare(engine)
    allowed = TOLERANCES["fp16"]
    row("torch, fp16", shown, f"{allowed.probability:g}, {allowed.cosine:g}")
    for what, model in wrong(specs[0], all_weights[0], all_weights[1]):
        transform = specs[0].transform
        engine = TorchEngine(Network(model), transform, torch.device("cpu"), "fp32")
        row(what, [references[0].compare(engine)], "no")


def row(what: str, shown: list[tuple[float, float]], allowed: str) -> None:
    """Print the worst of what is shown."""
    difference = max(one for one, _ in shown)
    cosine = min(one for _, one in shown)
    print(f"| {what} | {difference:.1e} | {cosine:.6f} | {allowed} |", flush=True)


def wrong(spec: VariantSpec, weights: Weights, others: Weights) -> list[tuple[str, ResNet]]:
    """Return networks that are wrong in one way each."""
    # Models take tensors of the state as they are.
    build = partial(copy.deepcopy, build_model(spec, weights))
    swapped, head, norm, stale, bit = build(), build(), build(), build(), build()
    with torch.inference_mode():
        first = swapped.conv1.weight
        first.copy_(first.flip(1))
        head.load_state_dict({k: v for k, v in others.state.items() if k.startswith("fc.")}, False)
        nn.init.zeros_(norm.layer3[2].bn2.running_mean)
        stale.layer2[1].conv2.load_state_dict({"weight": others.state["layer2.1.conv2.weight"]})
        number = bit.layer1[0].conv1.weight.view(-1)[:1]
        number.view(torch.int32).bitwise_xor_(1 << 29)
    return [
        ("another checkpoint's weights", build_model(spec, others)),
        ("blue where red should be", swapped),
        ("another checkpoint's head", head),
        ("one convolution of another checkpoint", stale),
        ("one mean of a BatchNorm missing", norm),
        ("one bit of one exponent", bit),
    ]


def main() -> None:
    """Measure what the command line names, or everything."""
    asked = sys.argv[1:] or ["cost", "margins"]
    if unknown := set(asked) - {"cost", "margins"}:
        sys.exit(f"unknown: {', '.join(sorted(unknown))}\n\n{__doc__}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        specs = []
        for seed in range(NETWORKS):
            state = trained_like(seed, CATEGORIES)
            made = custom_variant(folder / f"seed{seed}", state, CATEGORIES)
            specs.append(parse_variant(f"seed{seed}={made}"))
        if "cost" in asked:
            measure_cost(folder, specs[0])
        if "margins" in asked:
            measure_margins(folder, specs)


if __name__ == "__main__":
    main()
