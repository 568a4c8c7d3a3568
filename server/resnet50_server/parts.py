"""The parts of a server, built from its settings: the composition root."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from resnet50_server.api.grpc_server import (
    IMAGE_METHODS,
    INFERENCE_SERVICE,
    SERVICES,
    GrpcServer,
    methods,
    streaming_methods,
)
from resnet50_server.api.health import HealthReporter
from resnet50_server.api.inference_service import CallLimits, InferenceServicer
from resnet50_server.api.listen import certificates_of
from resnet50_server.api.variant_service import VariantServicer
from resnet50_server.auth.identity import Authenticator
from resnet50_server.auth.tokens import Tokens
from resnet50_server.engines.devices import thread_initializer
from resnet50_server.events import CompositeEvents
from resnet50_server.images.limits import ImageLimits
from resnet50_server.images.pixel_budget import PixelBudget
from resnet50_server.inference.admission import Admission
from resnet50_server.inference.decode_pool import DecodePool
from resnet50_server.inference.pipeline import Pipeline
from resnet50_server.inference.quotas import Limits
from resnet50_server.inference.response_cache import ResponseCache
from resnet50_server.lifecycle.control import VariantControl
from resnet50_server.lifecycle.devices import Devices
from resnet50_server.lifecycle.loader import load_variant
from resnet50_server.lifecycle.memory_budget import MemoryBudget
from resnet50_server.lifecycle.readiness import Readiness
from resnet50_server.lifecycle.registry import VariantRegistry
from resnet50_server.lifecycle.self_test import SelfTests
from resnet50_server.lifecycle.spec_source import SpecSource
from resnet50_server.lifecycle.watcher import DirectoryWatcher
from resnet50_server.rollout.router import TrafficRouter
from resnet50_server.rollout.variants_file import declared_variants
from resnet50_server.rollout.variants_file_watcher import VariantsFileWatcher
from resnet50_server.runtime.fatal import FatalError
from resnet50_server.runtime.memory import read_memory_limit
from resnet50_server.settings import Settings
from resnet50_server.sizes import choose_decode_threads, fit_memory
from resnet50_server.telemetry.logs import RequestLog
from resnet50_server.telemetry.snapshot import (
    CacheSnapshot,
    ServerSnapshot,
    SplitSnapshot,
    VariantsFileSnapshot,
    VariantSnapshot,
)
from resnet50_server.variants.directory import VariantsDirectory

if TYPE_CHECKING:
    from resnet50_server.api.oip.service import OipServicer
    from resnet50_server.auth.tls import TlsReloader
    from resnet50_server.telemetry.http_server import MetricsServer
    from resnet50_server.telemetry.metrics import Metrics
    from resnet50_server.telemetry.tracing import Tracing


@dataclass(frozen=True)
class Parts:
    """The parts of a server."""

    readiness: Readiness
    events: CompositeEvents
    admission: Admission
    devices: Devices
    decode_pool: DecodePool
    cache: ResponseCache | None
    variants: VariantRegistry
    control: VariantControl
    watcher: DirectoryWatcher | None
    variants_file: VariantsFileWatcher | None
    self_tests: SelfTests
    traffic: TrafficRouter
    inference: InferenceServicer
    health: HealthReporter
    grpc: GrpcServer
    certificates: TlsReloader | None
    metrics: Metrics | None
    metrics_server: MetricsServer | None

    def snapshot(self) -> ServerSnapshot:
        """Return the current state; runs on the event loop."""
        admission, pool, variants = self.admission, self.decode_pool, self.variants
        schedulers, watched = self.devices.schedulers, self.variants_file
        return ServerSnapshot(
            ready=self.readiness.server_problem() is None,
            draining=admission.draining,
            receiving=len(self.grpc.receiving),
            unsent_bytes=self.grpc.unsent.bytes,
            requests=admission.requests,
            bytes=admission.bytes,
            streams=admission.streams,
            decode_waiting=pool.waiting,
            decode_busy=pool.busy,
            decode_stuck=pool.stuck,
            batches={device: one.batches for device, one in schedulers.items()},
            busy_s={device: one.busy_s for device, one in schedulers.items()},
            cancelled={
                # Before admission.
                **({} if self.metrics is None else self.metrics.cancelled_by_stage),
                "decode": pool.cancelled,
                "queue": sum(one.cancelled.waiting for one in schedulers.values()),
                "batch": sum(one.cancelled.computing for one in schedulers.values()),
            },
            listener_errors=dict(self.events.errors),
            variants=[
                VariantSnapshot.of(loaded, default=spec is variants.default)
                for spec in variants.specs
                if (loaded := variants.loaded_variant(spec)) is not None
            ],
            splits=list(map(SplitSnapshot.of, self.traffic.splits)),
            cache=None if self.cache is None else CacheSnapshot.of(self.cache, variants),
            variants_file=None if watched is None else VariantsFileSnapshot.of(watched),
        )


def build(
    settings: Settings,
    failed: asyncio.Event,
    on_loaded: Callable[[], object],
    closing: AsyncExitStack,
) -> Parts:
    """Build a server's parts; nothing listens yet, no variant is loaded.

    Args:
        settings: Its configuration.
        failed: Set when the server cannot recover from an error.
        on_loaded: Called for each loaded variant, before it answers requests.
        closing: Receives what closes the parts.

    Raises:
        WeightsError: An argument of `variants` is wrong.
        UnusableSetting: A file or an address in the settings cannot be used.
        OSError: The address of the metrics cannot be bound.
    """
    events, metrics = _listeners(settings, closing)
    certificates = certificates_of(settings)
    tokens = None if settings.tokens_file is None else Tokens(settings.tokens_file)
    declared = declared_variants(settings)
    settings = fit_memory(settings, declared.specs, read_memory_limit())
    admission = Admission(Limits.of(settings))
    variants = VariantRegistry(declared.specs, declared.default)
    variants.on_loaded(lambda _: on_loaded())
    readiness = Readiness(variants, lambda: admission.draining, failed)
    health = _health(readiness, variants)
    closing.callback(health.close)

    def fail(fault: FatalError) -> None:
        readiness.fail(fault)
        health.update()

    metrics_server = _metrics_server(settings, metrics, readiness)
    if metrics_server is not None:
        closing.push_async_callback(metrics_server.close)
    decode_pool = DecodePool(
        choose_decode_threads(settings),
        settings.decode_timeout_s,
        fail,
        initialize=thread_initializer(1, settings),
    )
    closing.callback(decode_pool.close)
    devices = Devices(settings, fail, events)
    closing.push_async_callback(devices.close)
    cache = _response_cache(settings, variants)
    pipeline = _pipeline(settings, admission, decode_pool, events, cache)
    traffic = TrafficRouter(variants, pipeline.infer)
    if settings.variants_dir is not None or settings.variants_file is not None:
        events.add(traffic)
    directory = None
    if settings.variants_dir is not None:
        directory = VariantsDirectory(settings.variants_dir)
    control = _control(settings, variants, devices, traffic, directory)
    closing.callback(control.close)
    watcher = None
    if settings.watch_variants_s and directory is not None:
        watcher = DirectoryWatcher(directory, variants, control, settings.watch_variants_s)
    variants_file = None
    if settings.variants_file is not None:
        variants_file = VariantsFileWatcher(
            settings.variants_file, declared, variants, control, traffic
        )
    self_tests = SelfTests(variants)
    closing.callback(self_tests.close)
    inference = InferenceServicer(variants, pipeline, CallLimits.of(settings), traffic)
    administration = VariantServicer(variants, control, traffic, pipeline.limits.exact_jpeg_pixels)
    oip = None
    if settings.oip:
        oip = _oip(
            settings, variants, pipeline, traffic, readiness, inference, administration, events
        )
    authenticator = Authenticator(tokens)
    grpc = GrpcServer(
        settings, authenticator, admission, events, inference, administration, health, oip
    )
    parts = Parts(
        readiness,
        events,
        admission,
        devices,
        decode_pool,
        cache,
        variants,
        control,
        watcher,
        variants_file,
        self_tests,
        traffic,
        inference,
        health,
        grpc,
        certificates,
        metrics,
        metrics_server,
    )
    if metrics is not None:
        _export(metrics, parts, closing)
    return parts


def _listeners(
    settings: Settings, closing: AsyncExitStack
) -> tuple[CompositeEvents, Metrics | None]:
    """Return the listeners of all events as one, and the metrics among them if they are on."""
    events = CompositeEvents()
    if (tracing := _tracing(settings)) is not None:
        closing.push_async_callback(tracing.close)
        tracing.start()
        events.add(tracing)
    if settings.log_level == "debug":
        events.add(RequestLog())
    metrics = None if settings.metrics_listen is None else _metrics(settings)
    if metrics is not None:
        events.add(metrics)
    return events, metrics


def _metrics_server(
    settings: Settings, metrics: Metrics | None, readiness: Readiness
) -> MetricsServer | None:
    if metrics is None or settings.metrics_listen is None:
        return None
    # Not at the top: servers without metrics start without prometheus_client.
    from resnet50_server.telemetry.http_server import MetricsServer

    return MetricsServer(
        settings.metrics_listen, metrics.registry, readiness.fault_text, readiness.server_problem
    )


def _health(readiness: Readiness, variants: VariantRegistry) -> HealthReporter:
    health = HealthReporter(
        ("", *SERVICES),
        readiness.server_problem,
        lambda: {
            f"{INFERENCE_SERVICE}/{name}": problem
            for name, problem in readiness.variant_problems().items()
        },
    )
    variants.on_health_change(lambda _: health.update())
    return health


def _response_cache(settings: Settings, variants: VariantRegistry) -> ResponseCache | None:
    if not settings.response_cache_bytes:
        return None
    cache = ResponseCache(settings.response_cache_bytes)
    variants.on_retired(cache.drop)
    variants.on_removed(cache.forget)
    return cache


def _pipeline(
    settings: Settings,
    admission: Admission,
    decode_pool: DecodePool,
    events: CompositeEvents,
    cache: ResponseCache | None,
) -> Pipeline:
    limits = ImageLimits.of(settings)
    budget = PixelBudget(settings.max_decode_pixels or limits.max_pixels)
    return Pipeline(admission, decode_pool, limits, events, cache, budget)


def _control(
    settings: Settings,
    variants: VariantRegistry,
    devices: Devices,
    traffic: TrafficRouter,
    directory: VariantsDirectory | None,
) -> VariantControl:
    """Return the control of variants; they are loaded while serving only with a directory."""
    budget = MemoryBudget(
        variants,
        settings.max_variants_bytes,
        evict=settings.evict_variants,
        splits_using=traffic.splits_using,
    )
    return VariantControl(
        variants,
        partial(load_variant, settings, devices),
        budget,
        settings.drain_timeout_s,
        None if directory is None else SpecSource(directory, variants.specs),
        traffic.splits_using,
    )


def _oip(
    settings: Settings,
    variants: VariantRegistry,
    pipeline: Pipeline,
    traffic: TrafficRouter,
    readiness: Readiness,
    inference: InferenceServicer,
    administration: VariantServicer,
    events: CompositeEvents,
) -> OipServicer:
    from resnet50_server.api.oip.service import OipConfig, OipServicer
    from resnet50_server.api.oip.statistics import OipStatistics

    events.add(statistics := OipStatistics())
    variants.on_removed(statistics.forget)
    return OipServicer(
        OipConfig(settings.oip_model_name, caches=bool(settings.response_cache_bytes)),
        CallLimits.of(settings),
        variants,
        pipeline,
        traffic,
        readiness,
        inference,
        administration,
        statistics,
    )


def _export(metrics: Metrics, parts: Parts, closing: AsyncExitStack) -> None:
    """Export series of the variants, the gauges of all parts, and the lag of the event loop."""
    from resnet50_server.telemetry.gauges import GaugeCollector
    from resnet50_server.telemetry.loop_lag import LoopLagProbe

    variants = parts.variants
    metrics.init_series(spec.name for spec in variants.specs)
    variants.on_loaded(lambda name: metrics.init_series([name]))
    variants.on_removed(metrics.forget)
    metrics.registry.register(GaugeCollector(parts.snapshot))
    closing.callback(LoopLagProbe(metrics.lag).close)


def _metrics(settings: Settings) -> Metrics:
    from resnet50_server.telemetry.metrics import Metrics

    try:
        release = version("resnet50-serving")
    except PackageNotFoundError:  # run from its sources
        release = "unknown"
    return Metrics(streaming_methods(settings), IMAGE_METHODS, release)


def _tracing(settings: Settings) -> Tracing | None:
    if settings.otlp_endpoint is None:
        return None
    from resnet50_server.telemetry.tracing import Tracing

    return Tracing(settings.otlp_endpoint, settings.trace_ratio, methods(settings))
