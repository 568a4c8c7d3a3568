"""The composition root: build the server's parts, start, drain, stop."""

from __future__ import annotations

import asyncio
import logging
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
from resnet50_server.auth.tls import TlsReloader
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
from resnet50_server.snapshot import take_snapshot
from resnet50_server.telemetry.gauges import GaugeCollector
from resnet50_server.telemetry.http_server import MetricsServer
from resnet50_server.telemetry.logs import RequestLog
from resnet50_server.telemetry.loop_lag import LoopLagProbe
from resnet50_server.telemetry.metrics import Metrics
from resnet50_server.telemetry.snapshot import ServerSnapshot
from resnet50_server.variants.directory import VariantsDirectory

if TYPE_CHECKING:
    from resnet50_server.telemetry.tracing import Tracing

log = logging.getLogger(__name__)

# When gRPC stops it cancels the calls that have arrived but that it has not handed over yet, and
# their clients see CANCELLED (grpc/grpc#41785). So calls are rejected first, until none has arrived
# for `DRAIN_QUIET_S`, and for `MAX_REJECT_S` at most. A wait that ends more than `MAX_LATE_S` late
# shows nothing: the loop was stalled, and calls that arrived meanwhile have not been handed over.
DRAIN_QUIET_S = 0.05
MAX_LATE_S = 0.01
MAX_REJECT_S = 1.0


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


class Server:
    """A model server in this process; `start`, then `stop`, on one event loop.

    Args:
        settings: Its configuration.
        on_loaded: Called for each loaded variant, before it answers requests.

    Attributes:
        failed: Set when the server cannot recover from an error.
    """

    def __init__(self, settings: Settings, on_loaded: Callable[[], object] = lambda: None) -> None:
        self._settings = settings
        self._on_loaded = on_loaded
        self._parts: Parts | None = None
        # Closes the parts in the reverse of the order in which they were built.
        self._closing = AsyncExitStack()
        self.failed = asyncio.Event()

    @property
    def parts(self) -> Parts:
        """The parts; from `start` on."""
        assert self._parts is not None
        return self._parts

    @property
    def fault(self) -> FatalError | None:
        """The error that the server cannot recover from; None if there is none."""
        return None if self._parts is None else self._parts.readiness.fault

    @property
    def addresses(self) -> list[str]:
        """The addresses that it listens on."""
        return [] if self._parts is None else self._parts.grpc.addresses

    @property
    def metrics_url(self) -> str | None:
        """The URL of the metrics; None if they are not served."""
        server = None if self._parts is None else self._parts.metrics_server
        return None if server is None else server.url

    def snapshot(self) -> ServerSnapshot:
        """Return the state of all parts, once started; call it on the event loop."""
        return take_snapshot(self.parts)

    async def start(self) -> None:
        """Listen at once, not ready; load and warm up the variants; then become ready.

        Without `listen_while_loading` it listens only when it is ready.

        Raises:
            WeightsError: A variant cannot be loaded.
            UnusableSetting: A file or an address in the settings cannot be used.
            OSError: An address cannot be bound.
        """
        settings = self._settings
        self._parts = parts = build(settings, self.failed, self._on_loaded, self._closing)
        parts.health.start()
        if settings.listen_while_loading:
            await parts.grpc.listen(parts.certificates)
        log.info("loading the variants")
        if parts.watcher is not None:
            await parts.watcher.start()
        await parts.control.load_initial()
        if parts.variants_file is not None:
            parts.variants_file.set_splits()
        for watcher in (parts.watcher, parts.variants_file):
            if watcher is not None:
                watching = asyncio.create_task(watcher.run(), name=type(watcher).__name__)
                self._closing.callback(watching.cancel)
        parts.readiness.started = True
        parts.health.update()
        if not settings.listen_while_loading:
            await parts.grpc.listen(parts.certificates)

    def drain(self) -> None:
        """Report that the server is not ready, and reject new requests."""
        if self._parts is not None:
            self._parts.inference.drain()
            self._parts.health.update()

    async def reject_new(self) -> None:
        """Drain, and reject the requests that are on their way until no more arrive."""
        self.drain()
        if self._parts is None:
            return
        admission, loop = self._parts.admission, asyncio.get_running_loop()
        ends = loop.time() + min(MAX_REJECT_S, self._settings.drain_timeout_s)
        while (now := loop.time()) < ends:
            before = admission.refused_while_draining
            await asyncio.sleep(DRAIN_QUIET_S)
            in_time = loop.time() - now <= DRAIN_QUIET_S + MAX_LATE_S
            if in_time and admission.refused_while_draining == before:
                break

    async def stop(self) -> None:
        """Drain, complete the requests in flight within `drain_timeout_s`, then stop."""
        self.drain()
        if self._parts is not None:
            await self._parts.grpc.stop(self._settings.drain_timeout_s)
        await self._closing.aclose()


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
    events = CompositeEvents()
    if (tracing := _tracing(settings)) is not None:
        closing.push_async_callback(tracing.close)
        tracing.start()
        events.add(tracing)
    if settings.log_level == "debug":
        events.add(RequestLog())
    certificates = certificates_of(settings)
    tokens = None if settings.tokens_file is None else Tokens(settings.tokens_file)
    declared = declared_variants(settings)
    settings = fit_memory(settings, declared.specs, read_memory_limit())
    admission = Admission(Limits.of(settings))
    variants = VariantRegistry(declared.specs, declared.default)
    variants.on_loaded(lambda _: on_loaded())
    readiness = Readiness(variants, lambda: admission.draining, failed)
    health = HealthReporter(
        ("", *SERVICES),
        readiness.server_problem,
        lambda: {
            f"{INFERENCE_SERVICE}/{name}": problem
            for name, problem in readiness.variant_problems().items()
        },
    )
    closing.callback(health.close)
    variants.on_health_change(lambda _: health.update())

    def fail(fault: FatalError) -> None:
        readiness.fail(fault)
        health.update()

    metrics = None if settings.metrics_listen is None else _metrics(settings)
    metrics_server = None
    if metrics is not None and settings.metrics_listen is not None:
        events.add(metrics)
        metrics_server = MetricsServer(
            settings.metrics_listen,
            metrics.registry,
            readiness.fault_text,
            readiness.server_problem,
        )
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
    cache = None
    if settings.response_cache_bytes:
        cache = ResponseCache(settings.response_cache_bytes)
        variants.on_retired(cache.drop)
        variants.on_removed(cache.forget)
    limits = ImageLimits.of(settings)
    pipeline = Pipeline(
        admission,
        decode_pool,
        limits,
        events,
        cache,
        PixelBudget(settings.max_decode_pixels or limits.max_pixels),
    )
    traffic = TrafficRouter(variants, pipeline.infer)
    directory = None
    if settings.variants_dir is not None:
        directory = VariantsDirectory(settings.variants_dir)
    if directory is not None or settings.variants_file is not None:
        events.add(traffic)
    budget = MemoryBudget(
        variants,
        settings.max_variants_bytes,
        evict=settings.evict_variants,
        splits_using=traffic.splits_using,
    )
    control = VariantControl(
        variants,
        partial(load_variant, settings, devices),
        budget,
        settings.drain_timeout_s,
        None if directory is None else SpecSource(directory, variants.specs),
        traffic.splits_using,
    )
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
    limits_of_calls = CallLimits.of(settings)
    inference = InferenceServicer(variants, pipeline, limits_of_calls, traffic)
    administration = VariantServicer(variants, control, traffic, limits.exact_jpeg_pixels)
    oip = None
    if settings.oip:
        from resnet50_server.api.oip.service import OipConfig, OipServicer
        from resnet50_server.api.oip.statistics import OipStatistics

        events.add(statistics := OipStatistics())
        variants.on_removed(statistics.forget)
        oip = OipServicer(
            OipConfig(settings.oip_model_name, caches=cache is not None),
            limits_of_calls,
            variants,
            pipeline,
            traffic,
            readiness,
            inference,
            administration,
            statistics,
        )
    grpc = GrpcServer(
        settings,
        Authenticator(tokens),
        admission,
        events,
        inference,
        administration,
        health,
        oip,
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
        metrics.init_series(spec.name for spec in variants.specs)
        variants.on_loaded(lambda name: metrics.init_series([name]))
        variants.on_removed(metrics.forget)
        metrics.registry.register(GaugeCollector(partial(take_snapshot, parts)))
        closing.callback(LoopLagProbe(metrics.lag).close)
    return parts


def _metrics(settings: Settings) -> Metrics:
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
