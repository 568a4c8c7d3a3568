"""Thread counts and limits of a server, chosen from its settings and its container's limits."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from resnet50_server.engines.devices import cuda_available
from resnet50_server.inference.decode_pool import decode_threads
from resnet50_server.lifecycle.devices import cpu_plan
from resnet50_server.memory_bound import MIB, Part, describe, memory_bound, total
from resnet50_server.runtime.cpus import cpu_budget, cpus
from resnet50_server.runtime.memory import MemoryLimit
from resnet50_server.settings import Settings
from resnet50_server.variants.spec import VariantSpec

log = logging.getLogger(__name__)

# The rest is for the kernel's buffers of connections and the page cache, which count as well.
USABLE_SHARE = 0.9
# Limits of simultaneous work, which follow the memory limit unless they are set. Limits of one
# image or message do not: whether an image is accepted must not depend on a server's memory.
FITTED = (
    *("max_streams", "max_uploads", "max_requests"),
    *("max_request_bytes", "max_receive_bytes", "max_send_bytes"),
)
# They are lowered in steps of 1/32, to a quarter of their defaults at least.
STEPS, MIN_STEP = 32, 8


def choose_decode_threads(settings: Settings) -> int:
    """Return how many threads decode, and log how the CPUs are divided."""
    # The stub engines need no CPU, like an engine on a GPU.
    on_cpu = not settings.stub_engine and (settings.device == "cpu" or not cuda_available())
    threads = settings.decode_threads or decode_threads(cpus(), engine_on_cpu=on_cpu)
    plan = cpu_plan(settings)
    log.info(
        "CPU budget: %s; decode threads: %d; an engine on the CPU: %d batches at once, threads"
        " of each: %d",
        cpu_budget(),
        threads,
        plan.instances,
        plan.threads,
    )
    return threads


def fit_memory(
    settings: Settings, specs: Sequence[VariantSpec], limit: MemoryLimit | None
) -> Settings:
    """Return settings whose memory bound fits into a limit, and log the bound.

    Limits of simultaneous work that are not set are lowered, all by the same share. Per caller, a
    lowered limit is half of it.

    Args:
        settings: How it serves.
        specs: The variants that it loads at its start.
        limit: The memory that its cgroups allow; None for no limit.
    """
    fitted, usable = settings, math.inf if limit is None else USABLE_SHARE * limit.size
    step = STEPS
    while total(_bound(fitted, specs)) > usable and step > MIN_STEP:
        step -= 1
        fitted = _lowered(settings, step)
    bound = _bound(fitted, specs)
    log.info("%s", describe(bound))
    if limit is None:
        return settings
    lowered = [name for name in FITTED if getattr(settings, name) != getattr(fitted, name)]
    if lowered:
        log.info(
            "memory limit %s: limits that are not set are %d/%d of their defaults: %s",
            limit,
            step,
            STEPS,
            ", ".join(f"{name} {getattr(fitted, name)}" for name in lowered),
        )
    if total(bound) > usable:
        log.warning(
            "memory limit %s: the server may take %d MiB, and %d%% of the limit are %d MiB: raise"
            " the limit, or lower max_image_pixels, max_message_bytes, or limits that are set",
            limit,
            total(bound) // MIB,
            round(100 * USABLE_SHARE),
            usable // MIB,
        )
    return fitted


def _bound(settings: Settings, specs: Sequence[VariantSpec]) -> list[Part]:
    largest = max(math.prod(spec.transform.input_size) for spec in specs)
    return memory_bound(settings, cpu_plan(settings).instances, largest, len(specs))


def _lowered(settings: Settings, step: int) -> Settings:
    """Return settings with the limits that are not set at `step` / `STEPS` of their defaults."""
    values: dict[str, int] = {}
    for name in FITTED:
        if name in settings.model_fields_set:
            continue
        values[name] = getattr(settings, name) * step // STEPS
        if name == "max_receive_bytes":
            least = min(settings.max_receive_bytes, 2 * settings.max_message_bytes)
            values[name] = max(values[name], least)
        caller = f"{name}_per_caller"
        if caller in type(settings).model_fields and caller not in settings.model_fields_set:
            values[caller] = values[name] // 2
    return settings.model_copy(update=values)
