"""From a variant's spec to an engine with its weights: where, how exact, run by what."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from functools import partial

import numpy as np
import platformdirs
import torch

from resnet50_server.engines.agreement import Agreement
from resnet50_server.engines.base import Engine
from resnet50_server.engines.cpu import Calibration, CpuEngines
from resnet50_server.engines.devices import set_threads
from resnet50_server.engines.graph_cache import GraphStore
from resnet50_server.engines.reference_check import Canary
from resnet50_server.engines.stub_engines import NullEngine, TimedEngine
from resnet50_server.engines.torch_engine import TorchEngine
from resnet50_server.errors import WeightsError
from resnet50_server.images.formats import ImageLimits
from resnet50_server.settings import Settings
from resnet50_server.variants.checkpoints import Weights, weights_directory
from resnet50_server.variants.network import build_network, parameter_count, read_weights
from resnet50_server.variants.spec import VariantSpec

from .devices import cuda_device, division

# How long the larger of the batches that warm an engine up may run, in seconds.
WARM_UP_S = 0.4
# Bytes of a parameter, and how many times that an engine takes: two fp32 variants in batches of 8
# make a process grow by 123, 233 and 299 MiB each, for weights of 97.5 MiB (ADR 0008). That of CUDA
# graphs is a guess: it has not been measured.
BYTES_EACH = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
MEMORY_FACTORS = {"torch": 1.3, "onnxruntime": 2.4, "openvino": 3.1, "cuda-graphs": 3.0}


@dataclass(frozen=True)
class BuiltEngine:
    """An engine with its weights, and how it came about.

    Attributes:
        engine: Ready to run.
        kind: "cuda-graphs", "torch", "onnxruntime", "openvino", "null" or "timed".
        digest: SHA-256 of its weights, 64 hex digits.
        parameter_count: How many parameters it has; 0 for engines without a network.
        device: "cpu" or "cuda:N".
        precision: "fp32", "fp16", "bf16" or "int8".
        trained: False for random weights and for engines without a network.
        quantization: How close int8 comes to the weights it was made from; None if it was not made.
        memory_bytes: What it takes, as estimated; see `memory_of`.
    """

    engine: Engine
    kind: str
    digest: str
    parameter_count: int
    device: str
    precision: str
    trained: bool
    quantization: Agreement | None = None
    memory_bytes: int = 0


def place(spec: VariantSpec, settings: Settings) -> tuple[str, str]:
    """Choose a variant's device and precision.

    Returns:
        Device ("cpu", "cuda:0") and precision ("fp32", "fp16", "bf16", "int8").

    Raises:
        WeightsError: The settings ask for what cannot be.
    """
    if spec.quantized:
        return "cpu", "int8"  # fbgemm kernels exist for the CPU only
    device = settings.device
    if device == "auto":
        for_gpu = settings.engine in ("auto", "torch") and settings.precision != "int8"
        device = "cuda:0" if for_gpu and torch.cuda.is_available() else "cpu"
    elif device.startswith("cuda"):
        index = int(device.partition(":")[2] or 0)
        device = f"cuda:{index}"
        if not torch.cuda.is_available() or index >= torch.cuda.device_count():
            raise WeightsError(
                f"device: {device} was asked for, but torch {torch.__version__} sees"
                f" {torch.cuda.device_count()} CUDA devices; use --device cpu or auto"
            )
        if settings.precision == "int8":
            raise WeightsError(
                f"precision: int8 of float weights is for the CPU, and device is {device}; use"
                " --device cpu, or fp16"
            )
        if settings.engine not in ("auto", "torch"):
            raise WeightsError(
                f"engine: {settings.engine} computes on the CPU, and device is {device}; use"
                " --device cpu, or --engine auto"
            )
    if settings.precision != "auto":
        return device, settings.precision
    return device, "fp32" if device == "cpu" else "fp16"


@dataclass(frozen=True)
class PreparedVariant:
    """A variant whose weights are read and checked, and nothing is built of them yet.

    Attributes:
        spec: The variant.
        device: Where it will run.
        precision: In which arithmetic.
        weights: Its weights; None for engines without a network.
        canary: What they say of a fixed image; None for engines without a network.
        parameters: How many there are.
        memory_bytes: What its engine will take at most, as estimated; see `memory_of`.
    """

    spec: VariantSpec
    device: str = "cpu"
    precision: str = "fp32"
    weights: Weights | None = None
    canary: Canary | None = None
    parameters: int = 0
    memory_bytes: int = 0


def prepare(spec: VariantSpec, settings: Settings) -> PreparedVariant:
    """Read and check a variant's weights; blocks, so not for the event loop.

    Raises:
        WeightsError: The weights cannot be had, or the settings ask for what cannot be.
    """
    if settings.engine in ("null", "timed"):
        return PreparedVariant(spec)
    device, precision = place(spec, settings)
    weights = read_weights(spec, weights_directory(settings.weights_dir), settings.download)
    set_threads(division(settings).each)
    canary = Canary.of(spec, weights)
    parameters = parameter_count(spec, weights)
    kind: str = settings.engine
    if kind == "auto" and (device != "cpu" or spec.quantized):
        kind = "cuda-graphs" if device != "cpu" else "torch"
    at_most = memory_of(parameters, precision, kind, division(settings).instances)
    return PreparedVariant(spec, device, precision, weights, canary, parameters, at_most)


def memory_of(parameters: int, precision: str, kind: str, instances: int = 1) -> int:
    """Estimate what an engine takes, in bytes: its weights, and what it makes of them.

    In onnxruntime each instance has them by itself; the others share them.

    Args:
        parameters: How many its network has.
        precision: "fp32", "fp16", "bf16" or "int8".
        kind: As `BuiltEngine.kind`; the greediest one for "auto".
        instances: How many batches it computes at once.
    """
    factors = MEMORY_FACTORS | {"onnxruntime": instances * MEMORY_FACTORS["onnxruntime"]}
    return int(parameters * BYTES_EACH[precision] * factors.get(kind, max(factors.values())))


def build_engine(prepared: PreparedVariant, settings: Settings) -> BuiltEngine:
    """Build a variant's engine; blocks, so not for the event loop.

    Raises:
        WeightsError: It cannot be built; says why.
    """
    spec, weights = prepared.spec, prepared.weights
    device, precision = prepared.device, prepared.precision
    if weights is None:
        count = len(spec.categories)
        engine: Engine = (
            NullEngine(count)
            if settings.engine == "null"
            else TimedEngine(count, settings.timed_alpha_ms, settings.timed_beta_ms)
        )
        digest = hashlib.sha256(f"{settings.engine}:{spec.name}".encode()).hexdigest()
        return BuiltEngine(engine, settings.engine, digest, 0, device, precision, trained=False)
    network = functools.cache(partial(build_network, spec, weights))
    transform, quantization = spec.transform, None
    if device != "cpu" and settings.engine == "torch":
        kind = "torch"
        engine = TorchEngine(network(), transform, torch.device(device), precision)
    elif device != "cpu":
        from resnet50_server.engines.cuda.engine import CudaEngine

        kind = "cuda-graphs"
        engine = CudaEngine(
            network(), transform, cuda_device(device), precision, settings.max_batch_size
        )
    else:
        # Engines are compared, and PyTorch is one of them, with the threads that they will have.
        set_threads(division(settings).each)
        directory = settings.graph_cache_dir or platformdirs.user_cache_path("resnet50-serving")
        with GraphStore(directory, settings.max_graph_cache_bytes) as store:
            opened = _cpu_engines(store, settings).open(
                spec, network, weights.digest, precision, settings.engine
            )
        engine, kind, quantization = opened.engine, opened.kind, opened.quantization
    return BuiltEngine(
        engine,
        kind,
        weights.digest,
        prepared.parameters,
        device,
        precision,
        trained=spec.seed is None,
        quantization=quantization,
        memory_bytes=memory_of(prepared.parameters, precision, kind, division(settings).instances),
    )


def _cpu_engines(store: GraphStore, settings: Settings) -> CpuEngines:
    calibration = None
    if settings.calibration_dir is not None:
        limits = ImageLimits(settings.max_image_bytes, settings.max_image_pixels)
        calibration = Calibration(settings.calibration_dir, limits, settings.min_int8_agreement)
    return CpuEngines(store, division(settings), calibration)


def warm_up(engine: Engine, spec: VariantSpec, max_batch_size: int) -> list[tuple[int, float]]:
    """Run an engine at batch 1 and at a larger batch; blocks, on an engine thread.

    Each twice, for the first run allocates. The larger batch is as large as `WARM_UP_S` allows: the
    largest there is on a GPU, a few images on a CPU, which would take seconds for a full one.

    Returns:
        Batch sizes, and how long their second runs took, in seconds.

    Raises:
        WeightsError: The network's answer is not finite.
    """
    crop = spec.transform.crop
    image = np.full((crop, crop, 3), 128, dtype=np.uint8)

    def run(size: int) -> float:
        output = engine.run([image] * size, 1, True)
        assert output.embeddings is not None  # asked for
        if not (np.isfinite(output.probabilities).all() and np.isfinite(output.embeddings).all()):
            raise WeightsError(
                f"{spec.name}: a grey image gives numbers that are not finite; the weights"
                " are broken, or --precision is too low for them"
            )
        return output.compute_s

    run(1)
    measured = [(1, run(1))]
    # An image costs at most what a batch of one does.
    size = min(max_batch_size, int(WARM_UP_S / 2 / max(1e-6, measured[0][1])))
    if size > 1:
        run(size)
        measured.append((size, run(size)))
    return measured


def verify(prepared: PreparedVariant, opened: BuiltEngine) -> None:
    """Compare an engine's answer to a fixed image with PyTorch's; blocks, on an engine thread.

    Int8 that was made here has been compared with its weights on many images already.

    Raises:
        WeightsError: It is another one.
    """
    if prepared.canary is not None and opened.quantization is None:
        prepared.canary.check(opened.engine, prepared.spec, opened.precision)
