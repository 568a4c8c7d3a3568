"""The figures that are shown, of one server or of several together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from .interval import Interval, quantile

STAGES = ("decode", "queue", "compute", "total")


@dataclass(frozen=True)
class Latency:
    """How long something took in the interval, interpolated within a histogram's buckets.

    Attributes:
        p50_ms: Median in milliseconds; None if there was none, as for p99.
        p99_ms: 99th percentile in milliseconds.
        bound_ms: The highest finite bound: a quantile that equals it lies there or beyond.
    """

    p50_ms: float | None = None
    p99_ms: float | None = None
    bound_ms: float | None = None


@dataclass(frozen=True)
class VariantReading:
    """One variant's figures; None is what a server does not export, or not yet known.

    Attributes:
        name: What requests call it.
        loaded: Whether it can answer; of several servers, whether one of them can.
        default: Whether it answers requests that name none.
        engines: What computes it, "openvino cpu fp32"; several if servers differ.
        digests: SHA-256 of the weights; several if servers hold different ones.
        images_per_s: Images answered.
        batch_mean: Images in a batch.
        queue_images: How many wait.
        queue_age_ms: How long the oldest of them has waited.
        dropped_per_s: Frames answered without being computed, a newer one having come.
        failed_batches_per_s: Batches that failed in the engine.
        alpha_ms: Learned cost of a batch; of several servers, the slowest one's.
        beta_ms: Learned cost of an image in it.
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
class MethodReading:
    """One RPC's figures.

    Attributes:
        name: "Classify" and so on.
        per_s: Requests that ended, by gRPC code.
        latency: How long they took.
    """

    name: str
    per_s: Mapping[str, float]
    latency: Latency


@dataclass(frozen=True)
class Reading:
    """All figures; None is what a server does not export, or not yet known.

    Attributes:
        versions: Of the server.
        ready: Whether all servers take requests.
        uptime_s: How long the youngest process has been running.
        cpu_cores: Processor seconds a second, of all servers together.
        memory_bytes: Resident, of all servers together.
        images_per_s: Images answered, of all variants.
        queue_images: How many wait, of all variants.
        requests_per_s: Requests that ended well.
        failed_per_s: Requests that ended with another code than OK.
        inside_requests: Requests that have been let in and are not answered.
        inside_bytes: Bytes of their images.
        open_streams: Streams that are open.
        decode_threads_busy: Threads that decode at this moment.
        decode_queue_calls: Images that wait for one.
        event_loop_lag_ms: How late the event loop wakes, its 99th percentile.
        busy: Seconds that an engine computed per second, by device; mean of the servers.
        refused_per_s: Requests and frames refused, by limit.
        cancelled_per_s: Requests whose callers left, by stage.
        dropped_per_s: Frames dropped.
        undecodable_per_s: Images that could not be decoded, by reason.
        failed_batches_per_s: Batches that failed.
        variants: By variant, the default first; then those without figures.
        methods: By RPC.
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
    variants: tuple[VariantReading, ...]
    methods: tuple[MethodReading, ...]

    def with_variants(self, names: Iterable[str]) -> Reading:
        """Return the same with rows for variants that have no figures, as while they are loaded."""
        measured = {one.name for one in self.variants}
        others = (_variant(Interval({}, {}), name) for name in names if name not in measured)
        return replace(self, variants=(*self.variants, *others))

    @classmethod
    def of(cls, interval: Interval, now_s: float) -> Reading:
        """Make figures of what a server, or several together, did.

        Args:
            interval: What they did.
            now_s: Seconds since the epoch.
        """
        ready = interval.value("resnet50_ready")
        started_s = interval.value("process_start_time_seconds")
        codes = interval.rates("resnet50_requests_total", "code")
        return cls(
            versions=_distinct(interval.labels("resnet50_build_info"), "version"),
            ready=None if ready is None else ready > 0,
            # Clocks of two machines may differ by more than a young server's age.
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


def _variant(interval: Interval, name: str) -> VariantReading:
    infos = [one for one in interval.labels("resnet50_variant_info") if one.get("variant") == name]
    for one in infos:
        parts = (one.get(label, "") for label in ("engine", "device", "precision"))
        one["runs on"] = " ".join(filter(None, parts))
    return VariantReading(
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


def _methods(interval: Interval) -> Iterable[MethodReading]:
    names = {one.get("method", "") for one in interval.labels("resnet50_requests_total")}
    for name in sorted(names):
        rates = interval.rates("resnet50_requests_total", "code", method=name) or {}
        latency = _latency(interval, "resnet50_request_duration_seconds", method=name)
        yield MethodReading(name, rates, latency)


def _variant_names(interval: Interval) -> list[str]:
    """Return what is held, the default first."""
    families = ["resnet50_variant_info", "resnet50_queue_images"]
    if not any(family in interval.now for family in families):
        # All that a server exports whose event loop is stuck; others also count in it what they
        # have unloaded.
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
    """Return a part of the latency model, which a variant has only once it has computed."""
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
