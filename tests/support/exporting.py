"""A registry with a server's metrics, set by hand, on prometheus_client's HTTP server."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    start_http_server,
)

BUCKETS = (0.005, 0.01, 0.05, 0.1, 0.5, 1.0)
STAGES = ("decode", "queue", "compute", "total")


class Exported:
    """Families of a server, to be counted up by a test.

    Args:
        started_s: When the process started; None: that is not exported.
    """

    def __init__(self, started_s: float | None = 1000.0, version: str = "0.1.0") -> None:
        self.registry = registry = CollectorRegistry()

        def gauge(name: str, *labels: str) -> Gauge:
            return Gauge(name, "-", labels, registry=registry)

        def counter(name: str, *labels: str) -> Counter:
            return Counter(name, "-", labels, registry=registry)

        def histogram(name: str, *labels: str, buckets: tuple[float, ...] = BUCKETS) -> Histogram:
            return Histogram(name, "-", labels, registry=registry, buckets=buckets)

        Info("resnet50_build", "-", registry=registry).info({"version": version})
        if started_s is not None:
            gauge("process_start_time_seconds").set(started_s)
        self.memory = gauge("process_resident_memory_bytes")
        self.cpu = counter("process_cpu_seconds_total")
        self.ready = gauge("resnet50_ready")
        self.ready.set(1)
        self.requests = counter("resnet50_requests", "method", "variant", "code")
        self.request_s = histogram("resnet50_request_duration_seconds", "method", "variant")
        self.images = counter("resnet50_images", "variant", "outcome")
        self.stages = histogram("resnet50_stage_duration_seconds", "variant", "stage")
        self.batch_size = histogram("resnet50_batch_size", "variant", buckets=(1, 2, 4, 8, 16))
        self.batch_failures = counter("resnet50_batch_failures", "variant")
        self.dropped = counter("resnet50_frames_dropped", "variant")
        self.shed = counter("resnet50_shed", "limit")
        self.cancelled = counter("resnet50_cancelled", "stage")
        self.decode_failures = counter("resnet50_decode_failures", "reason")
        self.busy = counter("resnet50_engine_busy_seconds", "device")
        self.lag = histogram("resnet50_event_loop_lag_seconds")
        self.inside_requests = gauge("resnet50_in_flight_requests")
        self.inside_bytes = gauge("resnet50_in_flight_bytes")
        self.open_streams = gauge("resnet50_open_streams")
        self.decode_queue = gauge("resnet50_decode_queue_calls")
        self.decode_threads = gauge("resnet50_decode_threads_busy")
        self.queue_images = gauge("resnet50_queue_images", "variant")
        self.queue_age_s = gauge("resnet50_queue_age_seconds", "variant")
        self.alpha_s = gauge("resnet50_batch_latency_alpha_seconds", "variant")
        self.beta_s = gauge("resnet50_batch_latency_beta_seconds", "variant")
        self.info = gauge(
            *("resnet50_variant_info", "variant", "digest", "engine"),
            *("device", "precision", "default"),
        )

    def load(self, variant: str, default: bool = False, digest: str = "ab" * 32) -> None:
        """Export a variant that has loaded."""
        info = (variant, digest, "onnxruntime", "cpu", "fp32", str(default).lower())
        self.info.labels(*info).set(1)
        for gauge in (self.queue_images, self.queue_age_s):
            gauge.labels(variant).set(0)
        for family in (self.batch_failures, self.dropped, self.batch_size):
            family.labels(variant)
        self.images.labels(variant, "answered")
        for stage in STAGES:
            self.stages.labels(variant, stage)

    def answer(self, variant: str, images: int, total_s: float = 0.02, batch: int = 4) -> None:
        """Count images that were answered, in batches."""
        for _ in range(images):
            self.requests.labels("Classify", variant, "OK").inc()
            self.request_s.labels("Classify", variant).observe(total_s)
            self.images.labels(variant, "answered").inc()
            for stage, part in zip(STAGES, (0.2, 0.1, 0.7, 1.0), strict=True):
                self.stages.labels(variant, stage).observe(total_s * part)
        for _ in range(images // batch):
            self.batch_size.labels(variant).observe(batch)


@contextlib.contextmanager
def exporting(exported: Exported, port: int = 0) -> Iterator[str]:
    """Serve a registry on 127.0.0.1; give its HOST:PORT."""
    server, thread = start_http_server(port, "127.0.0.1", exported.registry)
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
