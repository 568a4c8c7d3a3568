"""Choose a variant's engine on the CPU: the requested one, or the fastest that matches PyTorch.

The fastest depends on the processor: with AVX2 alone it is onnxruntime, with AMX OpenVINO computes
int8 at four times its rate (docs/adr/0008-cpu-engines.md). With --engine auto all installed engines
are benchmarked on a few batches, and the result is stored in the graph cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import logging
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np

from resnet50_server.errors import WeightsError
from resnet50_server.runtime.cpus import CpuPlan
from resnet50_server.variants.network import Network
from resnet50_server.variants.spec import VariantSpec
from resnet50_server.variants.torchvision_models import IMPORT_ERRORS

from .base import Engine, Images
from .graph_cache import CacheFull, GraphCache
from .oom import is_out_of_memory
from .quantize import Agreement, Calibration, compare, quantize_graph, read_images
from .torch_engine import TorchEngine

log = logging.getLogger(__name__)

BuildEngine: TypeAlias = Callable[[], Engine]

# Part of the names of cached files: raise it with every change to what `onnx_export` or `quantize`
# write.
GRAPH_VERSION = 1

# Engines other than PyTorch by precision.
GRAPH_RUNTIMES = {
    "fp32": ("openvino", "onnxruntime"),
    "bf16": ("openvino",),
    "int8": ("openvino", "onnxruntime"),
}
# Largest difference of a probability at which an exported float graph matches PyTorch.
TOLERANCE = 1e-4
# An engine with this share of the fastest one's rate is preferred if it needs less memory. Two fp32
# variants in batches of 8 take 916, 1137 and 1268 MiB, torch's own 670 included.
NEAR_BEST = 0.9
PREFER_BY_MEMORY = ("torch", "onnxruntime", "openvino")
# Batch size and number of the batches of a benchmark.
BENCHMARK_BATCH_SIZE, BENCHMARK_BATCHES = 4, 3
INSTALL = "install resnet50-serving with the extra [cpu]"


@dataclass(frozen=True)
class CpuEngine:
    """A chosen engine.

    Attributes:
        engine: Ready to run.
        kind: "torch", "onnxruntime" or "openvino".
        quantization: Agreement of int8 with float weights, if they were quantized here.
    """

    engine: Engine
    kind: str
    quantization: Agreement | None = None


class CpuEngines:
    """Builds the engines of variants on the CPU.

    Args:
        cache: Cache of exported graphs.
        plan: Instances and threads of each engine.
        calibration: How float weights are quantized to int8; None if that is not configured.
    """

    def __init__(self, cache: GraphCache, plan: CpuPlan, calibration: Calibration | None) -> None:
        self._cache = cache
        self._plan = plan
        self._calibration = calibration

    def build(
        self,
        spec: VariantSpec,
        network: Callable[[], Network],
        digest: str,
        precision: str,
        kind: str,
    ) -> CpuEngine:
        """Build a variant's engine.

        Args:
            spec: The variant.
            network: Returns its network, in float32 or int8; not called if its graph is cached.
            digest: SHA-256 of the weights, 64 hex digits.
            precision: "fp32", "bf16", "fp16" or "int8".
            kind: "torch", "onnxruntime", "openvino", or "auto" for the fastest.

        Raises:
            WeightsError: Precision and engine do not combine, or the weights do not fit.
        """
        if spec.quantized and kind == "auto":
            kind = "torch"  # as published; other engines round differently
        quantize_here = precision == "int8" and not spec.quantized
        kinds = _candidates(precision, kind, quantize_here)
        builders: dict[str, BuildEngine] = {}
        if "torch" in kinds:
            builders["torch"] = lambda: TorchEngine(network(), spec.transform, "cpu", precision)
        if kinds != ["torch"]:
            try:
                graph = self._export(spec, network, digest)
            except (ExportMismatch, CacheFull, UnusableRuntime) as error:
                if kind != "auto" or quantize_here:
                    raise
                log.warning("%s; using PyTorch for these weights", error)
                kinds = ["torch"]
        if quantize_here:
            return self._build_int8(spec, graph, kinds)
        for one in kinds:
            if one != "torch":
                builders[one] = partial(self._load_graph, one, graph, precision)
        return self._fastest(builders, spec, precision)

    def _build_int8(self, spec: VariantSpec, fp32_graph: Path, kinds: list[str]) -> CpuEngine:
        """Quantize float weights to int8, or take the cached result of an earlier start."""
        calibration = self._calibration
        if calibration is None:
            raise WeightsError(
                "precision: int8 of float weights needs images for calibration: set"
                " --calibration-dir (a few hundred, of the kind that will be served), or serve"
                " IMAGENET1K_FBGEMM_V1 or _V2, which are int8 already"
            )
        images = read_images(calibration.directory, spec.transform, calibration.limits)
        name = f"{fp32_graph.stem}-int8-{images.digest[:16]}"
        graph = self._cache.path(
            f"{name}.onnx", partial(quantize_graph, fp32_graph, images.calibrating)
        )
        builders: dict[str, BuildEngine] = {
            kind: partial(self._load_graph, kind, graph, "int8") for kind in kinds
        }
        chosen = self._fastest(builders, spec, "int8")

        def measure() -> dict[str, object]:
            fp32 = self._load_graph(chosen.kind, fp32_graph, "fp32")
            count = len(images.calibrating)
            top_k = min(1, len(spec.categories))
            return asdict(compare(chosen.engine, fp32, count, images.held_out, top_k))

        found = Agreement(**self._cache.cached_json(f"{name}-{chosen.kind}.json", measure))
        text = (
            f"{spec.name}: int8 has the same top category for {found.top_1:.1%} of"
            f" {found.compared_images} images that were not used for calibration; the mean cosine"
            f" of the embeddings is {found.cosine:.4f}"
        )
        if found.top_1 < calibration.min_agreement:
            raise WeightsError(
                f"{text}; min_int8_agreement is {calibration.min_agreement:.1%}: calibrate with"
                " more images of the kind that will be served, lower the limit, or serve another"
                " --precision"
            )
        log.info("%s", text)
        return CpuEngine(chosen.engine, chosen.kind, found)

    def _export(self, spec: VariantSpec, network: Callable[[], Network], digest: str) -> Path:
        """Return a network's graph, exported now or at an earlier start.

        Raises:
            ExportMismatch: Its output differs from PyTorch's.
            CacheFull: It cannot be written anywhere.
            WeightsError: The weights do not fit the variant.
        """
        transform = spec.transform

        def export(path: Path) -> None:
            import onnx

            from .onnx_export import onnx_graph

            onnx.save(onnx_graph(network(), transform), path)
            if not spec.quantized:
                graph = self._load_by_any(path)
                _require_match(spec, graph, TorchEngine(network(), transform, "cpu", "fp32"))

        # The number of categories is part of the key: weights are only checked at the export.
        key = _key(
            digest,
            transform.input_size,
            transform.affine(),
            transform.channel_order,
            len(spec.categories),
            spec.activation,
        )
        return self._cache.path(f"{key}.onnx", export)

    def _load_by_any(self, graph: Path) -> Engine:
        """Open a graph in float32 with a runtime that can be imported.

        Raises:
            UnusableRuntime: There is none.
        """
        *others, last = _installed(GRAPH_RUNTIMES["fp32"])
        for kind in others:
            with _warning_if_unusable():
                return load_graph(kind, graph, "fp32", self._plan)
        return load_graph(last, graph, "fp32", self._plan)

    def _load_graph(self, kind: str, graph: Path, precision: str) -> Engine:
        try:
            return load_graph(kind, graph, precision, self._plan)
        except UnusableRuntime:
            raise  # the file is not damaged
        except Exception as error:  # each runtime has its own classes
            if is_out_of_memory(error):
                raise  # the file is not damaged
            self._cache.evict(graph)
            raise WeightsError(
                f"engine: {kind} cannot read {graph} ({type(error).__name__}: {error}); the file"
                " was removed: start again to export it again, or use --engine torch"
            ) from error

    def _fastest(
        self, builders: dict[str, BuildEngine], spec: VariantSpec, precision: str
    ) -> CpuEngine:
        """Build the engine with about the highest rate; benchmarks once per machine."""
        if len(builders) == 1:
            ((kind, build),) = builders.items()
            return CpuEngine(build(), kind)
        size = spec.transform.input_size
        images, top_k = _noise(size, BENCHMARK_BATCH_SIZE), min(1, len(spec.categories))
        built: dict[str, Engine] = {}

        def measure() -> dict[str, float]:
            for kind, build in builders.items():
                with _warning_if_unusable():
                    built[kind] = build()
            if not built:
                raise UnusableRuntime(f"engine: {' and '.join(builders)} cannot be imported")
            return {kind: images_per_s(engine, images, top_k) for kind, engine in built.items()}

        versions = [importlib.metadata.version(kind) for kind in builders]
        key = _key(_processor(), [*builders, *versions], size, asdict(self._plan), precision)
        rates: dict[str, float] = self._cache.cached_json(f"fastest-{key}.json", measure)
        enough = NEAR_BEST * max(rates.get(kind, 0.0) for kind in builders)
        kind = next(kind for kind in PREFER_BY_MEMORY if rates.get(kind, -1.0) >= enough)
        log.info(
            "%s on this machine, images/s in batches of %d: %s",
            precision,
            BENCHMARK_BATCH_SIZE,
            ", ".join(f"{kind} {rate:.1f}" for kind, rate in rates.items()),
        )
        return CpuEngine(built[kind] if kind in built else builders[kind](), kind)


class ExportMismatch(WeightsError):
    """An exported graph whose output differs from PyTorch's."""


class UnusableRuntime(WeightsError):
    """A runtime that is installed, but cannot be imported."""


@contextlib.contextmanager
def _warning_if_unusable() -> Iterator[None]:
    """Log a runtime that cannot be imported: others are used instead."""
    try:
        yield
    except UnusableRuntime as error:
        log.warning("%s", error)


def _candidates(precision: str, kind: str, quantize_here: bool) -> list[str]:
    """Return the kinds of engine that can compute; `quantize_here`: int8 of float weights."""
    able = list(GRAPH_RUNTIMES.get(precision, ()))
    if not quantize_here:
        able.append("torch")
    if kind == "auto":
        able = _installed(able)
        if not able:
            raise WeightsError(
                f"precision: int8 of float weights needs onnxruntime or OpenVINO: {INSTALL}"
            )
        return able
    if kind not in able:
        raise WeightsError(
            f"engine: {kind} does not compute {precision} of these weights; use"
            f" {' or '.join(able)}, or auto"
        )
    if not _installed([kind]):
        raise WeightsError(f"engine: {kind} is not installed: {INSTALL}")
    return [kind]


def _installed(kinds: list[str] | tuple[str, ...]) -> list[str]:
    """Return the kinds that can be imported; exporting graphs needs onnx as well."""
    with_onnx = importlib.util.find_spec("onnx") is not None
    return [
        kind
        for kind in kinds
        if kind == "torch" or (with_onnx and importlib.util.find_spec(kind) is not None)
    ]


def load_graph(kind: str, graph: Path, precision: str, plan: CpuPlan) -> Engine:
    """Open an exported graph with a runtime.

    Args:
        kind: "onnxruntime" or "openvino".
        graph: The graph's file.
        precision: E.g. "fp32".
        plan: Threads and instances.

    Raises:
        UnusableRuntime: The runtime cannot be imported.
        Exception: It cannot read the graph; each runtime has its own classes.
    """
    try:
        importlib.import_module(f".{kind}_engine", __package__)
    except IMPORT_ERRORS as error:
        raise UnusableRuntime(
            f"engine: {kind} is installed, but cannot be imported ({type(error).__name__}:"
            f" {error}): repair it with `{sys.executable} -m pip install --force-reinstall {kind}`,"
            " or use another --engine"
        ) from error
    if kind == "onnxruntime":
        from .onnxruntime_engine import OnnxRuntimeEngine

        return OnnxRuntimeEngine(graph, plan.threads, plan.instances)
    from .openvino_engine import OpenVinoEngine

    return OpenVinoEngine(graph, precision, plan.threads, plan.instances)


def _require_match(spec: VariantSpec, graph: Engine, pytorch: Engine) -> None:
    """Raise `ExportMismatch` unless both return the same probabilities for noise.

    Without a classification head it is the embeddings, relative to the largest number in them.
    """
    images, top_k = _noise(spec.transform.input_size, 2), min(1, len(spec.categories))
    exported, expected = (engine.run(images, top_k, True) for engine in (graph, pytorch))
    part, difference = "probabilities", exported.probabilities - expected.probabilities
    if not top_k:
        assert exported.embeddings is not None and expected.embeddings is not None  # requested
        part, difference = "embeddings", exported.embeddings - expected.embeddings
        difference = difference / max(float(np.abs(expected.embeddings).max()), 1e-12)
    largest = float(np.abs(difference).max())
    if not largest <= TOLERANCE:
        raise ExportMismatch(
            f"{spec.name}: {part} of the exported graph differ by {largest:.1e} from PyTorch's,"
            f" more than {TOLERANCE:g}; use --engine torch"
        )


def images_per_s(engine: Engine, images: Images, top_k: int) -> float:
    """Return the throughput of an engine for batches of these images, after a warm-up."""
    engine.run(images, top_k, False)
    times = []
    for _ in range(BENCHMARK_BATCHES):
        started = time.perf_counter()
        engine.run(images, top_k, False)
        times.append(time.perf_counter() - started)
    return len(images) / min(times)


def _noise(size: tuple[int, int], count: int) -> Images:
    return list(np.random.default_rng(0).integers(0, 256, (count, *size, 3), dtype=np.uint8))


def _processor() -> str:
    """Return the processor's name and instruction sets, which identify its kind."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    return " ".join(re.findall(r"^(?:model name|flags|Features)\s*:(.*)", text, re.M)[:2])


def _key(*parts: object) -> str:
    """Return the name of a cached file that depends on `parts`."""
    return hashlib.sha256(repr((GRAPH_VERSION, *parts)).encode()).hexdigest()[:32]
