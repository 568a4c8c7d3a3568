"""Build a variant's engine: choose device and precision, read the weights, pick a backend."""

from __future__ import annotations

import functools
import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np
import platformdirs

from resnet50_server.engines.base import Engine
from resnet50_server.engines.devices import (
    cuda_available,
    cuda_device,
    cuda_device_count,
    set_threads,
    torch_version,
)
from resnet50_server.engines.graph_cache import GraphCache
from resnet50_server.engines.quantize import Agreement
from resnet50_server.engines.stub_engines import NullEngine, TimedEngine
from resnet50_server.errors import WeightsError
from resnet50_server.images.limits import ImageLimits
from resnet50_server.settings import Settings
from resnet50_server.variants.checkpoints import (
    Weights,
    parse_checkpoint,
    read_checkpoint,
    weights_directory,
)
from resnet50_server.variants.spec import VariantSpec

from .devices import cpu_plan

if TYPE_CHECKING:
    from resnet50_server.engines.autoselect import CpuEngines
    from resnet50_server.engines.reference_check import ReferenceOutput

# Time limit of the larger warm-up batch, in seconds.
WARM_UP_S = 0.4
# Bytes of a parameter, and the memory of an engine as a multiple of its weights. Measured in fp32
# at batches of 8: 123, 233 and 299 MiB a variant, for weights of 97.5 MiB (ADR 0008). The factor of
# CUDA graphs is a guess.
BYTES_PER_PARAMETER = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
MEMORY_FACTORS = {"torch": 1.3, "onnxruntime": 2.4, "openvino": 3.1, "cuda-graphs": 3.0}


@dataclass(frozen=True)
class BuiltEngine:
    """An engine with its weights, and what is reported about it.

    Attributes:
        engine: Ready to run.
        kind: "cuda-graphs", "torch", "onnxruntime", "openvino", "null" or "timed".
        digest: SHA-256 of its weights, 64 hex digits.
        parameter_count: Number of parameters; 0 for stub engines.
        device: "cpu" or "cuda:N".
        precision: "fp32", "fp16", "bf16" or "int8".
        trained: False for random weights and stub engines.
        quantization: Agreement of int8 weights quantized here with the float ones; else None.
        memory_bytes: Estimated memory; see `estimate_memory`.
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


def choose_device(spec: VariantSpec, settings: Settings) -> tuple[str, str]:
    """Choose a variant's device and precision.

    Returns:
        Device ("cpu", "cuda:0") and precision ("fp32", "fp16", "bf16", "int8").

    Raises:
        WeightsError: The settings ask for a device, precision and engine that do not combine.
    """
    if spec.quantized:
        return "cpu", "int8"  # fbgemm kernels exist for the CPU only
    device = settings.device
    if device == "auto":
        for_gpu = settings.engine in ("auto", "torch") and settings.precision != "int8"
        device = "cuda:0" if for_gpu and cuda_available() else "cpu"
    elif device.startswith("cuda"):
        index = int(device.partition(":")[2] or 0)
        device = f"cuda:{index}"
        if index >= (count := cuda_device_count()):
            raise WeightsError(
                f"device: {device} was asked for, but torch {torch_version()} sees"
                f" {count} CUDA devices; use --device cpu or auto"
            )
        if settings.precision == "int8":
            raise WeightsError(
                f"precision: int8 of float weights runs on the CPU only, and device is {device};"
                " use --device cpu, or --precision fp16"
            )
        if settings.engine not in ("auto", "torch"):
            raise WeightsError(
                f"engine: {settings.engine} runs on the CPU only, and device is {device}; use"
                " --device cpu, or --engine auto"
            )
    if settings.precision != "auto":
        return device, settings.precision
    return device, "fp32" if device == "cpu" else "fp16"


@dataclass(frozen=True)
class PreparedVariant:
    """A variant whose weights are read and checked, before its engine is built.

    Attributes:
        spec: The variant.
        device: "cpu" or "cuda:N".
        precision: "fp32", "fp16", "bf16" or "int8".
        weights: Its weights; None for stub engines.
        reference: PyTorch's output for fixed images; None for stub engines.
        parameters: Number of parameters.
        memory_bytes: The most memory that its engine may need; see `estimate_memory`.
    """

    spec: VariantSpec
    device: str = "cpu"
    precision: str = "fp32"
    weights: Weights | None = None
    reference: ReferenceOutput | None = None
    parameters: int = 0
    memory_bytes: int = 0


def prepare_variant(spec: VariantSpec, settings: Settings) -> PreparedVariant:
    """Read and check a variant's weights. Blocks; not for the event loop.

    Raises:
        WeightsError: The weights are missing or wrong, or the settings do not combine.
    """
    if settings.stub_engine:
        return PreparedVariant(spec)
    # Not at the top: stub engines run without torch.
    device, precision = choose_device(spec, settings)
    weights = _read_weights(spec, settings)
    from resnet50_server.engines.reference_check import ReferenceOutput
    from resnet50_server.variants.network import parameter_count

    if not weights.digest.startswith(spec.digest):
        raise WeightsError(
            f"{spec.name}: the SHA-256 of its weights begins with {weights.digest[:12]}, and"
            f" {spec.digest} was asked for; put the right weights there, or change the digest"
        )
    set_threads(cpu_plan(settings).threads)
    # Engines of the CPU compute all batch sizes by one program, which is checked with one image.
    reference = ReferenceOutput.compute(spec, weights, batches=device != "cpu")
    parameters = parameter_count(spec, weights)
    kind: str = settings.engine
    if kind == "auto" and (device != "cpu" or spec.quantized):
        kind = "cuda-graphs" if device != "cpu" else "torch"
    at_most = estimate_memory(parameters, precision, kind, cpu_plan(settings).instances)
    return PreparedVariant(spec, device, precision, weights, reference, parameters, at_most)


def _read_weights(spec: VariantSpec, settings: Settings) -> Weights:
    """Read a variant's weights, while another thread imports torch and torchvision.

    `torch.fx` leaves reference cycles of the frames that import it and of all their callers, with
    their variables. Of the time before the first variant is loaded they are never collected, so
    those frames must not be the ones that have the weights (docs/adr/0011-batch-prefetching.md).

    Raises:
        WeightsError: The weights are missing or wrong; says which and why.
    """
    directory = weights_directory(settings.weights_dir)
    with ThreadPoolExecutor(1, thread_name_prefix="import torch") as importer:
        torch = importer.submit(import_module, "torch")
        network = importer.submit(import_module, "resnet50_server.variants.network")
        if spec.seed is not None:
            weights: Weights = network.result().random_weights(spec)
        else:
            checkpoint = read_checkpoint(spec, directory, settings.download)
            torch.result()
            weights = parse_checkpoint(spec, checkpoint)
            network.result()
    return weights


def estimate_memory(parameters: int, precision: str, kind: str, instances: int = 1) -> int:
    """Estimate an engine's memory in bytes: its weights, and its own copies of them.

    In onnxruntime each instance has its own copy of the weights; other engines share them.

    Args:
        parameters: Number of parameters of its network.
        precision: "fp32", "fp16", "bf16" or "int8".
        kind: As `BuiltEngine.kind`; "auto" gives the largest estimate.
        instances: How many batches it computes at once.
    """
    factors = MEMORY_FACTORS | {"onnxruntime": instances * MEMORY_FACTORS["onnxruntime"]}
    factor = factors.get(kind, max(factors.values()))
    return int(parameters * BYTES_PER_PARAMETER[precision] * factor)


def build_engine(prepared: PreparedVariant, settings: Settings) -> BuiltEngine:
    """Build a variant's engine. Blocks; not for the event loop.

    Raises:
        WeightsError: It cannot be built; says why.
    """
    spec, weights = prepared.spec, prepared.weights
    device, precision = prepared.device, prepared.precision
    if weights is None:
        count = len(spec.categories)
        engine: Engine = (
            NullEngine(count, spec.activation)
            if settings.engine == "null"
            else TimedEngine(
                count, settings.timed_alpha_ms, settings.timed_beta_ms, spec.activation
            )
        )
        digest = hashlib.sha256(f"{settings.engine}:{spec.name}".encode()).hexdigest()
        return BuiltEngine(engine, settings.engine, digest, 0, device, precision, trained=False)
    from resnet50_server.engines.torch_engine import TorchEngine
    from resnet50_server.variants.network import build_network

    network = functools.cache(partial(build_network, spec, weights))
    transform, quantization = spec.transform, None
    if device != "cpu" and settings.engine == "torch":
        kind = "torch"
        engine = TorchEngine(network(), transform, device, precision)
    elif device != "cpu":
        from resnet50_server.engines.cuda.engine import CudaEngine

        kind = "cuda-graphs"
        engine = CudaEngine(
            network(), transform, cuda_device(device), precision, settings.max_batch_size
        )
    else:
        # Engines are benchmarked with the threads that they will have, PyTorch among them.
        set_threads(cpu_plan(settings).threads)
        directory = settings.graph_cache_dir or platformdirs.user_cache_path("resnet50-serving")
        with GraphCache(directory, settings.max_graph_cache_bytes) as cache:
            chosen = _cpu_engines(cache, settings).build(
                spec, network, weights.digest, precision, settings.engine
            )
        engine, kind, quantization = chosen.engine, chosen.kind, chosen.quantization
    return BuiltEngine(
        engine,
        kind,
        weights.digest,
        prepared.parameters,
        device,
        precision,
        trained=spec.seed is None,
        quantization=quantization,
        memory_bytes=estimate_memory(
            prepared.parameters, precision, kind, cpu_plan(settings).instances
        ),
    )


def _cpu_engines(cache: GraphCache, settings: Settings) -> CpuEngines:
    from resnet50_server.engines.autoselect import CpuEngines
    from resnet50_server.engines.quantize import Calibration

    calibration = None
    if settings.calibration_dir is not None:
        limits = ImageLimits.of(settings)
        calibration = Calibration(settings.calibration_dir, limits, settings.min_int8_agreement)
    return CpuEngines(cache, cpu_plan(settings), calibration)


def warm_up(engine: Engine, spec: VariantSpec, max_batch_size: int) -> list[tuple[int, float]]:
    """Run an engine at batch 1 and at a larger batch. Blocks; runs on an engine thread.

    Each size runs twice, since the first run allocates memory. The larger batch is as large as
    `WARM_UP_S` allows: `max_batch_size` on a GPU, a few images on a CPU, where a full batch would
    take seconds.

    Returns:
        Batch sizes and the duration of their second runs in seconds.

    Raises:
        WeightsError: The network's output is not finite.
    """
    image = np.full((*spec.transform.input_size, 3), 128, dtype=np.uint8)

    def run(size: int) -> float:
        output = engine.run([image] * size, min(1, len(spec.categories)), True)
        assert output.embeddings is not None  # requested
        if not (np.isfinite(output.probabilities).all() and np.isfinite(output.embeddings).all()):
            raise WeightsError(
                f"{spec.name}: the output for a uniform image contains NaN or infinity; the weights"
                " are broken, or --precision is too low for them"
            )
        return output.compute_s

    run(1)
    measured = [(1, run(1))]
    # An image costs at most as much as a batch of one.
    size = min(max_batch_size, int(WARM_UP_S / 2 / max(1e-6, measured[0][1])))
    if size > 1:
        run(size)
        measured.append((size, run(size)))
    return measured


def check_reference(prepared: PreparedVariant, built: BuiltEngine) -> None:
    """Compare an engine's output for fixed images with PyTorch's. Blocks; on an engine thread.

    Int8 weights quantized here are not checked: they were compared with the float ones on the
    calibration images.

    Raises:
        WeightsError: The outputs differ by more than the precision allows.
    """
    if prepared.reference is not None and built.quantization is None:
        prepared.reference.check(built.engine, prepared.spec, built.precision)
