"""Variants on their way in and out: loaded beside those that answer, let go when unused."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from .devices import Devices
from .errors import Unloading
from .held import HeldVariant
from .opening import open_engine, warm_up
from .settings import Settings
from .variants.definition import Definition

log = logging.getLogger(__name__)

# While unloading: how often to look whether all calls have ended.
DRAIN_POLL_S = 0.02
# Then batches that run have so long at least: they end by themselves, unless the engine hangs.
LAST_BATCHES_S = 5.0


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
    """Free a variant that no new request finds any more, once what it has is answered.

    Streams follow to its successor; without one they end after the frames that are inside.

    Args:
        variant: Which one.
        patience_s: How long its requests may take, in seconds; those that are left then fail.
            Batches that run then may take as long again, and `LAST_BATCHES_S` at least; an engine
            that has not returned by then is left as it is.
    """
    loop, name = asyncio.get_running_loop(), variant.definition.name
    ends = loop.time() + patience_s
    reason = Unloading(f"variant {name} is being unloaded")
    if variant.successor is None:
        for call in variant.streams:
            if call.stop is not None:
                call.stop(reason)
    while variant.requests and loop.time() < ends:
        await asyncio.sleep(DRAIN_POLL_S)
    last_s = max(patience_s, LAST_BATCHES_S)
    if not await variant.scheduler.remove(variant.queue, reason, last_s):
        log.error(
            "variant %s is unloaded, but its engine has not returned from a batch for %g s: its"
            " memory stays taken; restart the server",
            name,
            last_s,
        )
        return
    await variant.threads.run(variant.opened.engine.close)
    log.info("variant %s is unloaded: weights %s", name, variant.opened.digest[:12])
