"""Load a variant into memory, and unload it once its requests are complete."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial

from resnet50_server.errors import Unloading
from resnet50_server.settings import Settings
from resnet50_server.variants.spec import VariantSpec

from .devices import Devices
from .engine_builder import build_engine, check_reference, prepare_variant, warm_up
from .loaded_variant import LoadedVariant, LoadProgress
from .self_test import Reference

log = logging.getLogger(__name__)

# How often to check whether a draining variant is idle.
DRAIN_POLL_S = 0.02
# Batches that still run after the drain get at least this long to return.
MIN_DRAIN_S = 5.0


async def load_variant(
    settings: Settings,
    devices: Devices,
    spec: VariantSpec,
    progress: LoadProgress,
    reserve: Callable[[int], Awaitable[None]],
) -> LoadedVariant:
    """Load, warm up and check one variant without blocking the event loop.

    Args:
        settings: Engine, device and weights settings.
        devices: Provides its scheduler.
        spec: The variant.
        progress: Its stage is updated.
        reserve: Awaited with the estimated memory in bytes before the engine is built.

    Raises:
        WeightsError: It cannot be served; says why.
        Exception: What `reserve` raises.
    """
    progress.stage = "reading"
    prepared = await asyncio.to_thread(prepare_variant, spec, settings)
    await reserve(prepared.memory_bytes)
    progress.stage = "building"
    built = await asyncio.to_thread(build_engine, prepared, settings)
    scheduler, threads = devices.get(built.device)
    try:
        progress.stage = "warming_up"
        timings = await threads.submit(
            partial(warm_up, built.engine, spec, settings.max_batch_size)
        )
        progress.stage = "verifying"
        await threads.submit(partial(check_reference, prepared, built))
        reference = await threads.submit(partial(Reference.compute, built.engine, spec))
    except Exception:
        await asyncio.to_thread(built.engine.close)  # the next attempt needs its memory
        raise
    log.info(
        "variant %s is loaded: %s on %s in %s, weights %s",
        spec.name,
        built.kind,
        built.device,
        built.precision,
        built.digest[:12],
    )
    queue = scheduler.add(spec.name, built.engine, timings, spec.transform.input_size)
    return LoadedVariant(spec, built, queue, scheduler, threads, reference)


async def unload_variant(variant: LoadedVariant, timeout_s: float) -> bool:
    """Free a retired variant once its accepted requests are complete.

    If it was replaced, streams and uploads switch to its replacement. Otherwise streams end after
    their frames in flight, and uploads that are still arriving are awaited.

    Args:
        variant: A variant that lookup no longer returns.
        timeout_s: How long its requests may take, in seconds; those that remain then fail.
            Batches running at that time get as long again, and at least `MIN_DRAIN_S`; an engine
            that has not returned by then keeps its memory.

    Returns:
        Whether its memory is free.
    """
    loop, name = asyncio.get_running_loop(), variant.spec.name
    ends = loop.time() + timeout_s
    reason = Unloading(f"variant {name} is being unloaded")
    if variant.replaced_by is None:
        variant.stop_streams(reason)
    while variant.busy and loop.time() < ends:
        await asyncio.sleep(DRAIN_POLL_S)
    batch_timeout_s = max(timeout_s, MIN_DRAIN_S)
    if not await variant.scheduler.remove(variant.queue, reason, batch_timeout_s):
        log.error(
            "variant %s is unloaded, but its engine has not returned from a batch for %g s: its"
            " memory stays in use; restart the server",
            name,
            batch_timeout_s,
        )
        return False
    # Not on the engine threads, which serve other variants: closing waits while another engine of
    # the device is built.
    await asyncio.to_thread(variant.built.engine.close)
    log.info("variant %s is unloaded: weights %s", name, variant.built.digest[:12])
    return True
