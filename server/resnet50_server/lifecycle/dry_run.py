"""A dry run of a variant: it is loaded as by a server, measured, and freed."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from functools import partial

from resnet50_server.engines.devices import cuda_memory_bytes
from resnet50_server.runtime.memory import resident_bytes, return_memory
from resnet50_server.settings import Settings
from resnet50_server.variants.spec import VariantSpec

from .devices import Devices, cpu_plan
from .engine_builder import BuiltEngine, choose_device
from .loaded_variant import LoadedVariant, LoadProgress
from .loader import load_variant
from .memory_budget import MemoryBudget
from .registry import VariantRegistry

# On a CPU; larger batches are hardly faster there.
CPU_BATCH_SIZE = 8


@dataclass(frozen=True)
class DryRun:
    """The findings of a dry run.

    Attributes:
        built: The engine that a server would have chosen, which is closed.
        instances: How many batches it computed at once.
        load_s: How long the load took, in seconds.
        images_per_s: Images per second, by batch size.
        resident_bytes: Memory of the process before the load and after it; None if unknown.
        peak_bytes: The most that it had meanwhile; None if unknown.
        device_bytes: Memory that the load took of the GPU; None on a CPU.
    """

    built: BuiltEngine
    instances: int
    load_s: float
    images_per_s: dict[int, float]
    resident_bytes: tuple[int, int] | None
    peak_bytes: int | None
    device_bytes: int | None


async def dry_run(spec: VariantSpec, settings: Settings, measure_s: float) -> DryRun:
    """Load a variant with all checks of a server, measure its engine and free it.

    Args:
        spec: The variant.
        settings: As a server's; its `variants` are not loaded.
        measure_s: How long each batch size is measured, in seconds.

    Raises:
        WeightsError: A server would refuse the variant; says why.
        NotNow: It needs more memory than `max_variants_bytes`.
    """
    budget = MemoryBudget(VariantRegistry([spec], None), settings.max_variants_bytes)

    async def reserve(needed_bytes: int) -> None:
        budget.evictions(spec, needed_bytes, startup=True)

    device = await asyncio.to_thread(_device, spec, settings)
    before, device_before = resident_bytes(), _device_bytes(device)
    devices = Devices(settings, lambda _: None)
    try:
        started = time.perf_counter()
        variant = await load_variant(settings, devices, spec, LoadProgress(), reserve)
        load_s = time.perf_counter() - started
        device_after = _device_bytes(device)
        return_memory()
        after = resident_bytes()
        instances, most = 2, settings.max_batch_size
        if device == "cpu":
            instances, most = cpu_plan(settings).instances, min(most, CPU_BATCH_SIZE)
        rates = {
            size: await _images_per_s(variant, size, instances, measure_s)
            for size in sorted({1, most})
        }
        return DryRun(
            built=variant.built,
            instances=instances,
            load_s=load_s,
            images_per_s=rates,
            resident_bytes=(before[0], after[0]) if before and after else None,
            peak_bytes=after[1] if after else None,
            device_bytes=None if device == "cpu" else device_after - device_before,
        )
    finally:
        await devices.close()


def _device(spec: VariantSpec, settings: Settings) -> str:
    """Return a variant's device; imports PyTorch, whose own memory is not the variant's."""
    if settings.stub_engine:
        return "cpu"
    import resnet50_server.variants.network  # noqa: F401

    return choose_device(spec, settings)[0]


def _device_bytes(device: str) -> int:
    return 0 if device == "cpu" else cuda_memory_bytes(device)


async def _images_per_s(
    variant: LoadedVariant, size: int, instances: int, measure_s: float
) -> float:
    """Compute batches of equal images for a while, as many at once as there are instances."""
    assert variant.reference is not None  # of every load
    batch = [variant.reference.image] * size
    run = partial(variant.built.engine.run, batch, 1, False)
    await asyncio.gather(*(variant.threads.submit(run) for _ in range(instances)))
    started = time.perf_counter()

    async def compute() -> int:
        images = 0
        while not images or time.perf_counter() - started < measure_s:
            await variant.threads.submit(run)
            images += size
        return images

    counts = await asyncio.gather(*(compute() for _ in range(instances)))
    return sum(counts) / (time.perf_counter() - started)
