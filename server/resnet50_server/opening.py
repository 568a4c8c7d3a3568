"""From a variant's definition to an engine with its weights: where, how exact, run by what."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from functools import partial

import numpy as np
import platformdirs
import torch

from .devices import cores, cuda_device
from .engine.agreement import Agreement
from .engine.cpu import Calibration, CpuEngines, Division
from .engine.graph_store import GraphStore
from .engine.protocol import Engine
from .engine.synthetic import NullEngine, TimedEngine
from .engine.torch_engine import TorchEngine
from .errors import WeightsError
from .image_file import ImageLimits
from .settings import Settings
from .variants.definition import Definition
from .variants.files import weights_directory
from .variants.network import build_network, parameter_count, read_weights

# How long the larger of the batches that warm an engine up may run, in seconds.
WARM_UP_S = 0.4


@dataclass(frozen=True)
class OpenEngine:
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
    """

    engine: Engine
    kind: str
    digest: str
    parameter_count: int
    device: str
    precision: str
    trained: bool
    quantization: Agreement | None = None


def place(definition: Definition, settings: Settings) -> tuple[str, str]:
    """Choose a variant's device and precision.

    Returns:
        Device ("cpu", "cuda:0") and precision ("fp32", "fp16", "bf16", "int8").

    Raises:
        WeightsError: The settings ask for what cannot be.
    """
    if definition.quantized:
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


def open_engine(definition: Definition, settings: Settings) -> OpenEngine:
    """Build a variant's engine; blocks while weights are read, so not for the event loop.

    Raises:
        WeightsError: The weights cannot be had, or the settings ask for what cannot be.
    """
    if settings.engine in ("null", "timed"):
        count = len(definition.categories)
        engine: Engine = (
            NullEngine(count)
            if settings.engine == "null"
            else TimedEngine(count, settings.timed_alpha_ms, settings.timed_beta_ms)
        )
        digest = hashlib.sha256(f"{settings.engine}:{definition.name}".encode()).hexdigest()
        return OpenEngine(engine, settings.engine, digest, 0, "cpu", "fp32", trained=False)
    device, precision = place(definition, settings)
    weights = read_weights(definition, weights_directory(settings.weights_dir), settings.download)
    network = functools.cache(partial(build_network, definition, weights))
    transform, quantization = definition.transform, None
    if device != "cpu" and settings.engine == "torch":
        kind = "torch"
        engine = TorchEngine(network(), transform, torch.device(device), precision)
    elif device != "cpu":
        from .engine.cuda_engine import CudaEngine

        kind = "cuda-graphs"
        engine = CudaEngine(
            network(), transform, cuda_device(device), precision, settings.max_batch_size
        )
    else:
        directory = settings.cache_dir or platformdirs.user_cache_path("resnet50-serving")
        with GraphStore(directory, settings.max_cache_bytes) as store:
            opened = _cpu_engines(store, settings).open(
                definition, network, weights.digest, precision, settings.engine
            )
        engine, kind, quantization = opened.engine, opened.kind, opened.quantization
    return OpenEngine(
        engine,
        kind,
        weights.digest,
        parameter_count(definition, weights),
        device,
        precision,
        trained=definition.seed is None,
        quantization=quantization,
    )


def _cpu_engines(store: GraphStore, settings: Settings) -> CpuEngines:
    calibration = None
    if settings.calibration_dir is not None:
        limits = ImageLimits(settings.max_image_bytes, settings.max_image_pixels)
        calibration = Calibration(settings.calibration_dir, limits, settings.min_int8_agreement)
    threads = Division.divide(cores(), settings.instances, settings.engine_threads)
    return CpuEngines(store, threads, calibration)


def warm_up(engine: Engine, definition: Definition, max_batch_size: int) -> list[tuple[int, float]]:
    """Run an engine at batch 1 and at a larger batch; blocks, on an engine thread.

    Each twice, for the first run allocates. The larger batch is as large as `WARM_UP_S` allows: the
    largest there is on a GPU, a few images on a CPU, which would take seconds for a full one.

    Returns:
        Batch sizes, and how long their second runs took, in seconds.

    Raises:
        WeightsError: The network's answer is not finite.
    """
    crop = definition.transform.crop
    image = np.full((crop, crop, 3), 128, dtype=np.uint8)

    def run(size: int) -> float:
        output = engine.run([image] * size, 1, True)
        assert output.embeddings is not None  # asked for
        if not (np.isfinite(output.probabilities).all() and np.isfinite(output.embeddings).all()):
            raise WeightsError(
                f"{definition.name}: a grey image gives numbers that are not finite; the weights"
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
