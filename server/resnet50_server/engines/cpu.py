"""Which engine computes a variant on the CPU: what was asked for, or the fastest that is as exact.

Which one that is depends on the processor: with AVX2 alone onnxruntime leads, where there is AMX
OpenVINO computes int8 at four times its rate (docs/adr/0008-cpu-engines.md). So where nobody says,
those that are installed are tried on a few batches, and the outcome is kept with the graphs.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import logging
import platform
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch

from resnet50_server.errors import WeightsError
from resnet50_server.images.formats import ImageLimits
from resnet50_server.runtime.cpus import CpuPlan
from resnet50_server.variants.network import Network
from resnet50_server.variants.spec import VariantSpec

from .agreement import Agreement, compare
from .base import Engine, Images
from .graph_cache import GraphStore, NoRoom
from .oom import is_out_of_memory
from .torch_engine import TorchEngine

log = logging.getLogger(__name__)

Opener: TypeAlias = Callable[[], Engine]

# Part of the names of stored files: raise it with every change to what `onnx_graph` or
# `calibration` write.
GRAPH_VERSION = 1

# What else than PyTorch can compute in which precision.
GRAPH_RUNTIMES = {
    "fp32": ("openvino", "onnxruntime"),
    "bf16": ("openvino",),
    "int8": ("openvino", "onnxruntime"),
}
# The largest difference of a probability at which a float engine counts as equal to PyTorch.
TOLERANCE = 1e-4
# An engine so near to the fastest is taken instead of it if it needs less memory. Two fp32 variants
# in batches of 8 take 916, 1137 and 1268 MiB, torch's own 670 included.
NEARLY = 0.9
LEANEST = ("torch", "onnxruntime", "openvino")
# Batches by which engines are compared.
TRIAL_SIZE, TRIALS = 4, 3
_CPU = torch.device("cpu")
INSTALL = "pip install 'resnet50-serving[cpu]'"


@dataclass(frozen=True)
class Calibration:
    """How int8 is made from float weights.

    Attributes:
        directory: Holds images.
        limits: Of the images.
        min_agreement: The share of first categories that must stay, 0 to 1.
    """

    directory: Path
    limits: ImageLimits
    min_agreement: float


@dataclass(frozen=True)
class CpuEngine:
    """An engine, and what it is.

    Attributes:
        engine: Ready to run.
        kind: "torch", "onnxruntime" or "openvino".
        quantization: How close int8 comes, if it was made here.
    """

    engine: Engine
    kind: str
    quantization: Agreement | None = None


class CpuEngines:
    """Opens variants on the CPU.

    Args:
        store: Where graphs are kept.
        plan: Instances and threads of each engine.
        calibration: How int8 is made of float weights; None if nobody said.
    """

    def __init__(self, store: GraphStore, plan: CpuPlan, calibration: Calibration | None) -> None:
        self._store = store
        self._plan = plan
        self._calibration = calibration

    def open(
        self,
        spec: VariantSpec,
        network: Callable[[], Network],
        digest: str,
        precision: str,
        kind: str,
    ) -> CpuEngine:
        """Open a variant's engine.

        Args:
            spec: The variant.
            network: Returns its network, in float32 or int8; not called where a graph is at hand.
            digest: Of the weights, 64 hex digits.
            precision: "fp32", "bf16", "fp16" or "int8".
            kind: "torch", "onnxruntime", "openvino", or "auto" for the fastest.

        Raises:
            WeightsError: What was asked for cannot be, or the weights do not fit the variant.
        """
        transform = spec.transform
        if spec.quantized and kind == "auto":
            kind = "torch"  # what was published; others round differently here and there
        made_here = precision == "int8" and not spec.quantized
        kinds = _kinds(precision, kind, made_here)
        openers: dict[str, Opener] = {}
        if "torch" in kinds:
            openers["torch"] = lambda: TorchEngine(network(), transform, _CPU, precision)
        if kinds != ["torch"]:
            try:
                graph = self._graph(spec, network, digest)
            except (_Inexact, NoRoom) as error:
                if kind != "auto" or made_here:
                    raise
                log.warning("%s; PyTorch computes these weights", error)
                kinds = ["torch"]
        if made_here:
            return self._open_int8(spec, graph, kinds)
        for one in kinds:
            if one != "torch":
                openers[one] = partial(self._open_graph, one, graph, precision)
        return self._fastest(openers, transform.crop, precision)

    def _open_int8(self, spec: VariantSpec, fp32_graph: Path, kinds: list[str]) -> CpuEngine:
        """Open float weights as int8, made now or at an earlier start."""
        from .calibration import read_images, write_int8

        transform, asked = spec.transform, self._calibration
        if asked is None:
            raise WeightsError(
                "precision: int8 of float weights is made from images: name a folder of them with"
                " --calibration-dir (some hundred, of the kind that will be served), or serve"
                " IMAGENET1K_FBGEMM_V1 or _V2, which are int8 already"
            )
        images = read_images(asked.directory, transform, asked.limits)
        known = f"{fp32_graph.stem}-int8-{images.digest[:16]}"
        graph = self._store.path(
            f"{known}.onnx", partial(write_int8, fp32_graph, images.calibrating)
        )
        openers: dict[str, Opener] = {
            one: partial(self._open_graph, one, graph, "int8") for one in kinds
        }
        opened = self._fastest(openers, transform.crop, "int8")

        def measure() -> dict[str, object]:
            fp32 = self._open_graph(opened.kind, fp32_graph, "fp32")
            count = len(images.calibrating)
            return asdict(compare(opened.engine, fp32, count, images.held_out))

        found = Agreement(**self._store.remember(f"{known}-{opened.kind}.json", measure))
        text = (
            f"{spec.name}: int8 keeps the first category of {found.top_1:.1%} of"
            f" {found.compared_images} images that did not calibrate it; embeddings keep a"
            f" cosine of {found.cosine:.4f}"
        )
        if found.top_1 < asked.min_agreement:
            raise WeightsError(
                f"{text}; min_int8_agreement is {asked.min_agreement:.1%}: calibrate"
                " with more images, and such as will be served, or lower it, or serve another"
                " --precision"
            )
        log.info("%s", text)
        return CpuEngine(opened.engine, opened.kind, found)

    def _graph(self, spec: VariantSpec, network: Callable[[], Network], digest: str) -> Path:
        """Return a network's graph, exported now or at an earlier start.

        Raises:
            _Inexact: It does not compute what PyTorch does.
            NoRoom: It can be written nowhere.
            WeightsError: The weights do not fit the variant.
        """
        transform = spec.transform

        def export(path: Path) -> None:
            import onnx

            from .onnx_export import onnx_graph

            onnx.save(onnx_graph(network(), transform), path)
            if not spec.quantized:
                kind = _installed(GRAPH_RUNTIMES["fp32"])[0]
                graph = _open_graph(kind, path, "fp32", self._plan)
                _require_equal(spec, graph, TorchEngine(network(), transform, _CPU, "fp32"))

        # Weights that fitted the variant's categories once do so again.
        key = _key(digest, asdict(transform), len(spec.categories))
        return self._store.path(f"{key}.onnx", export)

    def _open_graph(self, kind: str, graph: Path, precision: str) -> Engine:
        try:
            return _open_graph(kind, graph, precision, self._plan)
        except Exception as error:  # each runtime has kinds of its own
            if is_out_of_memory(error):
                raise  # nothing is wrong with the file
            self._store.forget(graph)
            raise WeightsError(
                f"engine: {kind} cannot read {graph} ({type(error).__name__}: {error}); the file"
                " was removed: start again to have it made anew, or use --engine torch"
            ) from error

    def _fastest(self, openers: dict[str, Opener], crop: int, precision: str) -> CpuEngine:
        """Open what computes about as many images a second as any; measured once for a machine."""
        if len(openers) == 1:
            ((kind, opener),) = openers.items()
            return CpuEngine(opener(), kind)
        images = _noise(crop, TRIAL_SIZE)
        opened: dict[str, Engine] = {}

        def measure() -> dict[str, float]:
            for kind, opener in openers.items():
                opened[kind] = opener()
            return {kind: _images_per_s(engine, images) for kind, engine in opened.items()}

        versions = [importlib.metadata.version(kind) for kind in openers]
        key = _key(_processor(), [*openers, *versions], crop, asdict(self._plan), precision)
        rates: dict[str, float] = self._store.remember(f"fastest-{key}.json", measure)
        enough = NEARLY * max(rates.get(one, 0.0) for one in openers)
        kind = next(one for one in LEANEST if rates.get(one, -1.0) >= enough)
        log.info(
            "%s on this machine, images/s in batches of %d: %s",
            precision,
            TRIAL_SIZE,
            ", ".join(f"{one} {rate:.1f}" for one, rate in rates.items()),
        )
        return CpuEngine(opened[kind] if kind in opened else openers[kind](), kind)


class _Inexact(WeightsError):
    """A graph that does not compute what PyTorch does."""


def _kinds(precision: str, kind: str, made_here: bool) -> list[str]:
    """Return what may compute, `made_here` meaning int8 of float weights."""
    able = list(GRAPH_RUNTIMES.get(precision, ()))
    if not made_here:
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
    """Return which of these can be imported; graphs are written with onnx."""
    with_onnx = importlib.util.find_spec("onnx") is not None
    return [
        kind
        for kind in kinds
        if kind == "torch" or (with_onnx and importlib.util.find_spec(kind) is not None)
    ]


def _open_graph(kind: str, graph: Path, precision: str, plan: CpuPlan) -> Engine:
    if kind == "onnxruntime":
        from .onnxruntime_engine import OnnxRuntimeEngine

        return OnnxRuntimeEngine(graph, plan.threads, plan.instances)
    from .openvino_engine import OpenVinoEngine

    return OpenVinoEngine(graph, precision, plan.threads, plan.instances)


def _require_equal(spec: VariantSpec, graph: Engine, pytorch: Engine) -> None:
    """Raise `_Inexact` unless both give noise the same probabilities."""
    images = _noise(spec.transform.crop, 2)
    one, two = (engine.run(images, 1, True) for engine in (graph, pytorch))
    difference = float(np.abs(one.probabilities - two.probabilities).max())
    if not difference <= TOLERANCE:
        raise _Inexact(
            f"{spec.name}: exported, these weights give probabilities that differ by"
            f" {difference:.1e} from PyTorch's, more than {TOLERANCE:g}; use --engine torch"
        )


def _images_per_s(engine: Engine, images: Images) -> float:
    engine.run(images, 1, False)
    times = []
    for _ in range(TRIALS):
        started = time.perf_counter()
        engine.run(images, 1, False)
        times.append(time.perf_counter() - started)
    return len(images) / min(times)


def _noise(crop: int, count: int) -> Images:
    return list(np.random.default_rng(0).integers(0, 256, (count, crop, crop, 3), dtype=np.uint8))


def _processor() -> str:
    """Return what tells this kind of processor from others: its name and what it can do."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    return " ".join(re.findall(r"^(?:model name|flags|Features)\s*:(.*)", text, re.M)[:2])


def _key(*parts: object) -> str:
    """Return a name for what depends on `parts`."""
    return hashlib.sha256(repr((GRAPH_VERSION, *parts)).encode()).hexdigest()[:32]
