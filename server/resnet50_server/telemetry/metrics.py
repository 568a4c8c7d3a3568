"""What the server counts, for Prometheus; docs/metrics.md says what each name means.

Whatever happens is counted as it happens, on the event loop. What stands somewhere, such as the
length of a queue, is read when it is asked for; see `readings`.
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

# Seconds. Fine where images on a GPU are, and up to where deadlines end.
DURATION_BUCKETS = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075),
    *(0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0),
)
LAG_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
SIZE_BUCKETS = tuple(2.0**power for power in range(11))

STAGES = ("decode", "queue", "compute", "total")
ANSWERED, REFUSED, DROPPED = "answered", "refused", "dropped"
# Of `Overloaded.limit`, and what else sheds load; there from the start, as 0.
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
# Of methods that are not ours.
OTHER = "other"


class _Children(dict[Any, Any]):
    """The children of a family by their label values: `labels` takes longer than counting does.

    Args:
        family: The family.
        labels: Its labels' names.
    """

    def __init__(self, family: Counter | Histogram, labels: Sequence[str]) -> None:
        self._family = family
        self._variant = labels.index("variant") if "variant" in labels else None

    def __missing__(self, values: tuple[str, ...]) -> Any:
        child = self[values] = self._family.labels(*values)
        return child

    def forget(self, variant: str) -> None:
        """Export nothing of a variant any more."""
        if self._variant is None:
            return
        for values in [one for one in self if one[self._variant] == variant]:
            del self[values]
            self._family.remove(*values)


class _OfVariant:
    """What is counted of a variant for every image and batch."""

    __slots__ = ("answered", "batch_size", "stages")

    def __init__(self, answered: Counter, batch_size: Histogram, stages: list[Histogram]) -> None:
        self.answered = answered
        self.batch_size = batch_size
        self.stages = stages


class Metrics(ServerEvents):
    """Counts; several servers of a process have one each.

    Args:
        methods: Names of the methods that are counted, and whether each is a stream; anything else
            is counted as "other".
        image_methods: Those that are about one image.
        version: The server's.

    Attributes:
        registry: What is exported.
        lag: Takes how late the event loop was, in seconds.
    """

    def __init__(
        self, methods: Mapping[str, bool], image_methods: Iterable[str], version: str
    ) -> None:
        # Prometheus itself has no use for the time at which each series began.
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

        self._families: list[_Children] = []

        def children(family: Counter | Histogram, labels: Sequence[str]) -> _Children:
            self._families.append(_Children(family, labels))
            return self._families[-1]

        def counter(name: str, text: str, *labels: str) -> _Children:
            return children(Counter(name, text, labels, registry=registry), labels)

        def histogram(name: str, text: str, buckets: Sequence[float], *labels: str) -> _Children:
            family = Histogram(name, text, labels, buckets=buckets, registry=registry)
            return children(family, labels)

        self._requests = counter(
            "resnet50_requests", "RPCs that have ended.", "method", "variant", "code"
        )
        self._request_s = histogram(
            "resnet50_request_duration_seconds",
            "From a call's headers to its answer; calls that were answered, but no streams.",
            DURATION_BUCKETS,
            "method",
            "variant",
        )
        self._images = counter(
            "resnet50_images",
            "Images and frames: answered, refused with an error, or dropped for a newer one.",
            "variant",
            "outcome",
        )
        self._stages = histogram(
            "resnet50_stage_duration_seconds",
            "Where the time of answered images went.",
            DURATION_BUCKETS,
            "variant",
            "stage",
        )
        self._batch_size = histogram(
            "resnet50_batch_size", "Images in a batch.", SIZE_BUCKETS, "variant"
        )
        self._batch_failures = counter(
            "resnet50_batch_failures", "Batches on which the engine failed.", "variant"
        )
        self._too_large = counter(
            "resnet50_batches_out_of_memory",
            "Batches for which the device had no memory; run again in parts.",
            "variant",
        )
        self._not_numbers = counter(
            "resnet50_answers_not_numbers",
            "Images failed because what the network says of them is not a number.",
            "variant",
        )
        self._dropped = counter(
            "resnet50_frames_dropped",
            "Frames of a LATEST stream that a newer one has replaced.",
            "variant",
        )
        self._frame_errors = counter(
            "resnet50_frame_errors",
            "Frames answered with an error, while their stream goes on.",
            "variant",
            "code",
        )
        self._shed = counter(
            "resnet50_shed", "Calls and frames refused to keep the load down.", "limit"
        )
        self._decode_failures = counter(
            "resnet50_decode_failures", "Images that could not be read.", "reason"
        )
        self._unauthenticated = counter(
            "resnet50_unauthenticated",
            "Calls without a valid token, or without the scope for what they asked.",
            "reason",
        )
        self.lag = Histogram(
            "resnet50_event_loop_lag_seconds",
            "How late the event loop wakes.",
            buckets=LAG_BUCKETS,
            registry=registry,
        )
        # Counted here until the caller's image is inside; read by `readings`.
        self.gave_up_at = {"receive": 0, "upload": 0}
        self._of: dict[str, _OfVariant] = {}
        for limit in LIMITS:
            self._shed[limit,]

    def expect(self, variants: Iterable[str]) -> None:
        """Export zeros for variants from the start, so that rates see the first images.

        Args:
            variants: Their names.
        """
        for name in variants:
            self._of[name] = self._variant(name)
            for outcome in (REFUSED, DROPPED):
                self._images[name, outcome]
            self._batch_failures[name,]
            self._too_large[name,]
            self._not_numbers[name,]
            self._dropped[name,]
            self._frame_errors[name, INTERNAL]

    def forget(self, variant: str) -> None:
        """Export nothing more of a variant that has been unloaded.

        Calls that used it and end later, such as streams, are counted without a variant.

        Args:
            variant: Its name.
        """
        self._of.pop(variant, None)
        for family in self._families:
            family.forget(variant)

    def call_ended(self, call: RequestContext, code: str, error: Exception | None) -> None:
        """Count an RPC, and why it failed."""
        method = call.method if call.method in self._methods else OTHER
        variant = self._served(call)
        self._requests[method, variant, code].inc()
        if error is None:
            if code == OK and method not in self._streams:
                self._request_s[method, variant].observe(_since(call))
            return
        if method in self._of_image:
            self._images[variant, REFUSED].inc()
        self._refused(error)

    def cancelled(self, call: RequestContext, stage: str) -> None:
        """Count a caller that gave up while it was still sending."""
        self.gave_up_at[stage] += 1

    def image_answered(self, image: ImageEvent) -> None:
        """Count an image, and where its time went."""
        of = self._of.get(image.variant) or self._variant(image.variant)
        of.answered.inc()
        decode, queue, compute, total = of.stages
        total.observe(image.total_s)
        if image.cache == "none":  # others were not decoded and in no batch
            decode.observe(image.decode_s)
            queue.observe(image.queue_s)
            compute.observe(image.compute_s)

    def frame_refused(self, call: RequestContext, error: Exception) -> None:
        """Count a frame, and why it was refused."""
        variant = self._served(call)
        self._images[variant, REFUSED].inc()
        self._frame_errors[variant, code_of(error)].inc()
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
            self._not_numbers[batch.variant,].inc(batch.non_finite)

    def _served(self, call: RequestContext) -> str:
        """Return the name of a call's variant; "" if it is not known, or not served any more."""
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
        elif isinstance(error, Unauthenticated):
            self._unauthenticated[error.reason,].inc()
        elif isinstance(error, PermissionDenied):
            self._unauthenticated["SCOPE_MISSING",].inc()

    def _variant(self, name: str) -> _OfVariant:
        of = self._of[name] = _OfVariant(
            self._images[name, ANSWERED],
            self._batch_size[name,],
            [self._stages[name, stage] for stage in STAGES],
        )
        return of


def _since(call: RequestContext) -> float:
    return time.perf_counter() - call.started
