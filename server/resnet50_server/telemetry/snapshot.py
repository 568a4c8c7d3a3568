"""State of a server at one moment, in plain values: for metrics, and for tests.

`Parts.snapshot` takes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from resnet50_server.inference.response_cache import CacheStats, ResponseCache
from resnet50_server.lifecycle.loaded_variant import LoadedVariant
from resnet50_server.lifecycle.registry import VariantRegistry
from resnet50_server.rollout.router import ActiveSplit
from resnet50_server.rollout.variants_file_watcher import VariantsFileWatcher


@dataclass(frozen=True)
class VariantSnapshot:
    """A loaded variant.

    Attributes:
        name: Its name.
        digest: SHA-256 of its weights.
        engine: Kind of its engine, e.g. "openvino".
        device: Name of its device, e.g. "cpu".
        precision: E.g. "fp32".
        default: Whether it is the default variant.
        healthy: Whether it is in service.
        requests: Images and frames that use it.
        uploads: Uploads for it that still arrive.
        pending: Images that wait for a batch.
        oldest_wait_s: Wait of the first of them so far, in seconds; 0 without any.
        batch_size_limit: Current maximum of images in a batch.
        latency_s: Learned α and β of a batch's duration, in seconds; None before the first batch.
    """

    name: str
    digest: str
    engine: str
    device: str
    precision: str
    default: bool
    healthy: bool
    requests: int
    uploads: int
    pending: int
    oldest_wait_s: float
    batch_size_limit: int
    latency_s: tuple[float, float] | None

    @classmethod
    def of(cls, loaded: LoadedVariant, *, default: bool) -> VariantSnapshot:
        """Return the current state of a loaded variant; runs on the event loop."""
        queue, built, now = loaded.queue, loaded.built, asyncio.get_running_loop().time()
        latency = queue.latency
        return cls(
            name=loaded.spec.name,
            digest=built.digest,
            engine=built.kind,
            device=built.device,
            precision=built.precision,
            default=default,
            healthy=queue.health.problem is None,
            requests=loaded.requests,
            uploads=loaded.uploads,
            pending=len(queue.waiting),
            oldest_wait_s=now - queue.oldest_arrival() if len(queue.waiting) else 0.0,
            batch_size_limit=queue.limit.current(now),
            latency_s=(latency.alpha_s, latency.beta_s) if latency.known else None,
        )


@dataclass(frozen=True)
class SplitSnapshot:
    """A traffic split and its counts.

    Attributes:
        variant: Name of the requested variant.
        candidate: Name of the evaluated variant.
        answers: Requests and frames by side ("variant", "candidate") and outcome ("answered",
            "failed").
        shadows: Shadow images by outcome ("compared", "skipped", "failed").
        agreed: Compared images with the same first category.
        cosines: Sum of the cosines of their embeddings.
        ended: Whether the server has ended it.
    """

    variant: str
    candidate: str
    answers: Mapping[tuple[str, str], int]
    shadows: Mapping[str, int]
    agreed: int
    cosines: float
    ended: bool

    @classmethod
    def of(cls, active: ActiveSplit) -> SplitSnapshot:
        """Return the current counts of a split."""
        stats = active.stats
        sides = (("variant", stats.variant_answers), ("candidate", stats.candidate_answers))
        return cls(
            variant=active.split.variant,
            candidate=active.split.candidate,
            answers={
                (side, outcome): getattr(share, outcome)
                for side, share in sides
                for outcome in ("answered", "failed")
            },
            shadows={
                "compared": stats.comparison.images,
                "skipped": stats.skipped,
                "failed": stats.failed,
            },
            agreed=stats.comparison.agreed,
            cosines=stats.comparison.cosines,
            ended=bool(active.ended),
        )


@dataclass(frozen=True)
class VariantsFileSnapshot:
    """The variants file.

    Attributes:
        revision: The active revision: the SHA-256 of that content, 64 hex digits.
        applied: Changes that were applied, without the first content.
        refused: Changes that were refused.
        problem: Why its content of now is not applied; empty if it is.
        differences: Differences between the server and the active revision.
    """

    revision: str
    applied: int
    refused: int
    problem: str
    differences: Sequence[str]

    @classmethod
    def of(cls, watcher: VariantsFileWatcher) -> VariantsFileSnapshot:
        """Return the current state of the watched file."""
        changes = watcher.changes
        return cls(
            revision=watcher.revision,
            applied=changes.applied,
            refused=changes.refused,
            problem=changes.problem,
            differences=list(watcher.differences),
        )


@dataclass(frozen=True)
class CacheSnapshot:
    """The response cache.

    Attributes:
        lookups: By variant and outcome ("hit", "shared", "miss").
        evictions: Results evicted so far.
        entries: Results stored.
        bytes: Memory of these.
    """

    lookups: Mapping[tuple[str, str], int]
    evictions: int
    entries: int
    bytes: int

    @classmethod
    def of(cls, cache: ResponseCache, registry: VariantRegistry) -> CacheSnapshot:
        """Return the current state of the cache.

        Args:
            cache: The cache.
            registry: Its variants count from zero, so that rates include the first lookups.
        """
        stats = {spec.name: CacheStats() for spec in registry.specs} | cache.stats
        return cls(
            lookups={
                (name, outcome): count
                for name, one in stats.items()
                for outcome, count in (
                    ("hit", one.hits),
                    ("shared", one.shared),
                    ("miss", one.misses),
                )
            },
            evictions=cache.evictions,
            entries=len(cache),
            bytes=cache.memory_bytes,
        )


@dataclass(frozen=True)
class ServerSnapshot:
    """A server.

    Attributes:
        ready: Whether it accepts images.
        draining: Whether it refuses new requests because it shuts down.
        receiving: Calls whose message is being received.
        unsent_bytes: Size of the responses that gRPC has not sent yet.
        requests: Images and frames in flight, from admission to response.
        bytes: Encoded size of these.
        streams: Open streams of frames.
        decode_waiting: Calls that wait for a decode thread.
        decode_busy: Decode threads that run a call.
        decode_stuck: Decode threads over their time limit.
        batches: Batches in flight on each device.
        busy_s: Compute time of each device, in seconds.
        cancelled: Images and frames cancelled by clients, by stage.
        listener_errors: Events that a listener failed to record, by its name.
        variants: The loaded ones.
        splits: All traffic splits.
        cache: The response cache; None if it is off.
        variants_file: The variants file; None without one.
    """

    ready: bool
    draining: bool
    receiving: int
    unsent_bytes: int
    requests: int
    bytes: int
    streams: int
    decode_waiting: int
    decode_busy: int
    decode_stuck: int
    batches: Mapping[str, int]
    busy_s: Mapping[str, float]
    cancelled: Mapping[str, int]
    listener_errors: Mapping[str, int]
    variants: Sequence[VariantSnapshot]
    splits: Sequence[SplitSnapshot]
    cache: CacheSnapshot | None
    variants_file: VariantsFileSnapshot | None = None
