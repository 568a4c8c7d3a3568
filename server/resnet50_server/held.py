"""The variants that the server holds: loaded, ready to answer, found by name."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import platformdirs
import torch

from .batcher import BatchPolicy, Scheduler
from .call import Call
from .engine.agreement import Agreement
from .engine.cpu import Calibration, CpuEngines, Division
from .engine.graph_store import GraphStore
from .engine.protocol import Engine
from .engine.synthetic import NullEngine, TimedEngine
from .engine.torch_engine import TorchEngine
from .errors import NotNow, Unloading, VariantLoading, VariantNotFound, WeightsError
from .image_file import ImageLimits
from .observer import Observer
from .settings import Settings
from .threads import Threads
from .variant_queue import VariantQueue
from .variants.definition import Definition, plain
from .variants.files import weights_directory
from .variants.network import build_network, parameter_count, read_weights

if TYPE_CHECKING:
    from .engine.cuda_device import CudaDevice

log = logging.getLogger(__name__)

# How long the larger of the batches that warm an engine up may run, in seconds.
WARM_UP_S = 0.4
# While unloading: how often to look whether all calls have ended.
DRAIN_POLL_S = 0.02
# Then batches that run have so long at least: they end by themselves, unless the engine hangs.
LAST_BATCHES_S = 5.0


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


@dataclass(frozen=True)
class HeldVariant:
    """One variant that answers requests.

    Attributes:
        definition: What it is.
        opened: Its engine.
        queue: Where its images wait.
        scheduler: What feeds its device.
        threads: Where its engine runs.
        calls: Those that use it.
    """

    definition: Definition
    opened: OpenEngine
    queue: VariantQueue
    scheduler: Scheduler
    threads: Threads
    calls: set[Call] = field(default_factory=set)

    def enter(self, call: Call) -> None:
        """Count a call until it ends."""
        call.variant = self.definition.name
        call.leave = partial(self.calls.discard, call)
        self.calls.add(call)

    @property
    def space(self) -> str:
        """The vector space of its embeddings; see `Embedding.space` in the contract."""
        # Vectors of int8 made here lie close to those of the weights, but not where they lie.
        made = "-int8" if self.opened.quantization else ""
        return f"{self.definition.name}@{self.opened.digest[:12]}{made}"


class HeldVariants:
    """All variants that a server was told to serve; those that are loaded answer.

    Args:
        definitions: In the order of the settings.
        default: Name or alias of the default; None for the first.

    Raises:
        WeightsError: Two have one name, or the default is not among them.
    """

    def __init__(self, definitions: list[Definition], default: str | None) -> None:
        self._held: dict[str, HeldVariant] = {}
        self._watchers: list[Callable[[str], object]] = []
        self._by_name: dict[str, Definition] = {}
        for definition in definitions:
            for name in (definition.name, *definition.aliases):
                if name in self._by_name:
                    raise WeightsError(f"variants: {name} is given twice")
                self._by_name[name] = definition
        self.default = definitions[0]
        if default is not None:
            if plain(default) not in self._by_name:
                raise WeightsError(
                    f"default_variant: {default!r} is not among --variants:"
                    f" {', '.join(sorted(self._by_name))}"
                )
            self.default = self._by_name[plain(default)]
        others = [definition for definition in definitions if definition is not self.default]
        self.definitions = [self.default, *others]

    def announce(self, definition: Definition) -> None:
        """Say that a variant is about to be loaded.

        Raises:
            NotNow: There is one of that name.
        """
        if definition.name in self._by_name:
            raise NotNow(f"name: {definition.name} is served already, or is being loaded")
        self._by_name[definition.name] = definition
        self.definitions.append(definition)

    def add(self, variant: HeldVariant) -> None:
        """Let a loaded variant answer."""
        for see in self._watchers:
            see(variant.definition.name)
        self._held[variant.definition.name] = variant

    def watch(self, see: Callable[[str], object]) -> None:
        """Have a function called with the name of each variant that is loaded from now on.

        Args:
            see: Called before the variant answers.
        """
        self._watchers.append(see)

    def withdraw(self, definition: Definition) -> None:
        """Forget a variant: no new request finds it."""
        self._held.pop(definition.name, None)
        self.definitions.remove(definition)
        for name in (definition.name, *definition.aliases):
            del self._by_name[name]

    def loaded(self, definition: Definition) -> HeldVariant | None:
        """Return a variant if it is loaded."""
        return self._held.get(definition.name)

    def define(self, name: str, field: str) -> Definition:
        """Return the definition of that name or alias, loaded or not; the default one for "".

        Args:
            name: What the request says.
            field: Where it says so.

        Raises:
            VariantNotFound: There is none.
        """
        definition = self._by_name.get(plain(name)) if name else self.default
        if definition is None:
            raise VariantNotFound(field, name, sorted(self._by_name))
        return definition

    def find(self, name: str, field: str = "options.variant") -> HeldVariant:
        """Return the variant of that name or alias, ready to answer; as `define` otherwise.

        Raises:
            VariantNotFound: There is none.
            VariantLoading: It is not loaded yet.
        """
        definition = self.define(name, field)
        held = self.loaded(definition)
        if held is None:
            raise VariantLoading(
                f"variant {definition.name} is still being loaded; wait until the server's health"
                " is SERVING, or call another one"
            )
        return held


def cores() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def cuda_device(name: str) -> CudaDevice:
    """Return the one object that all engines on a CUDA device share."""
    from .engine.cuda_device import CudaDevice

    # One batch computes while the next one is stacked and copied; see `Devices.get`.
    return CudaDevice(torch.device(name).index or 0, batches_in_flight=2)


class Devices:
    """One scheduler and its engine threads per device, made when a variant needs them.

    Args:
        settings: For the batch policy and thread counts.
        on_broken: See `Scheduler`.
        observer: Sees every batch.
    """

    def __init__(
        self,
        settings: Settings,
        on_broken: Callable[[BaseException], None],
        observer: Observer | None = None,
    ) -> None:
        self._settings = settings
        self._on_broken = on_broken
        self._observer = observer
        self._schedulers: dict[str, Scheduler] = {}
        self._threads: dict[str, Threads] = {}

    def get(self, device: str) -> tuple[Scheduler, Threads]:
        """Return a device's scheduler and engine threads."""
        if device not in self._schedulers:
            settings = self._settings
            if device != "cpu":
                # It computes one batch at a time, while the next one is stacked and copied.
                # (but for PyTorch's eager mode, which has the one stream for everything).
                workers, ahead = 1, int(settings.engine != "torch")
                each = settings.engine_threads or cores()
            else:
                divided = Division.divide(cores(), settings.instances, settings.engine_threads)
                workers, ahead, each = divided.instances, 0, divided.each
                if settings.engine in ("null", "timed"):
                    workers = 1  # what they stand for is one device
            threads = Threads(
                workers + ahead, f"engine-{device}", partial(torch.set_num_threads, each)
            )
            policy = BatchPolicy(
                settings.max_batch_size, settings.max_queue_delay_ms, settings.max_queue_size
            )
            self._schedulers[device] = Scheduler(
                policy, threads, self._on_broken, workers, ahead, self._observer, device
            )
            self._threads[device] = threads
        return self._schedulers[device], self._threads[device]

    @property
    def schedulers(self) -> Mapping[str, Scheduler]:
        """The schedulers by their devices."""
        return self._schedulers

    async def close(self) -> None:
        """Stop schedulers; a batch that runs is left to itself."""
        for scheduler in self._schedulers.values():
            await scheduler.close()
        for threads in self._threads.values():
            threads.close()


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
        with GraphStore(directory) as store:
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


async def hold(definition: Definition, settings: Settings, devices: Devices) -> HeldVariant:
    """Load and warm up one variant without blocking the event loop.

    Args:
        definition: Which one.
        settings: Where and how to run it.
        devices: Gives it its scheduler.

    Raises:
        WeightsError: It cannot be served; says why.
    """
    opened = await asyncio.to_thread(open_engine, definition, settings)
    scheduler, threads = devices.get(opened.device)
    try:
        warm = await threads.run(
            partial(warm_up, opened.engine, definition, settings.max_batch_size)
        )
    except Exception:
        await threads.run(opened.engine.close)  # its memory is wanted by the next try
        raise
    log.info(
        "variant %s is ready: %s on %s in %s, weights %s",
        definition.name,
        opened.kind,
        opened.device,
        opened.precision,
        opened.digest[:12],
    )
    queue = scheduler.add(definition.name, opened.engine, warm)
    return HeldVariant(definition, opened, queue, scheduler, threads)


async def let_go(variant: HeldVariant, patience_s: float) -> None:
    """Free a variant that no new request finds any more, once its calls have ended.

    Args:
        variant: Which one.
        patience_s: How long its calls may take, in seconds; those that are left then fail. Batches
            that run then may take as long again, and `LAST_BATCHES_S` at least; an engine that has
            not returned by then is left as it is.
    """
    loop = asyncio.get_running_loop()
    ends = loop.time() + patience_s
    reason = Unloading(f"variant {variant.definition.name} is being unloaded")
    for call in variant.calls:
        if call.stop is not None:
            call.stop(reason)
    while variant.calls and loop.time() < ends:
        await asyncio.sleep(DRAIN_POLL_S)
    last_s = max(patience_s, LAST_BATCHES_S)
    if not await variant.scheduler.remove(variant.queue, reason, last_s):
        log.error(
            "variant %s is unloaded, but its engine has not returned from a batch for %g s: its"
            " memory stays taken; restart the server",
            variant.definition.name,
            last_s,
        )
        return
    await variant.threads.run(variant.opened.engine.close)
    log.info("variant %s is unloaded", variant.definition.name)
