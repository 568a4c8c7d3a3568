"""Variants on their way in and out: loaded beside those that answer, let go when unused."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial

from resnet50_server.errors import ServingError, Unloading, WeightsError
from resnet50_server.settings import Settings
from resnet50_server.variants.spec import VariantSpec

from .devices import Devices
from .loader import build_engine, prepare, verify, warm_up
from .registry import LoadedVariant
from .self_test import Reference
from .stages import Loading

log = logging.getLogger(__name__)

# What a load may fail with that says enough without a traceback. torch raises RuntimeError and its
# subclasses, such as OutOfMemoryError. Other engines raise what they like: onnxruntime's errors are
# nothing but exceptions.
EXPECTED_ERRORS = (ServingError, WeightsError, OSError, RuntimeError, MemoryError)
# While unloading: how often to look whether all calls have ended.
DRAIN_POLL_S = 0.02
# Then batches that run have so long at least: they end by themselves, unless the engine hangs.
MIN_DRAIN_S = 5.0


async def hold(
    settings: Settings,
    devices: Devices,
    spec: VariantSpec,
    loading: Loading,
    make_room: Callable[[int], Awaitable[None]],
) -> LoadedVariant:
    """Load, warm up and check one variant without blocking the event loop.

    Args:
        settings: Where and how to run it.
        devices: Gives it its scheduler.
        spec: Which one.
        loading: Is told how far it is.
        make_room: Is awaited with the bytes that it will take, before it takes them.

    Raises:
        WeightsError: It cannot be served; says why.
        Exception: What `make_room` raises.
    """
    loading.stage = "reading"
    prepared = await asyncio.to_thread(prepare, spec, settings)
    await make_room(prepared.memory_bytes)
    loading.stage = "building"
    opened = await asyncio.to_thread(build_engine, prepared, settings)
    scheduler, threads = devices.get(opened.device)
    try:
        loading.stage = "warming_up"
        warm = await threads.submit(partial(warm_up, opened.engine, spec, settings.max_batch_size))
        loading.stage = "verifying"
        await threads.submit(partial(verify, prepared, opened))
        reference = await threads.submit(partial(Reference.of, opened.engine, spec))
    except Exception:
        await asyncio.to_thread(opened.engine.close)  # its memory is wanted by the next try
        raise
    log.info(
        "variant %s is ready: %s on %s in %s, weights %s",
        spec.name,
        opened.kind,
        opened.device,
        opened.precision,
        opened.digest[:12],
    )
    crop = spec.transform.crop
    queue = scheduler.add(spec.name, opened.engine, warm, crop)
    return LoadedVariant(spec, opened, queue, scheduler, threads, reference)


async def let_go(variant: LoadedVariant, patience_s: float) -> bool:
    """Free a variant that no new request finds any more, once what it has is answered.

    Streams follow to its successor; without one they end after the frames that are inside. So do
    uploads that still arrive; without one they are waited for.

    Args:
        variant: Which one.
        patience_s: How long its requests may take, in seconds; those that are left then fail.
            Batches that run then may take as long again, and `MIN_DRAIN_S` at least; an engine
            that has not returned by then is left as it is.

    Returns:
        Whether its memory is free.
    """
    loop, name = asyncio.get_running_loop(), variant.spec.name
    ends = loop.time() + patience_s
    reason = Unloading(f"variant {name} is being unloaded")
    if variant.replaced_by is None:
        for call in variant.streams:
            if call.stop is not None:
                call.stop(reason)
    while variant.busy and loop.time() < ends:
        await asyncio.sleep(DRAIN_POLL_S)
    last_s = max(patience_s, MIN_DRAIN_S)
    if not await variant.scheduler.remove(variant.queue, reason, last_s):
        log.error(
            "variant %s is unloaded, but its engine has not returned from a batch for %g s: its"
            " memory stays taken; restart the server",
            name,
            last_s,
        )
        return False
    # Not on the engine threads, which compute for others: closing waits while another engine of the
    # device is built.
    await asyncio.to_thread(variant.built.engine.close)
    log.info("variant %s is unloaded: weights %s", name, variant.built.digest[:12])
    return True
