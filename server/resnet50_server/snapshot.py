"""Read the state of a server's parts into plain values."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from resnet50_server.inference.response_cache import CacheStats, ResponseCache
from resnet50_server.lifecycle.registry import VariantRegistry
from resnet50_server.rollout.router import TrafficRouter
from resnet50_server.rollout.variants_file_watcher import VariantsFileWatcher
from resnet50_server.telemetry.snapshot import (
    CacheSnapshot,
    ServerSnapshot,
    SplitSnapshot,
    VariantsFileSnapshot,
    VariantSnapshot,
)

if TYPE_CHECKING:
    from resnet50_server.parts import Parts


def take_snapshot(parts: Parts) -> ServerSnapshot:
    """Return the current state; runs on the event loop."""
    admission, pool = parts.admission, parts.decode_pool
    # Images cancelled before admission.
    cancelled = {} if parts.metrics is None else parts.metrics.cancelled_by_stage
    schedulers = parts.devices.schedulers
    return ServerSnapshot(
        ready=parts.readiness.server_problem() is None,
        draining=admission.draining,
        receiving=len(parts.grpc.receiving),
        unsent_bytes=parts.grpc.unsent.bytes,
        requests=admission.requests,
        bytes=admission.bytes,
        streams=admission.streams,
        decode_waiting=pool.waiting,
        decode_busy=pool.busy,
        decode_stuck=pool.stuck,
        batches={device: one.batches for device, one in schedulers.items()},
        busy_s={device: one.busy_s for device, one in schedulers.items()},
        cancelled={
            **cancelled,
            "decode": pool.cancelled,
            "queue": sum(one.cancelled.waiting for one in schedulers.values()),
            "batch": sum(one.cancelled.computing for one in schedulers.values()),
        },
        listener_errors=dict(parts.events.errors),
        variants=_variants(parts.variants),
        splits=_splits(parts.traffic),
        cache=None if parts.cache is None else _cache(parts.cache, parts.variants),
        variants_file=None if parts.variants_file is None else _variants_file(parts.variants_file),
    )


def _variants(registry: VariantRegistry) -> list[VariantSnapshot]:
    now, found = asyncio.get_running_loop().time(), []
    for spec in registry.specs:
        if (loaded := registry.loaded_variant(spec)) is None:
            continue
        queue, built = loaded.queue, loaded.built
        latency = queue.latency
        found.append(
            VariantSnapshot(
                name=spec.name,
                digest=built.digest,
                engine=built.kind,
                device=built.device,
                precision=built.precision,
                default=spec is registry.default,
                healthy=queue.health.problem is None,
                requests=loaded.requests,
                uploads=loaded.uploads,
                pending=len(queue.waiting),
                oldest_wait_s=now - queue.oldest_arrival() if len(queue.waiting) else 0.0,
                batch_size_limit=queue.limit.current(now),
                latency_s=(latency.alpha_s, latency.beta_s) if latency.known else None,
            )
        )
    return found


def _splits(traffic: TrafficRouter) -> list[SplitSnapshot]:
    return [
        SplitSnapshot(
            variant=active.split.variant,
            candidate=active.split.candidate,
            answers={
                (side, outcome): getattr(share, outcome)
                for side, share in (
                    ("variant", active.stats.variant_answers),
                    ("candidate", active.stats.candidate_answers),
                )
                for outcome in ("answered", "failed")
            },
            shadows={
                "compared": active.stats.comparison.images,
                "skipped": active.stats.skipped,
                "failed": active.stats.failed,
            },
            agreed=active.stats.comparison.agreed,
            cosines=active.stats.comparison.cosines,
            ended=bool(active.ended),
        )
        for active in traffic.splits
    ]


def _variants_file(watcher: VariantsFileWatcher) -> VariantsFileSnapshot:
    changes = watcher.changes
    return VariantsFileSnapshot(
        revision=watcher.revision,
        applied=changes.applied,
        refused=changes.refused,
        problem=changes.problem,
        differences=list(watcher.differences),
    )


def _cache(cache: ResponseCache, registry: VariantRegistry) -> CacheSnapshot:
    # Loaded variants count from zero, so that rates include the first lookups.
    stats = {spec.name: CacheStats() for spec in registry.specs} | cache.stats
    return CacheSnapshot(
        lookups={
            (name, outcome): count
            for name, one in stats.items()
            for outcome, count in (("hit", one.hits), ("shared", one.shared), ("miss", one.misses))
        },
        evictions=cache.evictions,
        entries=len(cache),
        bytes=cache.memory_bytes,
    )
