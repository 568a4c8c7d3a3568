"""Displayed metrics of one server, or of several in total."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from .interval import Interval, quantile

STAGES = ("decode", "queue", "compute", "total")


@dataclass(frozen=True)
class Latency:
    """Latency quantiles of an interval, interpolated within histogram buckets.

    Attributes:
        p50_ms: Median in milliseconds; None without observations.
        p99_ms: 99th percentile in milliseconds; None without observations.
        bound_ms: Highest finite bound: a quantile equal to it may be larger.
    """

    p50_ms: float | None = None
    p99_ms: float | None = None
    bound_ms: float | None = None


@dataclass(frozen=True)
class VariantMetrics:
    """Metrics of one variant; None if not exported or not yet known.

    Attributes:
        name: The variant's name.
        loaded: True if at least one server has it loaded.
        default: True if it serves requests that name no variant.
        engines: Engine, device and precision, "openvino cpu fp32"; several if servers differ.
        digests: SHA-256 of the weights; several if servers differ.
        images_per_s: Completed images per second.
        batch_mean: Mean batch size.
        queue_images: Images in the queue.
        queue_age_ms: Age of the oldest queued image in milliseconds.
        dropped_per_s: Frames per second replaced by newer ones before inference.
        failed_batches_per_s: Batches per second that failed in the engine.
        alpha_ms: Learned fixed time of a batch; of several servers, the slowest one's.
        beta_ms: Learned time per image of a batch.
        stages: Latency by stage: "decode", "queue", "compute", "total".
    """

    name: str
    loaded: bool | None
    default: bool
    engines: tuple[str, ...]
    digests: tuple[str, ...]
    images_per_s: float | None
    batch_mean: float | None
    queue_images: float | None
    queue_age_ms: float | None
    dropped_per_s: float | None
    failed_batches_per_s: float | None
    alpha_ms: float | None
    beta_ms: float | None
    stages: Mapping[str, Latency]


@dataclass(frozen=True)
class MethodMetrics:
    """Metrics of one RPC.

    Attributes:
        name: Name of the method, such as "Classify".
        per_s: Completed requests per second, by gRPC status code.
        latency: Latency of its requests.
    """

    name: str
    per_s: Mapping[str, float]
    latency: Latency


@dataclass(frozen=True)
class ServerMetrics:
    """All metrics of a server; None if not exported or not yet known.

    Attributes:
        versions: Version of the server; several if servers differ.
        ready: True if all servers are ready.
        uptime_s: Uptime of the newest process in seconds.
        cpu_cores: CPU seconds per second, total.
        memory_bytes: Resident memory, total.
        images_per_s: Completed images per second of all variants.
        queue_images: Images in the queues of all variants.
        requests_per_s: Requests per second with status OK.
        failed_per_s: Requests per second with any other status.
        inside_requests: Admitted requests in progress.
        inside_bytes: Bytes of their images.
        open_streams: Open streams.
        decode_threads_busy: Busy decoder threads.
        decode_queue_calls: Images waiting for a decoder thread.
        event_loop_lag_ms: 99th percentile of the event loop's lag.
        busy: Utilisation of each device, 0 to 1; mean over servers.
        refused_per_s: Rejected requests and frames per second, by limit.
        cancelled_per_s: Cancelled requests per second, by stage.
        dropped_per_s: Dropped frames per second.
        undecodable_per_s: Undecodable images per second, by reason.
        failed_batches_per_s: Failed batches per second.
        variants: Metrics by variant, the default first; variants without metrics are last.
        methods: Metrics by RPC.
    """

    versions: tuple[str, ...]
    ready: bool | None
    uptime_s: float | None
    cpu_cores: float | None
    memory_bytes: float | None
    images_per_s: float | None
    queue_images: float | None
    requests_per_s: float | None
    failed_per_s: float | None
    inside_requests: float | None
    inside_bytes: float | None
    open_streams: float | None
    decode_threads_busy: float | None
    decode_queue_calls: float | None
    event_loop_lag_ms: float | None
    busy: Mapping[str, float] | None
    refused_per_s: Mapping[str, float] | None
    cancelled_per_s: Mapping[str, float] | None
    dropped_per_s: float | None
    undecodable_per_s: Mapping[str, float] | None
    failed_batches_per_s: float | None
    variants: tuple[VariantMetrics, ...]
    methods: tuple[MethodMetrics, ...]

    def with_variants(self, names: Iterable[str]) -> ServerMetrics:
        """Return a copy with entries for variants without metrics, such as loading ones."""
        measured = {one.name for one in self.variants}
        others = (_variant(Interval({}, {}), name) for name in names if name not in measured)
        return replace(self, variants=(*self.variants, *others))

    @classmethod
    def of(cls, interval: Interval, now_s: float) -> ServerMetrics:
        """Derive the metrics of a server, or of several in total.

        Args:
            interval: Rates and gauges.
            now_s: Current time in seconds since the epoch.
        """
        ready = interval.value("resnet50_ready")
        started_s = interval.value("process_start_time_seconds")
        codes = interval.rates("resnet50_requests_total", "code")
        return cls(
            versions=_distinct(interval.labels("resnet50_build_info"), "version"),
            ready=None if ready is None else ready > 0,
            # The clocks of two machines can differ by more than a new server's age.
            uptime_s=max(0.0, now_s - started_s) if started_s else None,
            cpu_cores=interval.rate("process_cpu_seconds_total"),
            memory_bytes=interval.value("process_resident_memory_bytes"),
            images_per_s=interval.rate("resnet50_images_total", outcome="answered"),
            queue_images=interval.value("resnet50_queue_images"),
            requests_per_s=None if codes is None else codes.get("OK", 0.0),
            failed_per_s=None if codes is None else sum(codes.values()) - codes.get("OK", 0.0),
            inside_requests=interval.value("resnet50_in_flight_requests"),
            inside_bytes=interval.value("resnet50_in_flight_bytes"),
            open_streams=interval.value("resnet50_open_streams"),
            decode_threads_busy=interval.value("resnet50_decode_threads_busy"),
            decode_queue_calls=interval.value("resnet50_decode_queue_calls"),
            event_loop_lag_ms=_latency(interval, "resnet50_event_loop_lag_seconds").p99_ms,
            busy=interval.rates("resnet50_engine_busy_seconds_total", "device"),
            refused_per_s=interval.rates("resnet50_shed_total", "limit"),
            cancelled_per_s=interval.rates("resnet50_cancelled_total", "stage"),
            dropped_per_s=interval.rate("resnet50_frames_dropped_total"),
            undecodable_per_s=interval.rates("resnet50_decode_failures_total", "reason"),
            failed_batches_per_s=interval.rate("resnet50_batch_failures_total"),
            variants=tuple(_variant(interval, name) for name in _variant_names(interval)),
            methods=tuple(_methods(interval)),
        )


def _variant(interval: Interval, name: str) -> VariantMetrics:
    infos = [one for one in interval.labels("resnet50_variant_info") if one.get("variant") == name]
    for one in infos:
        parts = (one.get(label, "") for label in ("engine", "device", "precision"))
        one["runs on"] = " ".join(filter(None, parts))
    return VariantMetrics(
        name=name,
        loaded=bool(infos) if "resnet50_variant_info" in interval.now else None,
        default=_is_default(interval, name),
        engines=_distinct(infos, "runs on"),
        digests=_distinct(infos, "digest"),
        images_per_s=interval.rate("resnet50_images_total", variant=name, outcome="answered"),
        batch_mean=interval.mean("resnet50_batch_size", variant=name),
        queue_images=interval.value("resnet50_queue_images", variant=name),
        queue_age_ms=_ms(interval.value("resnet50_queue_age_seconds", variant=name)),
        dropped_per_s=interval.rate("resnet50_frames_dropped_total", variant=name),
        failed_batches_per_s=interval.rate("resnet50_batch_failures_total", variant=name),
        alpha_ms=_learned_ms(interval, "alpha", name),
        beta_ms=_learned_ms(interval, "beta", name),
        stages={
            stage: _latency(interval, "resnet50_stage_duration_seconds", variant=name, stage=stage)
            for stage in STAGES
        },
    )


def _methods(interval: Interval) -> Iterable[MethodMetrics]:
    names = {one.get("method", "") for one in interval.labels("resnet50_requests_total")}
    for name in sorted(names):
        rates = interval.rates("resnet50_requests_total", "code", method=name) or {}
        latency = _latency(interval, "resnet50_request_duration_seconds", method=name)
        yield MethodMetrics(name, rates, latency)


def _variant_names(interval: Interval) -> list[str]:
    """Return the names of loaded variants, the default first."""
    families = ["resnet50_variant_info", "resnet50_queue_images"]
    if not any(family in interval.now for family in families):
        # The only family that a server with a stuck event loop exports. It is not used otherwise,
        # because it includes unloaded variants.
        families = ["resnet50_batch_size_count"]
    names = {
        one["variant"]
        for family in families
        for one in interval.labels(family)
        if one.get("variant")
    }
    return sorted(names, key=lambda name: (not _is_default(interval, name), name))


def _is_default(interval: Interval, name: str) -> bool:
    return any(
        one.get("variant") == name and one.get("default", "").lower() in ("true", "1", "yes")
        for one in interval.labels("resnet50_variant_info")
    )


def _learned_ms(interval: Interval, which: str, variant: str) -> float | None:
    """Return a parameter of the latency model, which is exported after the first batch."""
    name = f"resnet50_batch_latency_{which}_seconds"
    known = any(one.get("variant") == variant for one in interval.labels(name))
    return _ms(interval.value(name, variant=variant)) if known else None


def _latency(interval: Interval, name: str, **labels: str) -> Latency:
    buckets = interval.buckets(name, **labels)
    if not buckets:
        return Latency()
    finite = [bound for bound in buckets if bound != float("inf")]
    return Latency(
        _ms(quantile(0.5, buckets)),
        _ms(quantile(0.99, buckets)),
        _ms(max(finite, default=None)),
    )


def _distinct(labels: Iterable[Mapping[str, str]], name: str) -> tuple[str, ...]:
    return tuple(sorted({one[name] for one in labels if one.get(name)}))


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000
