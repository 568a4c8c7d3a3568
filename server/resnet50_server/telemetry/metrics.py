"""Counters and histograms for Prometheus; docs/reference/metrics.md lists them.

They are updated on the event loop as events arrive; `gauges` computes the rest at scrape time.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)

from resnet50_server.context import RequestContext
from resnet50_server.errors import (
    DeadlineUnreachable,
    InvalidImage,
    Overloaded,
    PermissionDenied,
    ShuttingDown,
    Unauthenticated,
    Unloading,
    VariantUnhealthy,
    code_of,
)
from resnet50_server.events import BatchEvent, ImageEvent, ServerEvents

Child = TypeVar("Child")

# Seconds: fine around the duration of images on a GPU, and up to common deadlines.
DURATION_BUCKETS = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075),
    *(0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0),
)
LAG_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
SIZE_BUCKETS = tuple(2.0**power for power in range(11))

STAGES = ("decode", "queue", "compute", "total")
ANSWERED, REFUSED, DROPPED = "answered", "refused", "dropped"
# Values of `Overloaded.limit` and other reasons of load shedding; exported as 0 from the start.
LIMITS = (
    "max_requests",
    "max_requests_per_caller",
    "max_request_bytes",
    "max_request_bytes_per_caller",
    "max_streams",
    "max_streams_per_caller",
    "max_uploads",
    "max_uploads_per_caller",
    "max_receive_bytes",
    "max_rate_per_caller",
    "max_queue_size",
    "max_queue_wait_s",
    "device_memory",
    "deadline",
    "deadline_later",
    "draining",
    "unloading",
    "unhealthy",
)
OK, INTERNAL = "OK", "INTERNAL"
# Methods of other services.
OTHER = "other"


class _LabelCache(dict[Any, Any]):
    """Children of a family by their label values: `labels` takes longer than counting.

    Args:
        family: The family.
        labels: Names of its labels.
    """

    def __init__(self, family: Counter | Histogram, labels: Sequence[str]) -> None:
        self._family = family
        self._variant = labels.index("variant") if "variant" in labels else None

    def __missing__(self, values: tuple[str, ...]) -> Any:
        child = self[values] = self._family.labels(*values)
        return child

    def forget(self, variant: str) -> None:
        """Remove the series of a variant."""
        if self._variant is None:
            return
        for values in [one for one in self if one[self._variant] == variant]:
            del self[values]
            self._family.remove(*values)


class _VariantSeries:
    """Series updated for every image and batch of a variant."""

    __slots__ = ("answered", "batch_size", "stages")

    def __init__(self, answered: Counter, batch_size: Histogram, stages: list[Histogram]) -> None:
        self.answered = answered
        self.batch_size = batch_size
        self.stages = stages


class Metrics(ServerEvents):
    """Counts events; each server of a process has its own.

    Args:
        methods: Names of the methods to count, and whether each is a stream; others are counted as
            "other".
        image_methods: Methods about a single image.
        version: Version of the server.

    Attributes:
        registry: Holds everything exported.
        lag: Receives the lag of the event loop, in seconds.
        cancelled_by_stage: Requests cancelled before admission; exported by `gauges`.
    """

    def __init__(
        self, methods: Mapping[str, bool], image_methods: Iterable[str], version: str
    ) -> None:
        # Prometheus does not use the creation time of series.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)
        Info("resnet50_build", "The server's version.", registry=registry).info(
            {"version": version}
        )
        self._streams = {method for method, stream in methods.items() if stream}
        self._methods = set(methods)
        self._of_image = set(image_methods)

        self._families: list[_LabelCache] = []

        def cached(family: Counter | Histogram, labels: Sequence[str]) -> _LabelCache:
            self._families.append(_LabelCache(family, labels))
            return self._families[-1]

        def counter(name: str, text: str, *labels: str) -> _LabelCache:
            return cached(Counter(name, text, labels, registry=registry), labels)

        def histogram(name: str, text: str, buckets: Sequence[float], *labels: str) -> _LabelCache:
            family = Histogram(name, text, labels, buckets=buckets, registry=registry)
            return cached(family, labels)

        self._requests = counter(
            "resnet50_requests",
            "RPCs that have ended, streams once each, by status code.",
            "method",
            "variant",
            "code",
        )
        self._request_s = histogram(
            "resnet50_request_duration_seconds",
            "From headers to response, of RPCs with the code OK that are not streams.",
            DURATION_BUCKETS,
            "method",
            "variant",
        )
        self._images = counter(
            "resnet50_images",
            "Images and frames by outcome: single images, uploads, images of batches, frames.",
            "variant",
            "outcome",
        )
        self._stages = histogram(
            "resnet50_stage_duration_seconds",
            "Duration of each stage of answered images, as Timing in the response. Results of the"
            " response cache count in total only.",
            DURATION_BUCKETS,
            "variant",
            "stage",
        )
        self._batch_size = histogram(
            "resnet50_batch_size",
            "Images in a batch; the count is the number of batches, failed ones included.",
            SIZE_BUCKETS,
            "variant",
        )
        self._batch_failures = counter(
            "resnet50_batch_failures",
            "Batches that failed in the engine, retries included.",
            "variant",
        )
        self._too_large = counter(
            "resnet50_batches_out_of_memory",
            "Batches that did not fit into device memory; retried in smaller ones.",
            "variant",
        )
        self._non_finite = counter(
            "resnet50_non_finite_outputs",
            "Images failed because the model produced NaN or Inf.",
            "variant",
        )
        self._dropped = counter(
            "resnet50_frames_dropped",
            "Frames of LATEST streams replaced by a newer one.",
            "variant",
        )
        self._image_errors = counter(
            "resnet50_image_errors",
            "Frames, and images of batches, answered with an error; their call continues.",
            "variant",
            "code",
        )
        self._shed = counter(
            "resnet50_shed", "Requests and frames rejected to shed load, by limit.", "limit"
        )
        self._decode_failures = counter(
            "resnet50_decode_failures",
            "Images that could not be decoded or exceeded a limit, by reason.",
            "reason",
        )
        self._unauthenticated = counter(
            "resnet50_unauthenticated",
            "Requests without a valid token or the required scope, by reason.",
            "reason",
        )
        self.lag = Histogram(
            "resnet50_event_loop_lag_seconds",
            "Event-loop lag: how late timers run, measured ten times a second.",
            buckets=LAG_BUCKETS,
            registry=registry,
        )
        self.cancelled_by_stage = {"receive": 0, "upload": 0}
        self._of: dict[str, _VariantSeries] = {}
        for limit in LIMITS:
            self._shed[limit,]

    def init_series(self, variants: Iterable[str]) -> None:
        """Export zeros for variants from the start, so that rates include the first images.

        Args:
            variants: Their names.
        """
        for name in variants:
            self._of[name] = self._variant(name)
            for outcome in (REFUSED, DROPPED):
                self._images[name, outcome]
            self._batch_failures[name,]
            self._too_large[name,]
            self._non_finite[name,]
            self._dropped[name,]
            self._image_errors[name, INTERNAL]

    def forget(self, variant: str) -> None:
        """Remove the series of a variant that has been unloaded.

        Its requests that end later, such as streams, are counted without a variant.

        Args:
            variant: Its name.
        """
        self._of.pop(variant, None)
        for family in self._families:
            family.forget(variant)

    def call_ended(self, call: RequestContext, code: str, error: Exception | None) -> None:
        """Count an RPC and its error."""
        method = call.method if call.method in self._methods else OTHER
        variant = self._served(call)
        self._requests[method, variant, code].inc()
        if error is None:
            if code == OK and method not in self._streams:
                self._request_s[method, variant].observe(_since(call))
            return
        if method in self._of_image or call.image_failed:
            self._images[variant, REFUSED].inc()
        self._refused(error)

    def cancelled(self, call: RequestContext, stage: str) -> None:
        """Count a request cancelled while it was being received."""
        self.cancelled_by_stage[stage] += 1

    def image_answered(self, image: ImageEvent) -> None:
        """Count an image and its durations."""
        of = self._of.get(image.variant) or self._variant(image.variant)
        of.answered.inc()
        decode, queue, compute, total = of.stages
        total.observe(image.total_s)
        if image.cache == "none":  # others were neither decoded nor in a batch
            decode.observe(image.decode_s)
            queue.observe(image.queue_s)
            compute.observe(image.compute_s)

    def image_refused(self, call: RequestContext, error: Exception) -> None:
        """Count a frame or an image of a batch, and its error."""
        variant = self._served(call)
        self._images[variant, REFUSED].inc()
        self._image_errors[variant, code_of(error)].inc()
        self._refused(error)

    def frame_dropped(self, call: RequestContext) -> None:
        """Count a frame."""
        variant = self._served(call)
        self._images[variant, DROPPED].inc()
        self._dropped[variant,].inc()

    def batch_ended(self, batch: BatchEvent) -> None:
        """Count a batch."""
        of = self._of.get(batch.variant) or self._variant(batch.variant)
        of.batch_size.observe(batch.size)
        if batch.failed:
            self._batch_failures[batch.variant,].inc()
        if batch.out_of_memory:
            self._too_large[batch.variant,].inc()
        if batch.non_finite:
            self._non_finite[batch.variant,].inc(batch.non_finite)

    def _served(self, call: RequestContext) -> str:
        """Return the name of a request's variant; "" if unknown or unloaded."""
        return call.variant if call.variant in self._of else ""

    def _refused(self, error: Exception) -> None:
        if isinstance(error, Overloaded):
            self._shed[error.limit,].inc()
        elif isinstance(error, DeadlineUnreachable):
            self._shed["deadline_later" if error.accepted else "deadline",].inc()
        elif isinstance(error, Unloading):
            self._shed["unloading",].inc()
        elif isinstance(error, VariantUnhealthy):
            self._shed["unhealthy",].inc()
        elif isinstance(error, ShuttingDown):
            self._shed["draining",].inc()
        elif isinstance(error, InvalidImage):
            self._decode_failures[error.kind,].inc()
        elif isinstance(error, (Unauthenticated, PermissionDenied)):
            self._unauthenticated[error.error_reason,].inc()

    def _variant(self, name: str) -> _VariantSeries:
        of = self._of[name] = _VariantSeries(
            self._images[name, ANSWERED],
            self._batch_size[name,],
            [self._stages[name, stage] for stage in STAGES],
        )
        return of


def _since(call: RequestContext) -> float:
    return time.perf_counter() - call.started
