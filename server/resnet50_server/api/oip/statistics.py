"""Counts and durations of each variant, as the statistics extension reports them."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from resnet50_server.context import RequestContext
from resnet50_server.events import BatchEvent, ImageEvent, ServerEvents


@dataclass
class _Duration:
    """How often, and how long in all.

    Attributes:
        count: How often.
        total_s: In seconds.
    """

    count: int = 0
    total_s: float = 0.0

    def add(self, duration_s: float) -> None:
        self.count += 1
        self.total_s += duration_s


@dataclass
class _Variant:
    """The figures of one variant; durations by the names of InferStatistics' fields."""

    executions: int = 0
    last_s: float = 0.0
    durations: dict[str, _Duration] = field(default_factory=lambda: defaultdict(_Duration))


class OipStatistics(ServerEvents):
    """Counts images by variant, whichever protocol they came by."""

    def __init__(self) -> None:
        self._variants: dict[str, _Variant] = defaultdict(_Variant)

    def image_answered(self, image: ImageEvent) -> None:
        """Count an image and its durations."""
        variant = self._variants[image.variant]
        variant.last_s = time.time()
        durations = variant.durations
        durations["success"].add(image.total_s)
        if image.cache != "none":
            durations["cache_hit"].add(image.queue_s)
            return
        durations["queue"].add(image.queue_s)
        durations["compute_input"].add(image.decode_s)
        durations["compute_infer"].add(image.compute_s)

    def image_refused(self, context: RequestContext, error: Exception) -> None:
        """Count an image of a batch, or a frame, that failed."""
        self._count_failure(context)

    def call_ended(self, context: RequestContext, code: str, error: Exception | None) -> None:
        """Count a call that failed once its variant was known; images of batches are counted."""
        if error is not None and (context.stream is None or context.image_failed):
            self._count_failure(context)

    def batch_ended(self, batch: BatchEvent) -> None:
        """Count a batch."""
        if not batch.failed:
            self._variants[batch.variant].executions += 1

    def forget(self, name: str) -> None:
        """Drop the figures of a variant that has left memory."""
        self._variants.pop(name, None)

    def fill(self, message: Any, name: str) -> None:
        """Write the figures of a variant into a ModelStatistics message."""
        variant = self._variants.get(name) or _Variant()
        message.last_inference = int(variant.last_s * 1e3)
        message.inference_count = variant.durations["success"].count
        message.execution_count = variant.executions
        for duration, figures in variant.durations.items():
            statistics = getattr(message.inference_stats, duration)
            statistics.count, statistics.ns = figures.count, int(figures.total_s * 1e9)

    def _count_failure(self, context: RequestContext) -> None:
        if context.variant:
            elapsed_s = time.perf_counter() - context.started
            self._variants[context.variant].durations["fail"].add(elapsed_s)
